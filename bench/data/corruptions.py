"""Natural corruptions of images, computed with the severities of CIFAR-10-C, for 32x32 pixels.

Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations, 2019. The
severities are those of the authors' script `make_cifar_c.py`, which made CIFAR-10-C; the random numbers differ. It
needs ImageMagick, OpenCV and scikit-image; this needs NumPy, SciPy and Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bench.data.readers import Pixels
from bench.utils.rng import derive_seed

Floats: TypeAlias = NDArray[np.float64]
"""Images in [0, 1], [n, channels, height, width]."""

Corrupt = Callable[[Floats, Any, np.random.Generator], Floats]
"""From images, the parameter of a severity and random numbers to images, not yet clipped."""

CHUNK = 1000
"""Images corrupted at a time, in double precision."""

SEED = 0


def corrupted(pixels: Pixels, name: str, severity: int) -> Pixels:
    """Return corrupted copies of images, uint8, [n, channels, height, width] with 1 or 3 channels.

    The random numbers depend on `name` and `severity` alone. Values are cut off to whole numbers, as in CIFAR-10-C.

    Args:
        pixels: the images.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
    """
    corrupt, severities = CORRUPTIONS[name]
    random = np.random.default_rng(derive_seed(SEED, f"corruption/{name}", severity))
    result = np.empty_like(pixels)
    for start in range(0, len(pixels), CHUNK):
        x = pixels[start : start + CHUNK] / 255.0
        # Rounding errors must not cut a value off to the one below.
        result[start : start + CHUNK] = corrupt(x, severities[severity - 1], random).clip(0, 1) * 255 + 1e-9
    return result


def _gaussian_noise(x: Floats, scale: float, random: np.random.Generator) -> Floats:
    return x + random.normal(scale=scale, size=x.shape)


def _shot_noise(x: Floats, photons: float, random: np.random.Generator) -> Floats:
    return random.poisson(x * photons) / photons


def _impulse_noise(x: Floats, share: float, random: np.random.Generator) -> Floats:
    """Set a share of the values to 0 or 1, with equal probability."""
    return np.where(random.random(x.shape) < share, random.integers(2, size=x.shape), x)


def _gaussian_blur(x: Floats, sigma: float, _random: np.random.Generator) -> Floats:
    blurred: Floats = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest")
    return blurred


def _defocus_blur(x: Floats, radius_and_sigma: tuple[float, float], _random: np.random.Generator) -> Floats:
    """Correlate with a disk, which a Gaussian of three pixels has smoothed."""
    radius, sigma = radius_and_sigma
    away = np.abs(np.arange(-4, 5))  # the largest radius is 1.5
    disk = (away**2 + away[:, None] ** 2 <= radius**2).astype(float)
    smooth = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk / disk.sum(), smooth / smooth.sum(), axis, mode="constant")
    blurred: Floats = ndimage.correlate(x, disk[None, None], mode="mirror")
    return blurred


def _motion_blur(x: Floats, radius_and_sigma: tuple[int, float], random: np.random.Generator) -> Floats:
    """Average pixels along a line from each pixel, in a direction of up to 45 degrees, as ImageMagick does.

    Source: `MotionBlurImage` of ImageMagick: 2 * radius + 1 pixels with the weights of half a Gaussian, at whole
    offsets, with the border repeated.
    """
    radius, sigma = radius_and_sigma
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    angle = np.radians(random.uniform(-45, 45, size=len(x)))
    n, channels, height, width = (np.arange(size) for size in x.shape)
    blurred = np.zeros_like(x)
    for away, weight in enumerate(weights / weights.sum()):
        down, right = (np.ceil(away * part - 0.5).astype(int)[:, None] for part in (np.sin(angle), np.cos(angle)))
        rows, columns = (height + down).clip(0, height[-1]), (width + right).clip(0, width[-1])
        blurred += weight * x[n[:, None, None, None], channels[:, None, None], rows[:, None, :, None],
                              columns[:, None, None, :]]  # fmt: skip
    return blurred


def _brightness(x: Floats, more: float, _random: np.random.Generator) -> Floats:
    """Raise the value of the HSV colour, its largest channel, and keep hue and saturation; black becomes grey."""
    value = x.max(1, keepdims=True)
    brighter = (value + more).clip(max=1)
    raised: Floats = np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)
    return raised


def _contrast(x: Floats, factor: float, _random: np.random.Generator) -> Floats:
    mean = x.mean((2, 3), keepdims=True)
    changed: Floats = (x - mean) * factor + mean
    return changed


def _pixelate(x: Floats, factor: float, _random: np.random.Generator) -> Floats:
    def change(image: Any) -> Any:
        from PIL.Image import Resampling

        smaller = image.resize(tuple(max(1, int(side * factor)) for side in image.size), Resampling.BOX)
        return smaller.resize(image.size, Resampling.BOX)

    return _by_pillow(x, change)


def _jpeg_compression(x: Floats, quality: int, _random: np.random.Generator) -> Floats:
    def change(image: Any) -> Any:
        from PIL import Image

        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x, change)


def _by_pillow(x: Floats, change: Callable[[Any], Any]) -> Floats:
    """Change each image as one of Pillow's."""
    from PIL import Image

    images = np.rint(x * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    shape = images.shape[1:] if images.shape[3] == 3 else images.shape[1:3]
    changed = np.stack([np.asarray(change(Image.fromarray(image.reshape(shape)))) for image in images])
    return changed.reshape(images.shape).transpose(0, 3, 1, 2) / 255.0


CORRUPTIONS: Mapping[str, tuple[Corrupt, tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
}
"""The corruptions with the parameters of severities 1 to 5."""
