"""Mini-batches of the training set, cut, augmented and scaled on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bench.config.augmentation import Augmentation, Mix
from bench.data.augmentation import augment
from bench.data.dataset import Images
from bench.data.mixing import mix
from bench.errors import BenchError
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import RngStreams


@dataclass(frozen=True)
class Batch:
    """One mini-batch, or the part of it that this process trains on.

    `images`: float32, [n, channels, height, width], in [0, 1], channels_last. `labels`: int64, [n]. `index`: int64,
    [n], each image's place in the training set, for methods that remember something of every sample. `soft_labels`:
    float32, [n, classes], the share of each class, where labels are mixed or smoothed; `labels` are then the largest.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    soft_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> Tensor:
        """What a cross-entropy compares logits with: the soft labels, if there are any, or the labels."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The fields in order, so that `Batch(*batch.tensors)` is the same batch."""
        return tuple(getattr(self, field.name) for field in fields(self))


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 [0, 255] to float32 [0, 1], channels_last."""
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


class TrainingBatches:
    """The training set of one run, cut into augmented batches in a new order every epoch.

    A smaller last batch is dropped unless `keep_last`: its batch statistics would be poor. Because the order changes,
    every image is used equally often on average. This process gets its shard of every batch.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        augmentation: Sequence[Augmentation],
        random: RngStreams,
        group: ProcessGroup = SINGLE_PROCESS,
        classes: int = 0,
        *,
        keep_last: bool = False,
    ) -> None:
        """`classes` is the length of soft labels.

        Raises:
            BenchError: the images do not fill one batch, or a batch cannot be shared out equally.
        """
        if 0 < len(images) < batch_size:
            raise BenchError(f"only {len(images)} images are left to train on, too few for one batch of {batch_size}")
        rest = len(images) % batch_size
        for size in (batch_size, rest if keep_last else 0):
            if size % group.size:
                raise BenchError(f"a batch of {size} images cannot be cut into {group.size} equal parts")
        self.images, self.group = images, group
        self.used = len(images) - (0 if keep_last else rest)
        """The number of images of an epoch, over all processes."""
        self._batch_size, self._random, self._classes = batch_size, random, classes
        self._steps = [step for step in augmentation if not isinstance(step, Mix)]
        self._mix = next((step for step in augmentation if isinstance(step, Mix)), None)

    def __len__(self) -> int:
        return -(-self.used // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch of the run's randomness."""
        labels = self.images.labels
        order = torch.randperm(len(labels), generator=self._random("order"), device=labels.device)
        batches = [self.group.shard(index) for index in torch.split(order[: self.used], self._batch_size)]
        for index, pixels in zip(batches, self.images.read(batches), strict=True):
            random = self._random("augmentation")
            images, own, soft = to_float(augment(pixels, self._steps, random, self.group)), labels[index], None
            if self._mix:
                images, own, soft = mix(self._mix, images, own, self._classes, random, self.group)
            yield Batch(images, own, index, soft)
