"""IDBH: augmentation that is diverse and hard enough to prevent robust overfitting by itself.

Images are cropped and shifted, then one of eight changes of colour or shape is drawn, then a rectangle is erased (Li,
Spratling, Data Augmentation Alone Can Improve Adversarial Training, ICLR 2023). Training is PGD-AT. The protocol's own
augmentation comes before.

Differs from the released code: there, PGD has no random start, by a mistake in the order of arguments; here the start
is the protocol's. There, rotations are by whole degrees, and on SVHN, shear and rotation reach further and changes of
colour differ in probability.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import (
    ENHANCEMENTS,
    TONES,
    Batch,
    CanonicalValue,
    Method,
    MethodInfo,
    MethodParams,
    RandomErasing,
    augment,
    hyperparameter,
    inside,
)

FACTORS = {"saturation": (0.1, 1.9), "brightness": (0.5, 1.9), "contrast": (0.5, 1.9), "sharpness": (0.1, 1.9)}
SHEAR, TURN = (0.05, 0.15), (1.0, 10.0)  # radians, degrees


def released(cifar10: float, *, svhn: float) -> dict[str, CanonicalValue]:
    """Return the values of the released code, which has variants for CIFAR-10 (the weak one here) and SVHN."""
    return {"cifar10": CanonicalValue(cifar10, "code"), "svhn": CanonicalValue(svhn, "code")}


class Params(MethodParams):
    """How hard the augmentation is; on other data as in the released weak variant for CIFAR-10."""

    shift: float = hyperparameter(
        10 / 32, unit="share of the side", provenance="declared", ge=0, lt=1,
        note="rows and columns cropped away, at most",
        by_dataset={**released(10 / 32, svhn=8 / 32), "digits": CanonicalValue(1 / 8, "declared")},
    )  # fmt: skip
    shapes: float = hyperparameter(
        0.25, unit="probability", provenance="declared", ge=0, le=1,
        note="of shear or rotation, equally; the six changes of colour share the rest",
        by_dataset=released(0.25, svhn=0.6),
    )  # fmt: skip
    erasing: float = hyperparameter(
        0.5, unit="probability", provenance="declared", gt=0, le=1, note="of erasing; 1 in the strong variant",
        by_dataset=released(0.5, svhn=1.0),
    )  # fmt: skip
    area: float = hyperparameter(
        0.33, unit="share of the image", provenance="declared", ge=0.02, lt=1, note="largest area erased",
        by_dataset=released(0.33, svhn=0.5),
    )  # fmt: skip


class IDBH(Method[Params]):
    """PGD-AT on CropShift, one change of colour or shape, and random erasing."""

    info = MethodInfo(
        name="idbh",
        title="IDBH",
        description="PGD-AT with diverse and hard augmentation",
        paper="Li, Spratling, ICLR 2023",
        year=2023,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True
    captured_transform = False  # `equalize` of torchvision changes shapes in place, which no recording repeats

    def transform(self, batch: Batch) -> Batch:
        random, group = self.context.random("idbh"), self.context.group
        shape = (9, group.size * len(batch))
        draws = torch.rand(shape, generator=random, device=batch.images.device, dtype=torch.float32)
        draws = group.shard(draws, dim=1)
        pixels = batch.images.mul(255).round().to(torch.uint8)
        pixels = self.colour_shape(crop_shift(pixels, self.params.shift, draws[:6]), draws[6:])
        erasing = RandomErasing(probability=self.params.erasing, area=(0.02, self.params.area))
        images = augment(pixels, [erasing], random, group).to(batch.images.dtype).div(255)
        return replace(batch, images=images.contiguous(memory_format=torch.channels_last))

    def colour_shape(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Change every image in one of eight ways; `draws` [3, n] chooses the way, its strength and its sign."""
        chosen, strength, sign = draws
        shapes, colours = self.params.shapes, 1 - self.params.shapes
        changed = pixels
        for place, (name, (low, high)) in enumerate(FACTORS.items()):
            takes = (chosen >= colours * place / 6) & (chosen < colours * (place + 1) / 6)
            other = ENHANCEMENTS[name](pixels, low + (high - low) * strength)
            changed = torch.where(takes[:, None, None, None], other, changed)
        for place, tone in enumerate(TONES.values(), len(FACTORS)):
            takes = (chosen >= colours * place / 6) & (chosen < colours * (place + 1) / 6)
            changed = torch.where(takes[:, None, None, None], tone(pixels), changed)
        shear, turn = (low + (high - low) * strength for low, high in (SHEAR, TURN))
        direction = torch.where(sign < 0.5, -1.0, 1.0).to(draws.dtype)
        slope, angle = direction * shear.tan(), direction * turn.deg2rad()
        middle = colours + shapes / 2
        sheared, turned = (chosen >= colours) & (chosen < middle), chosen >= middle
        along = (sign * 2 % 1) < 0.5  # rows or columns
        matrix = torch.eye(2, 3, dtype=draws.dtype, device=pixels.device).repeat(len(pixels), 1, 1)
        matrix[:, 0, 0] = matrix[:, 1, 1] = torch.where(turned, angle.cos(), 1.0)
        matrix[:, 0, 1] = torch.where(turned, -angle.sin(), torch.where(sheared & along, slope, 0.0))
        matrix[:, 1, 0] = torch.where(turned, angle.sin(), torch.where(sheared & ~along, slope, 0.0))
        grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
        return F.grid_sample(changed.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def crop_shift(pixels: Tensor, shift: float, draws: Tensor) -> Tensor:
    """Cut a window out of every image and put it back at another place, on zeros.

    Args:
        pixels: uint8, [n, channels, height, width].
        shift: rows and columns cropped away together, at most, as a share of the height.
        draws: uniform numbers, [6, n]: how many, how many of them columns, where the window is cut and where it lies.
    """
    channels, height, width = pixels.shape[1:]
    cropped = (draws[0] * (round(shift * height) + 1)).long()
    columns = (draws[1] * (cropped + 1)).long()
    edges = [(draw * (lost + 1)).long() for draw, lost in zip(draws[2:], 2 * [cropped - columns, columns], strict=True)]
    top, left, new_top, new_left = edges
    rows = (torch.arange(height, device=pixels.device) + (top - new_top)[:, None]).clamp(0, height - 1)
    places = (torch.arange(width, device=pixels.device) + (left - new_left)[:, None]).clamp(0, width - 1)
    moved = pixels.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    moved = moved.gather(3, places[:, None, None, :].expand(-1, channels, height, -1))
    shown = inside(pixels, new_top, new_left, new_top + height - cropped + columns, new_left + width - columns)
    return moved.masked_fill(~shown, 0)
