"""Colour operations on a batch, each image by its own factor, with the results of torchvision's operations.

A factor of 1 leaves an image as it is, 0 gives the degenerate image: black, grey of its mean, greyscale, or blurred;
above 1 the difference grows. Nothing waits for the device.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d

GREY = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in ITU-R BT.601, as torchvision rounds them."""


class Enhancement(Protocol):
    """Takes images (uint8, [n, channels, height, width]) and factors (float32, [n], not negative)."""

    def __call__(self, pixels: Tensor, factors: Tensor) -> Tensor: ...


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend with black."""
    return _clamped(pixels * factors[:, None, None, None])


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean of the greyscale image."""
    return _blended(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True), factors)


def saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend with the greyscale image; PIL calls this colour."""
    return _blended(pixels, _grey(pixels), factors) if pixels.shape[1] == 3 else pixels


def sharpness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend with the image that is blurred by a 3x3 kernel, except at the border."""
    channels = pixels.shape[1]
    if min(pixels.shape[2:]) < 3:
        return pixels
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, dtype=torch.float32, device=pixels.device)
    kernel[:, :, 1, 1] = 5 / 13
    images = pixels.float()
    inner = images[:, :, 1:-1, 1:-1]
    blurred = conv2d(images, kernel, groups=channels).round_()
    inner.addcmul_(blurred - inner, 1 - factors[:, None, None, None])
    return _clamped(images)


def autocontrast(pixels: Tensor) -> Tensor:
    """Stretch every channel to the range 0 to 255; one of a single value stays."""
    low, high = (bound(pixels, (2, 3), keepdim=True).float() for bound in (torch.amin, torch.amax))
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return _clamped((pixels - torch.where(flat, 0.0, low)) / scale)


def equalize(pixels: Tensor) -> Tensor:
    """Flatten the histogram of every channel, as PIL does."""
    from torchvision.transforms.v2 import functional  # imported by those who need it alone

    equalized: Tensor = functional.equalize(pixels)
    return equalized


ENHANCEMENTS: dict[str, Enhancement] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "sharpness": sharpness,
}
"""Operations with a factor for each image, by name; images are uint8, [n, channels, height, width]."""

TONES = {"autocontrast": autocontrast, "equalize": equalize}
"""Operations without a factor, by name; images are uint8, [n, channels, height, width]."""


def _grey(pixels: Tensor) -> Tensor:
    """Return the greyscale image, whole numbers in float32: [n, 1, height, width]."""
    if pixels.shape[1] != 3:
        return pixels.float()
    red, green, blue = pixels.unbind(1)
    grey: Tensor = red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).floor_()
    return grey[:, None]


def _blended(pixels: Tensor, degenerate: Tensor, factors: Tensor) -> Tensor:
    weight = factors[:, None, None, None]
    return _clamped(torch.addcmul(pixels * weight, degenerate, 1 - weight))


def _clamped(images: Tensor) -> Tensor:
    return images.clamp_(0, 255).to(torch.uint8)
