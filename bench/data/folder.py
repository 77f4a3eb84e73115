"""Folders of images, `<folder>/<class>/<file>`: what is in them, in an order that never varies, and its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.utils.files import file_sha256

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Names that end so, in small letters or capitals, are images."""

_normal = partial(normalize, "NFC")


def below(root: Path, path: str) -> Path:
    """Return the place that `path` names below `root`; file systems write the same name in several normal forms."""
    place = root
    for name in path.split("/"):
        exact = place / name
        if not name.isascii() and not exact.exists() and place.is_dir():
            exact = next((place / entry.name for entry in _entries(place) if _normal(entry.name) == name), exact)
        place = exact
    return place


def classes_in(folder: Path) -> dict[str, Path]:
    """Return the folders in `folder` by their names in Unicode normal form C, sorted; hidden ones are none.

    Raises:
        BenchError: the folder cannot be read, or two names differ in their normal form alone.
    """
    classes: dict[str, Path] = {}
    for entry in _entries(folder):
        if entry.is_dir() and classes.setdefault(_normal(entry.name), folder / entry.name).name != entry.name:
            raise BenchError(f"{folder} has two folders of the class {_normal(entry.name)}; move their images into one")
    return classes


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


def labelled(labels: Mapping[Path, int]) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the images in class folders, one folder after the other, and the label of each ([n]).

    Raises:
        BenchError: a class has no folder or no image; it is named.
    """
    images_of = {folder: images_in(folder) for folder in labels}
    for folder, images in images_of.items():
        if not images:
            raise BenchError(f"the class folder {folder} holds no images")
    counts = [len(images) for images in images_of.values()]
    return list(chain.from_iterable(images_of.values())), np.repeat(np.array([*labels.values()], np.int64), counts)


def unread(folders: Iterable[Path], read: Iterable[Path], other: Container[str] = ()) -> list[str]:
    """Return the paths of the files below `folders` that are not in `read`, in order; hidden ones do not count.

    `other`: names of folders right below that are none of the dataset's.
    """
    known = {os.fspath(path) for path in read}

    def walk(folder: str | Path, other: Container[str] = ()) -> Iterator[str]:
        for entry in _entries(Path(folder)):
            back = entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())
            if not entry.is_dir() or back:
                if entry.path not in known:
                    yield entry.path
            elif entry.name not in other:
                yield from walk(entry.path)

    return [path for folder in folders if folder.is_dir() for path in walk(folder, other)]


def state_of(folder: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256 of the names, sizes and times of files below `folder`, whatever their order.

    The times are those of the last change of the content and of the inode: a copy that keeps the former has another
    of the latter. Raises BenchError if a file is not there.
    """

    def state(path: Path) -> str:
        stat = os.stat(path)  # noqa: PTH116 (many of them)
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"

    return _digest(folder, files, state)


_digests: dict[tuple[Path, str], str] = {}  # of this process, by folder and state: reading many files takes long


def content_digest(folder: Path, files: Sequence[Path]) -> str:
    """Return the SHA-256 of the names and contents of files below `folder`, whatever their order.

    It is taken of sorted lines: the path from the folder, a tab, the SHA-256 of the content. Raises BenchError if a
    file cannot be read.
    """
    key = folder, state_of(folder, files)
    if key not in _digests:
        _digests[key] = _digest(folder, files, file_sha256)
    return _digests[key]


def _digest(folder: Path, files: Iterable[Path], describe: Callable[[Path], str]) -> str:
    start = len(os.fspath(folder)) + 1
    try:
        lines = sorted(os.fsencode(f"{_normal(os.fspath(path)[start:])}\t{describe(path)}\n") for path in files)
    except OSError as error:
        raise BenchError(f"{error.filename} cannot be read: {error.strerror}") from error
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name in normal form C, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            return sorted(shown, key=lambda entry: (_normal(entry.name), entry.name))
    except OSError as error:
        raise BenchError(f"{folder} cannot be read: {error.strerror}") from error
