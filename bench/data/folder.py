"""Folders of images, `<folder>/<class>/<file>`: what is in them, in an order that never varies, and its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.utils.files import file_sha256

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Names that end so, in small letters or capitals, are images."""


def classes_in(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted; hidden ones are none.

    Raises:
        BenchError: the folder cannot be read.
    """
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """Return the image files in `folder`, sorted by name; hidden files are none.

    A link that leads nowhere counts, so that it is an error later instead of an image less.

    Raises:
        BenchError: the folder cannot be read.
    """
    return [
        folder / entry.name
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.is_dir()  # noqa: PTH122 (ten times faster)
    ]


def labelled(folder: Path, labels: Mapping[str, int]) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the images in the class folders named, one folder after the other, and the label of each ([n]).

    Raises:
        BenchError: a class has no folder or no image; it is named.
    """
    images_of = {name: images_in(folder / name) for name in labels}
    for name, images in images_of.items():
        if not images:
            raise BenchError(f"the class folder {folder / name} holds no images")
    counts = [len(images) for images in images_of.values()]
    return list(chain.from_iterable(images_of.values())), np.repeat(np.array([*labels.values()], np.int64), counts)


def listing_digest(folder: Path, files: Iterable[Path], texts: Iterable[Path] = ()) -> str:
    """Return the SHA-256 of the names and sizes of files below `folder`, whatever their order.

    It is taken of sorted lines: the path from the folder, a tab, the size in bytes. For `texts`, small files whose
    content gives labels, the SHA-256 of the content stands in place of the size.

    Raises:
        BenchError: a file is not there.
    """
    start = len(os.fspath(folder)) + 1
    try:
        lines = [(os.fspath(path)[start:], str(os.stat(path).st_size)) for path in files]  # noqa: PTH116 (many of them)
        lines += [(os.fspath(path)[start:], file_sha256(path)) for path in texts]
    except OSError as error:
        raise BenchError(f"{error.filename} cannot be read: {error.strerror}") from error
    encoded = sorted(os.fsencode(f"{name}\t{content}\n") for name, content in lines)
    return hashlib.sha256(b"".join(encoded)).hexdigest()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise BenchError(f"{folder} cannot be read: {error.strerror}") from error
