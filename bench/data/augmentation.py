"""The augmentations of a batch of pixels, on its device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bench.config.augmentation import (
    Augmentation,
    Crop,
    Cutout,
    Enhance,
    Flip,
    RandomErasing,
    Rotate,
    Tones,
)
from bench.data.colour import ENHANCEMENTS, TONES
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup


def augment(
    pixels: Tensor, steps: Sequence[Augmentation], random: torch.Generator, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """Return the images augmented, all at once.

    Args:
        pixels: uint8, [n, channels, height, width].
        steps: augmentations in order, without `Mix`; each image draws its own numbers.
        random: generator on the same device.
        group: the processes that have the other parts of the batch.

    Returns:
        uint8, of the same shape.
    """
    for moving, consecutive in groupby(steps, lambda step: type(step) in _MOVES):
        if moving:
            pixels = _moved(pixels, consecutive, random, group)
            continue
        for step in consecutive:
            pixels = _CHANGES[type(step)](step, pixels, random, group)
    return pixels


def _moved(pixels: Tensor, steps: Iterable[Augmentation], random: torch.Generator, group: ProcessGroup) -> Tensor:
    """Crop, flip and rotate.

    Every step only says which pixel of the step before each pixel shows, so the steps are composed first and the
    images are gathered once.
    """
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


def _crop(step: Crop, group: ProcessGroup, n: int, height: int, width: int, random: torch.Generator) -> Move:
    """Move the window by offsets of at most the padding.

    `reflect` mirrors without repeating the border pixel, as torch's padding of that name does.
    """
    device = random.device
    shape = (2, group.size * n, 1)
    drawn = torch.randint(-step.padding, step.padding + 1, shape, generator=random, device=device)
    offset = group.shard(drawn, dim=1)
    rows = (torch.arange(height, device=device) + offset[0])[:, :, None]
    columns = (torch.arange(width, device=device) + offset[1])[:, None, :]
    if step.mode == "reflect":
        return _mirrored(rows, height), _mirrored(columns, width), None
    return rows.clamp(0, height - 1), columns.clamp(0, width - 1), _beyond(rows, height) | _beyond(columns, width)


def _flip(_step: Flip, group: ProcessGroup, n: int, height: int, width: int, random: torch.Generator) -> Move:
    device = random.device
    flipped = group.shard(torch.rand((group.size * n, 1), generator=random, device=device)) < 0.5
    columns = torch.arange(width, device=device)
    rows = torch.arange(height, device=device)[None, :, None]
    return rows, torch.where(flipped, columns.flip(0), columns)[:, None, :], None


def _rotate(step: Rotate, group: ProcessGroup, n: int, height: int, width: int, random: torch.Generator) -> Move:
    """Turn by the nearest pixel, which is torchvision's default too; a positive angle turns against the clock."""
    device = random.device
    draws = group.shard(torch.rand((group.size * n, 1, 1), generator=random, device=device))
    angle = torch.deg2rad((2 * draws - 1) * step.degrees)
    y = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    columns = (x * angle.cos() - y * angle.sin() + (width - 1) / 2).round().long()
    rows = (x * angle.sin() + y * angle.cos() + (height - 1) / 2).round().long()
    return rows.clamp(0, height - 1), columns.clamp(0, width - 1), _beyond(rows, height) | _beyond(columns, width)


_MOVES: dict[type, Callable[[Any, ProcessGroup, int, int, int, torch.Generator], Move]] = {
    Crop: _crop,
    Flip: _flip,
    Rotate: _rotate,
}


def _mirrored(position: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _beyond(position: Tensor, size: int) -> Tensor:
    return (position < 0) | (position >= size)


# --- changes of the pixels themselves --------------------------------------------------------------------------------


TRIES = 10
"""Rectangles that an image draws until one fits into it, as in torchvision."""


def _uniform(pixels: Tensor, random: torch.Generator, group: ProcessGroup, count: int = 1) -> tuple[Tensor, ...]:
    """Return `count` tensors of uniform numbers from 0 to 1, [n] each, of the images of this process."""
    draws = torch.rand((count, group.size * len(pixels)), generator=random, device=random.device)
    return group.shard(draws, dim=1).unbind()


def _between(low: float, high: float, draws: Tensor) -> Tensor:
    return low + (high - low) * draws


def _cutout(step: Cutout, pixels: Tensor, random: torch.Generator, group: ProcessGroup) -> Tensor:
    down, right = _uniform(pixels, random, group, 2)
    top, left = ((u * side).long() - step.size // 2 for u, side in ((down, pixels.shape[2]), (right, pixels.shape[3])))
    return pixels.masked_fill(inside(pixels, top, left, top + step.size, left + step.size), 0)


def _erase(step: RandomErasing, pixels: Tensor, random: torch.Generator, group: ProcessGroup) -> Tensor:
    height, width = pixels.shape[2:]
    chosen, down, right, *draws = _uniform(pixels, random, group, 3 + 2 * TRIES)
    areas, ratios = torch.stack(draws).view(2, TRIES, -1)
    areas = height * width * _between(*step.area, areas)
    ratios = _between(math.log(step.ratio[0]), math.log(step.ratio[1]), ratios).exp()
    rows, columns = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (rows < height) & (columns < width)
    first = fits.int().argmax(0, keepdim=True)
    rows, columns = rows.gather(0, first)[0], columns.gather(0, first)[0]
    top, left = (down * (height - rows + 1)).long(), (right * (width - columns + 1)).long()
    erased = inside(pixels, top, left, top + rows, left + columns)
    return pixels.masked_fill(erased & ((chosen < step.probability) & fits.any(0))[:, None, None, None], 0)


def _enhance(step: Enhance, pixels: Tensor, random: torch.Generator, group: ProcessGroup) -> Tensor:
    chosen, draws = _uniform(pixels, random, group, 2)
    changed = ENHANCEMENTS[step.name](pixels, _between(*step.factors, draws))
    return torch.where((chosen < step.probability)[:, None, None, None], changed, pixels)


def _tones(step: Tones, pixels: Tensor, random: torch.Generator, group: ProcessGroup) -> Tensor:
    (chosen,) = _uniform(pixels, random, group)
    return torch.where((chosen < step.probability)[:, None, None, None], TONES[step.name](pixels), pixels)


_CHANGES: dict[type, Callable[[Any, Tensor, torch.Generator, ProcessGroup], Tensor]] = {
    Cutout: _cutout,
    RandomErasing: _erase,
    Enhance: _enhance,
    Tones: _tones,
}


def inside(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Return whether each pixel is in its image's rectangle, [n, 1, height, width]; `bottom` and `right` are outside.

    Args:
        images: [n, channels, height, width].
        top, left, bottom, right: int64, [n], which may lie outside the image.
    """
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    above, before, below, behind = (edge[:, None, None, None] for edge in (top, left, bottom, right))
    return (rows >= above) & (rows < below) & (columns >= before) & (columns < behind)
