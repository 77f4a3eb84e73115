"""Readers of images by position: from arrays in memory or on disk, and from image files that are decoded on demand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.utils.progress import ProgressCallback, no_progress

Pixels = NDArray[np.uint8]
T = TypeVar("T")


class Reader(Protocol):
    """Images by position, all of one shape."""

    def __len__(self) -> int:
        """Return the number of positions."""

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = ...) -> Pixels:
        """Return the images at `index` ([k]) as uint8, [k, channels, height, width].

        Raises:
            BenchError: an image cannot be read; its path is named.
        """


@dataclass(frozen=True)
class ArrayReader:
    """Images in one array, uint8, [n, channels, height, width], which may be mapped from a file."""

    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Return copies of the images at `index`."""
        pixels: Pixels = np.ascontiguousarray(self.pixels[index])
        progress(len(index), len(index))
        return pixels


@dataclass(frozen=True)
class FileReader:
    """Image files of any format that Pillow reads.

    `shape` is (channels, height, width). Images must have that size, unless `shorter_side` (in pixels) is given: each
    image is then scaled to that shorter side (bilinear, antialiased) and cropped at the centre. `formats` are Pillow's
    names of the allowed formats, independent of the files' names; default: all of them.
    """

    paths: Sequence[Path]
    shape: tuple[int, int, int]
    shorter_side: int | None = None
    formats: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Decode the images at `index`."""

        def decoded(position: int) -> Pixels:
            path = self.paths[position]
            return decode(path, f"image {path}", self.shape, self.shorter_side, self.formats)

        return decode_each(decoded, index.tolist(), self.shape, progress)


@dataclass(frozen=True)
class AveragingReader:
    """The square images of another reader, reduced to `side` pixels: each pixel is the mean of a square of pixels.

    Computed in integers, halves rounded up, so the result is the same on every machine.
    """

    reader: Reader
    side: int

    def __len__(self) -> int:
        return len(self.reader)

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Return the reduced images at `index`."""
        pixels = self.reader.load(index, progress)
        n, channels, height, _ = pixels.shape
        factor = height // self.side
        squares = pixels.reshape(n, channels, self.side, factor, self.side, factor)
        sums = squares.sum(axis=(3, 5), dtype=np.uint32)
        means: Pixels = ((2 * sums + factor**2) // (2 * factor**2)).astype(np.uint8)
        return means


def decode_each(
    read: Callable[[T], Pixels],
    images: Sequence[T],
    shape: tuple[int, int, int],
    progress: ProgressCallback = no_progress,
) -> Pixels:
    """Return the decoded images, [n, *shape]; 32 or more in threads, because decoding releases the interpreter lock."""
    pixels = np.empty((len(images), *shape), np.uint8)
    if len(images) < 32:
        for place, image in enumerate(images):
            pixels[place] = read(image)
        return pixels
    with ThreadPoolExecutor(_workers()) as pool:
        for place, decoded in enumerate(pool.map(read, images)):
            pixels[place] = decoded
            progress(place + 1, len(images))
    return pixels


def decode(
    source: Path | BytesIO,
    name: str,
    shape: tuple[int, int, int],
    shorter_side: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Pixels:
    """Return the image in a file or in bytes, uint8, [channels, height, width]; arguments as those of `FileReader`.

    Raises:
        BenchError: it cannot be read, or has another shape; the sentence begins with `name`.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(source, formats=formats) as opened:
            if opened.mode[0] in "IF":  # Pillow would clip values above 255
                raise ValueError(f"its pixels have more than 8 bits (mode {opened.mode})")
            image = opened.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise BenchError(f"{name}: no such file") from None
    except UnidentifiedImageError as error:
        kind = f"{' or '.join(formats)} image" if formats else "format"
        raise BenchError(f"{name} cannot be read: cannot identify the {kind}") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        assert not ImageFile.LOAD_TRUNCATED_IMAGES  # else a truncated image would be accepted
        raise BenchError(f"{name} cannot be read: {error}") from error
    if shorter_side is not None:
        image = _centre_crop(image, shorter_side, height, width)
    if image.size != (width, height):
        raise BenchError(f"{name} has {image.width}x{image.height} pixels (width x height), not {width}x{height}")
    pixels: Pixels = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
    if len(pixels) != channels:
        raise BenchError(f"{name} has {len(pixels)} channels; the dataset states {channels}")
    return pixels


def _centre_crop(image: Any, shorter_side: int, height: int, width: int) -> Any:
    """Scale a Pillow image to a shorter side of `shorter_side` pixels, and crop its centre."""
    from PIL import Image

    scale = shorter_side / min(image.size)
    size = tuple(max(shorter_side, int(side * scale)) for side in image.size)
    scaled = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
    return scaled.crop((left, top, left + width, top + height))


def _workers() -> int:
    """Return the number of decoding threads: the thread limit of this process, which is its share of the cores."""
    first, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")  # OpenMP's list is one number for each level
    threads = first.strip()
    return int(threads) if re.fullmatch("0*[1-9][0-9]{0,3}", threads) else os.cpu_count() or 1
