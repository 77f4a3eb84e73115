"""Where pixels come from, by position: arrays in memory or on disk, and image files decoded when asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

Pixels = NDArray[np.uint8]
Tick = Callable[[int, int], None]
"""Called with (done, of) as a long job goes on."""


class Source(Protocol):
    """Images by position, all of one shape."""

    def __len__(self) -> int:
        """Return how many positions there are."""

    def load(self, index: NDArray[np.int64], tick: Tick = ...) -> Pixels:
        """Return the images at `index` ([k]) as uint8, [k, channels, height, width].

        Raises:
            BenchError: an image cannot be read; its path is named.
        """


@dataclass(frozen=True)
class ArraySource:
    """Images that stand in one array, uint8, [n, channels, height, width], which may be mapped from a file."""

    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: NDArray[np.int64], tick: Tick = lambda _done, _of: None) -> Pixels:
        """Return copies of the images at `index`."""
        found: Pixels = np.ascontiguousarray(self.pixels[index])
        tick(len(index), len(index))
        return found


@dataclass(frozen=True)
class FileSource:
    """Image files of any format that Pillow reads.

    `shape` is (channels, height, width). Images must have that size, unless `shorter_side` is given: then each is
    scaled (bilinear, antialiased) until its shorter side has so many pixels, and the middle is cut out. `formats` are
    Pillow's names of the formats allowed, whatever the files are called; default: all of them.
    """

    paths: Sequence[Path]
    shape: tuple[int, int, int]
    shorter_side: int | None = None
    formats: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: NDArray[np.int64], tick: Tick = lambda _done, _of: None) -> Pixels:
        """Decode the images at `index`; many of them in threads, as decoding releases the interpreter."""
        found = np.empty((len(index), *self.shape), np.uint8)
        if len(index) < 32:
            for place, position in enumerate(index):
                found[place] = self._decode(self.paths[position])
            return found
        with ThreadPoolExecutor(_workers()) as pool:
            for place, image in enumerate(pool.map(lambda position: self._decode(self.paths[position]), index)):
                found[place] = image
                tick(place + 1, len(index))
        return found

    def _decode(self, path: Path) -> Pixels:
        from PIL import Image, ImageFile

        channels, height, width = self.shape
        try:
            with Image.open(path, formats=self.formats) as opened:
                if opened.mode[0] in "IF":  # Pillow would cut off what is above 255
                    raise ValueError(f"its pixels have more than 8 bits (mode {opened.mode})")
                image = opened.convert("L" if channels == 1 else "RGB")
        except FileNotFoundError:
            raise BenchError(f"image {path}: no such file") from None
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            assert not ImageFile.LOAD_TRUNCATED_IMAGES  # else half an image would pass for a whole one
            raise BenchError(f"image {path} cannot be read: {error}") from error
        if self.shorter_side is not None:
            image = _middle(image, self.shorter_side, height, width)
        if image.size != (width, height):
            found = f"{image.width}x{image.height}"
            raise BenchError(f"image {path} is {found} pixels large (width x height), not {width}x{height}")
        pixels: Pixels = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
        if len(pixels) != channels:
            raise BenchError(f"image {path} has {len(pixels)} channels; the dataset states {channels}")
        return pixels


@dataclass(frozen=True)
class Averaged:
    """Another source's square images, averaged down to `side` pixels: each pixel is the mean of a square of them.

    Computed in whole numbers, halves rounded up, so that it is the same everywhere.
    """

    source: Source
    side: int

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: NDArray[np.int64], tick: Tick = lambda _done, _of: None) -> Pixels:
        """Return the averaged images at `index`."""
        pixels = self.source.load(index, tick)
        n, channels, height, _ = pixels.shape
        factor = height // self.side
        squares = pixels.reshape(n, channels, self.side, factor, self.side, factor)
        sums = squares.sum(axis=(3, 5), dtype=np.uint32)
        means: Pixels = ((2 * sums + factor**2) // (2 * factor**2)).astype(np.uint8)
        return means


def _middle(image: Any, shorter_side: int, height: int, width: int) -> Any:
    """Scale a Pillow image until its shorter side is `shorter_side`, and cut out the middle."""
    from PIL import Image

    scale = shorter_side / min(image.size)
    size = tuple(max(shorter_side, int(side * scale)) for side in image.size)
    scaled = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
    return scaled.crop((left, top, left + width, top + height))


def _workers() -> int:
    """Return how many threads decode: as many as the thread limit of this process, which is its share of the cores."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or 0) or (os.cpu_count() or 1))
