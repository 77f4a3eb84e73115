"""Mini-batches of the training set, cut, augmented and scaled on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config.augmentation import Augmentation, Mix
from bench.data.augmentation import augment
from bench.data.dataset import Images, ImageSet
from bench.data.mixing import mix
from bench.errors import BenchError
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import RngStreams, generator


@dataclass(frozen=True)
class Batch:
    """One mini-batch, or the part of it that this process trains on.

    `images`: float32, [n, channels, height, width], in [0, 1], channels_last. `labels`: int64, [n]. `index`: int64,
    [n], each image's position in the training set, for methods that store values per image. `soft_labels`:
    float32, [n, classes], the share of each class, where labels are mixed or smoothed; `labels` are then the largest.
    `weights`: float32, [n], of the terms of the loss, with a mean of 1 over the whole batch, from `Method.select`.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    soft_labels: Tensor | None = None
    weights: Tensor | None = None

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


def hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images | None]:
    """Return `images` without a random `count` of them, which depend on `seed` alone, and those; None for none.

    Raises:
        BenchError: there are not so many images.
    """
    if not count:
        return images, None
    if count > len(images):
        raise BenchError(f"the method holds out {count} of the training images, but there are only {len(images)}")
    order = torch.randperm(len(images), generator=generator(seed, "held_out"))
    return images.take(order[count:].sort().values), images.take(order[:count].sort().values)


@dataclass(frozen=True)
class Extra:
    """Further images to train on, the number of them in every batch, and the share of their labels that is spread."""

    images: ImageSet
    per_batch: int
    smoothing: float


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
        held_out: Images | None = None,
        extra: Extra | None = None,
    ) -> None:
        """`classes` is the length of soft labels; `held_out` are images that no batch contains.

        Raises:
            BenchError: the images do not fill one batch, or a batch cannot be shared out equally.
        """
        self.images, self.group = images, group
        self.own = len(images)
        """The number of images that are not extra ones; they come first in `images`."""
        self._per_batch, self._smoothing = (extra.per_batch, extra.smoothing) if extra else (0, 0.0)
        if extra and isinstance(images, ImageSet):
            self.images = ImageSet(
                torch.cat((images.pixels, extra.images.pixels)), torch.cat((images.labels, extra.images.labels))
            )
        self._held_out, self._keep_last = held_out, keep_last
        self._batch_size, self._random, self._classes = batch_size, random, classes
        self._steps = [step for step in augmentation if not isinstance(step, Mix)]
        self._mix = next((step for step in augmentation if isinstance(step, Mix)), None)
        self.select(None)

    def select(self, index: Tensor | None, weights: Tensor | None = None) -> None:
        """Draw the coming epochs from the images at `index` (int64, [k]), or from all of them if it is None.

        A fixed part of every batch still comes from the extra images.

        `weights` (float, [k], not negative) are those of the images in the loss.

        Raises:
            BenchError: the images do not fill one batch, or a batch cannot be shared out equally.
        """
        self._index, self._weights = index, weights
        count = self.own if index is None else len(index)
        if count < self._batch_size and len(self.images):
            raise BenchError(f"only {count} images are left to train on, too few for one batch of {self._batch_size}")
        rest = count % self._batch_size
        for size in (self._batch_size, rest if self._keep_last else 0):
            if size % self.group.size:
                raise BenchError(f"a batch of {size} images cannot be cut into {self.group.size} equal parts")
        self.used = count - (0 if self._keep_last else rest)
        """The number of images of an epoch, over all processes."""

    def held_out(self) -> Iterator[Batch]:
        """Yield the held-out images in batches, in a fixed order and as they are, all of them in every process.

        `index` is then the place among these images.
        """
        if self._held_out is None:
            return
        labels = self._held_out.labels
        index = torch.split(torch.arange(len(labels), device=labels.device), self._batch_size)
        for places, pixels in zip(index, self._held_out.read(index), strict=True):
            yield Batch(to_float(pixels), labels[places], places)

    def __len__(self) -> int:
        return -(-self.used // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch of the run's randomness."""
        labels, whole = self.images.labels, self._places()
        batches = [self.group.shard(index) for index, _ in whole]
        for (_, weights), index, pixels in zip(whole, batches, self.images.read(batches), strict=True):
            random = self._random("augmentation")
            images, own, soft = to_float(augment(pixels, self._steps, random, self.group)), labels[index], None
            if self._smoothing:
                spread = self._smoothing * (index >= self.own)[:, None]
                soft = F.one_hot(own, self._classes) * (1 - spread) + spread / self._classes
            if self._mix:
                images, own, soft = mix(self._mix, images, own, self._classes, random, self.group, soft)
            yield Batch(images, own, index, soft, None if weights is None else self.group.shard(weights))

    def _places(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the places and the weights of every whole batch of the epoch; the extra images come last in it."""
        random, extra = self._random("order"), self._per_batch
        count = self.own if self._index is None else len(self._index)
        order = torch.randperm(count, generator=random, device=self.images.labels.device)
        whole = []
        for places in torch.split(order[: self.used - extra * len(self)], self._batch_size - extra):
            index = places if self._index is None else self._index[places]
            weights = None if self._weights is None else self._weights[places]
            if weights is not None:
                weights = weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
            if extra:
                further = torch.randint(self.own, len(self.images), (extra,), generator=random, device=index.device)
                index = torch.cat((index, further))
                weights = None if weights is None else torch.cat((weights, weights.new_ones(extra)))
            whole.append((index, weights))
        return whole
