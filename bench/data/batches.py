"""Images that live on the device: batches are cut, augmented and scaled there, for the whole batch at once.

Crops and flips only choose which pixel lands where, so one gather from the uint8 images does both, padding included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.dataset import ImageSet
from bench.protocol import Augmentation, Crop
from bench.seeding import Randomness


@dataclass(frozen=True)
class Batch:
    """One mini-batch.

    `images`: float32, [n, channels, height, width], in [0, 1], channels_last. `labels`: int64, [n]. `index`: int64,
    [n], each image's place in the training set, for methods that remember something of every sample.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 [0, 255] to float32 [0, 1], channels_last."""
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, index: Tensor, steps: Sequence[Augmentation], random: torch.Generator | None) -> Tensor:
    """Return the images at `index`, augmented.

    Args:
        pixels: uint8, [all, channels, height, width].
        index: int64, [n], on the same device.
        steps: augmentations in order; each image draws its own crop offset and flip.
        random: generator on the same device; may be None if there are no steps.

    Returns:
        uint8, [n, channels, height, width].
    """
    if not steps:
        return pixels[index]
    n, (height, width), device = len(index), pixels.shape[2:], pixels.device
    rows = torch.arange(height, device=device).expand(n, height)  # which source row each row shows; -1: padding
    columns = torch.arange(width, device=device).expand(n, width)
    for step in steps:
        if isinstance(step, Crop):
            offset = torch.randint(-step.padding, step.padding + 1, (2, n, 1), generator=random, device=device)
            rows, columns = _shift(rows, offset[0], step.mode), _shift(columns, offset[1], step.mode)
        else:
            flipped = torch.rand((n, 1), generator=random, device=device) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
    channels = torch.arange(pixels.shape[1], device=device)[None, :, None, None]
    cut = pixels[index[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]
    if any(isinstance(step, Crop) and step.mode == "zero" for step in steps):
        cut *= ((rows >= 0)[:, :, None] & (columns >= 0)[:, None, :])[:, None]
    return cut


def _shift(source: Tensor, offset: Tensor, mode: str) -> Tensor:
    """Move the window over `source`, [n, size], by `offset`, [n, 1]; what comes in from outside is padding.

    `reflect` mirrors without repeating the border pixel, as torch's padding of that name does.
    """
    size = source.shape[1]
    position = torch.arange(size, device=source.device) + offset
    if mode == "reflect":
        return source.gather(1, (size - 1) - ((size - 1) - position.abs()).abs())
    outside = (position < 0) | (position >= size)
    return source.gather(1, position.clamp(0, size - 1)).masked_fill(outside, -1)


class TrainingBatches:
    """The training set of one run, cut into augmented batches anew every epoch.

    The last batch of an epoch is dropped where it would be smaller than the others: batch statistics of a few images
    are no statistics, and equal shapes are what a captured step needs. The order is new each epoch, so every image is
    trained on equally often on average.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, augmentation: Sequence[Augmentation], random: Randomness
    ) -> None:
        self.images, self._batch_size, self._augmentation, self._random = images, batch_size, augmentation, random

    def __len__(self) -> int:
        return len(self.images) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch of the run's randomness."""
        pixels, labels = self.images.pixels, self.images.labels
        order = torch.randperm(len(self.images), generator=self._random("order"), device=pixels.device)
        for index in torch.split(order[: len(self) * self._batch_size], self._batch_size):
            cut = augment(pixels, index, self._augmentation, self._random("augmentation"))
            yield Batch(to_float(cut), labels[index], index)
