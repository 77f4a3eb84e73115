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

    `images`: float32, [n, channels, height, width], in [0, 1], channels_last. `labels`: int64, [n]. `index`: int64, [n],
    each image's place in the training set, for methods that remember something of every sample.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 [0, 255] to float32 [0, 1], channels_last."""
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def augment(
    pixels: Tensor, index: Tensor, steps: Sequence[Augmentation], random: torch.Generator | None
) -> Tensor:
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
    rows = torch.arange(height, device=device).expand(n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    inside: Tensor | None = None
    for step in steps:
        if isinstance(step, Crop):
            offset = torch.randint(-step.padding, step.padding + 1, (2, n, 1), generator=random, device=device)
            rows, columns = rows + offset[0], columns + offset[1]
            if step.mode == "zero":
                within = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
                inside = within if inside is None else inside & within
                rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
            else:
                rows, columns = _reflect(rows, height), _reflect(columns, width)
        else:
            flipped = torch.rand((n, 1), generator=random, device=device) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
            inside = None if inside is None else torch.where(flipped[:, :, None], inside.flip(2), inside)
    channels = torch.arange(pixels.shape[1], device=device)[None, :, None, None]
    cut = pixels[index[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]
    return cut if inside is None else cut * inside[:, None]


def _within(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside 0..size-1 back inside, the border pixel not repeated, as padding mode `reflect` does."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


class TrainingBatches:
    """The training set of one run, cut into augmented batches anew every epoch.

    The last batch of an epoch is dropped where it would be smaller than the others: batch statistics of a few images
    are no statistics, and equal shapes are what a captured step needs. The order is new each epoch, so every image is
    trained on equally often on average.
    """

    def __init__(self, images: ImageSet, batch_size: int, augmentation: Sequence[Augmentation], random: Randomness) -> None:
        self.images, self._batch_size, self._augmentation, self._random = images, batch_size, augmentation, random

    def __len__(self) -> int:
        return len(self.images) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch of the run's randomness."""
        pixels, labels = self.images.pixels, self.images.labels
        order = torch.randperm(len(self.images), generator=self._random("order"), device=pixels.device)
        for index in order[: len(self) * self._batch_size].split(self._batch_size):
            cut = augment(pixels, index, self._augmentation, self._random("augmentation"))
            yield Batch(to_float(cut), labels[index], index)
