"""Batches: cut, augmented and scaled on the device, all images of one at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.config.protocol import Augmentation, Crop, Flip, Rotate
from bench.data.dataset import Images
from bench.errors import BenchError
from bench.utils.distributed import SINGLE_PROCESS, Group
from bench.utils.rng import RngStreams


@dataclass(frozen=True)
class Batch:
    """One mini-batch, or the part of it that this process trains on.

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


def augment(
    pixels: Tensor, steps: Sequence[Augmentation], random: torch.Generator, group: Group = SINGLE_PROCESS
) -> Tensor:
    """Return the images augmented, all at once.

    Every step only says which pixel of the step before each pixel shows, so the steps are composed first and the
    images are gathered once.

    Args:
        pixels: uint8, [n, channels, height, width].
        steps: augmentations in order; each image draws its own offset, flip and angle.
        random: generator on the same device.
        group: the processes that have the other parts of the batch.

    Returns:
        uint8, of the same shape.
    """
    if not steps:
        return pixels
    n, _, height, width = pixels.shape
    places = torch.arange(height * width, device=pixels.device).expand(n, -1)  # of each pixel's source
    outside = torch.zeros_like(places, dtype=torch.bool)  # padding, which is zero
    for step in steps:
        rows, columns, fallen_out = _MOVES[type(step)](step, group, n, height, width, random)
        moved = (rows * width + columns).reshape(n, -1)
        places, outside = places.gather(1, moved), outside.gather(1, moved)
        if fallen_out is not None:
            outside |= fallen_out.reshape(n, -1)
    cut = pixels.flatten(2).gather(2, places[:, None].expand(-1, pixels.shape[1], -1))
    return cut.masked_fill_(outside[:, None], 0).view_as(pixels)


Move = tuple[Tensor, Tensor, Tensor | None]
"""Row and column that each pixel shows, int64, and whether it lies outside; broadcast, [n, height, width]."""


def _crop(step: Crop, group: Group, n: int, height: int, width: int, random: torch.Generator) -> Move:
    """Move the window by offsets of at most the padding.

    `reflect` mirrors without repeating the border pixel, as torch's padding of that name does.
    """
    device = random.device
    shape = (2, group.size * n, 1)
    drawn = torch.randint(-step.padding, step.padding + 1, shape, generator=random, device=device)
    offset = group.cut(drawn, dim=1)
    rows = (torch.arange(height, device=device) + offset[0])[:, :, None]
    columns = (torch.arange(width, device=device) + offset[1])[:, None, :]
    if step.mode == "reflect":
        return _mirrored(rows, height), _mirrored(columns, width), None
    return rows.clamp(0, height - 1), columns.clamp(0, width - 1), _beyond(rows, height) | _beyond(columns, width)


def _flip(_step: Flip, group: Group, n: int, height: int, width: int, random: torch.Generator) -> Move:
    device = random.device
    flipped = group.cut(torch.rand((group.size * n, 1), generator=random, device=device)) < 0.5
    columns = torch.arange(width, device=device)
    rows = torch.arange(height, device=device)[None, :, None]
    return rows, torch.where(flipped, columns.flip(0), columns)[:, None, :], None


def _rotate(step: Rotate, group: Group, n: int, height: int, width: int, random: torch.Generator) -> Move:
    """Turn by the nearest pixel, which is torchvision's default too; a positive angle turns against the clock."""
    device = random.device
    draws = group.cut(torch.rand((group.size * n, 1, 1), generator=random, device=device))
    angle = torch.deg2rad((2 * draws - 1) * step.degrees)
    y = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    columns = (x * angle.cos() - y * angle.sin() + (width - 1) / 2).round().long()
    rows = (x * angle.sin() + y * angle.cos() + (height - 1) / 2).round().long()
    return rows.clamp(0, height - 1), columns.clamp(0, width - 1), _beyond(rows, height) | _beyond(columns, width)


_MOVES: dict[type, Callable[[Any, Group, int, int, int, torch.Generator], Move]] = {
    Crop: _crop,
    Flip: _flip,
    Rotate: _rotate,
}


def _mirrored(position: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _beyond(position: Tensor, size: int) -> Tensor:
    return (position < 0) | (position >= size)


class TrainingBatches:
    """The training set of one run, cut into augmented batches anew every epoch.

    The last batch of an epoch is dropped where it would be smaller than the others: batch statistics of a few images
    are no statistics, and equal shapes are what a captured step needs. The order is new each epoch, so every image is
    trained on equally often on average. Of every batch, this process gets its part among those of `group`.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        augmentation: Sequence[Augmentation],
        random: RngStreams,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        """Raises: BenchError, if the images do not fill one batch, or it cannot be shared out equally."""
        if 0 < len(images) < batch_size:
            raise BenchError(f"only {len(images)} images are left to train on, too few for one batch of {batch_size}")
        if batch_size % group.size:
            raise BenchError(f"a batch of {batch_size} images cannot be cut into {group.size} equal parts")
        self.images, self.group = images, group
        self._batch_size, self._augmentation, self._random = batch_size, augmentation, random

    def __len__(self) -> int:
        return len(self.images) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch of the run's randomness."""
        labels = self.images.labels
        order = torch.randperm(len(labels), generator=self._random("order"), device=labels.device)
        whole = torch.split(order[: len(self) * self._batch_size], self._batch_size)
        batches = [self.group.cut(index) for index in whole]
        for index, pixels in zip(batches, self.images.read(batches), strict=True):
            cut = augment(pixels, self._augmentation, self._random("augmentation"), self.group)
            yield Batch(to_float(cut), labels[index], index)
