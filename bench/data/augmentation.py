"""Random crops, flips and rotations of a batch, on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.config.protocol import Augmentation, Crop, Flip, Rotate
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup


def augment(
    pixels: Tensor, steps: Sequence[Augmentation], random: torch.Generator, group: ProcessGroup = SINGLE_PROCESS
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
