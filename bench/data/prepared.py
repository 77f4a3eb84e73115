"""Prepared images: the files of a dataset, decoded once into arrays that runs map into memory.

    <root>/prepared/<key>/train-<digest>.npy          uint8, [images, channels, height, width]
                          train-labels-<digest>.npy   int64, [official images], `ABSENT` where there is no image
                          test-...                    the same for test images, if there are any
                          index.json                  record of the arrays and of the files' digest, written last
                          lock                        held by the process that writes

`<digest>` is the beginning of the files' digest, so arrays of other files never replace arrays that a run has open.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, Located, Split
from bench.data.folder import state_of
from bench.data.readers import Pixels, Reader
from bench.errors import BenchError, DamagedFile, NotFound
from bench.utils.files import file_sha256, fingerprint, read_record
from bench.utils.progress import ProgressCallback, no_progress

log = logging.getLogger(__name__)

VERSION = 1  # of the layout and of the decoding; raise it when either changes


@dataclass(frozen=True)
class MappedReader:
    """Images in an .npy file, uint8, [n, channels, height, width], mapped on first use.

    Pickled as a path: another process maps the file itself.
    """

    path: Path

    @cached_property
    def _pixels(self) -> Pixels:
        try:
            pixels: Pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BenchError(f"prepared images {self.path} cannot be read: {error}") from error
        return pixels

    def __reduce__(self) -> tuple[type[MappedReader], tuple[Path]]:
        return MappedReader, (self.path,)

    def __len__(self) -> int:
        return len(self._pixels)

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Return copies of the images at `index`."""
        pixels: Pixels = np.ascontiguousarray(self._pixels[index])
        progress(len(index), len(index))
        return pixels


@dataclass(frozen=True)
class SelectionReader:
    """Some images of another reader: position i holds its image `rows[i]`."""

    reader: Reader
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Return the images at `index`."""
        return self.reader.load(self.rows[index], progress)


def with_gaps(reader: Reader, labels: NDArray[np.int64]) -> Split:
    """Return the split whose images follow each other in `reader`, except those whose label is ABSENT."""
    present = labels != ABSENT
    return Split(reader if present.all() else SelectionReader(reader, np.cumsum(present) - 1), labels)


@dataclass(frozen=True)
class ImageFiles:
    """`Dataset.find` for image files: the prepared images if they match the files, else the files.

    `locate(root, settings)` is `find` for the files alone; its splits have the official indices, with gaps. If a suite
    states the `digest` of the files, they are numbered from 0 without gaps.
    """

    locate: Callable[[Path | None, DatasetSettings], Located]

    def __call__(self, root: Path | None, settings: DatasetSettings) -> Located:
        """Return the images below `root`; log a warning if prepared images cannot be used."""
        prepared = damage = None
        try:
            prepared = None if root is None else Prepared.read(folder_of(root, settings))
        except DamagedFile as error:
            damage = error
        try:
            located = self.locate(root, settings)
        except NotFound:
            if damage:
                raise damage from None
            if prepared is None or not prepared.serves(settings):
                raise
            located = prepared.located
        else:
            if damage:
                log.warning("%s; reading the image files instead", damage)
            elif prepared and prepared.made_of(located):
                located = replace(prepared.located, unread=located.unread, identity=located.identity)
            elif prepared:
                log.warning(
                    "%s was prepared from other files than those in %s, or by an older version; reading the files; "
                    "rerun 'bench data prepare'",
                    prepared.folder, located.where,
                )  # fmt: skip
        if settings.digest is None:
            return located
        test = located.test and _without_gaps(located.test)
        return replace(located, train=_without_gaps(located.train), test=test)


@dataclass(frozen=True)
class Prepared:
    """Prepared images on disk, and their record."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Prepared | None:
        """Return the prepared images in `folder`, or None if there are none of this version.

        Raises:
            DamagedFile: the record, the labels, or the size of an array has changed since it was written.
        """
        try:
            record = read_record(folder / "index.json")
            if record.get("version") != VERSION:
                return None
            prepared = cls(folder, record)
            for file in prepared.files():
                if (folder / file["name"]).stat().st_size != file["bytes"]:
                    raise DamagedFile(f"{folder / file['name']} does not have the recorded size; {_AGAIN}")
            _ = prepared.located
        except FileNotFoundError as error:
            if Path(error.filename).name == "index.json":
                return None
            raise DamagedFile(f"{error.filename} is missing; {_AGAIN}") from error
        except OSError as error:
            raise DamagedFile(f"{folder} cannot be read: {error.strerror}") from error
        return prepared

    @property
    def digest(self) -> str:
        """The digest of the files that were decoded; older versions recorded one of names and sizes, equal to none."""
        return str(self.record["files"])

    def made_of(self, files: Located) -> bool:
        """Return whether these are the images of `files`, which are read only if they moved since."""
        if files.state is None or files.digest is None:
            return False
        return self.record.get("state") == files.state() or self.digest == files.digest()

    def serves(self, settings: DatasetSettings) -> bool:
        """Whether these images are enough for a suite if the files are missing.

        Images that were prepared with a stated digest may be part of the dataset, so a suite must state one too.
        """
        return settings.digest is not None or not self.record["of_a_part"]

    @cached_property
    def located(self) -> Located:
        """The images in the form that `Dataset.find` returns."""
        splits = {}
        for name, entry in self.record["parts"].items():
            self._check(entry["labels"])
            labels = np.load(self.folder / entry["labels"]["name"], allow_pickle=False)
            splits[name] = with_gaps(MappedReader(self.folder / entry["pixels"]["name"]), labels)
        arrays = [self.folder / file["name"] for file in self.files()]
        state = partial(state_of, self.folder, arrays)
        test = splits.get("test")
        return Located(self.folder, splits["train"], test, lambda: self.digest, state, layout="prepared images")

    def verify(self) -> None:
        """Read every array. Raises DamagedFile, which names the file, if a SHA-256 does not match the record."""
        for file in self.files():
            self._check(file)

    def files(self) -> Iterator[dict[str, Any]]:
        """Yield the record of each array: its name, bytes and SHA-256."""
        for entry in self.record["parts"].values():
            yield entry["pixels"]
            yield entry["labels"]

    def _check(self, file: dict[str, Any]) -> None:
        if file_sha256(self.folder / file["name"]) != file["sha256"]:
            raise DamagedFile(f"{self.folder / file['name']} is damaged: its SHA-256 does not match; {_AGAIN}")


_AGAIN = "rerun 'bench data prepare'"


def folder_of(root: Path, settings: DatasetSettings) -> Path:
    """Return the folder of the prepared images of a dataset; for own files, named by their path and shape."""
    key = settings.name
    if files := settings.files:
        words = re.sub(r"[^A-Za-z0-9]+", "-", files.path).strip("-")
        key += f"-{words}-{fingerprint([files.path, list(files.shape)])[:12]}"
    return root / "prepared" / key


def present(split: Split) -> NDArray[np.int64]:
    """Return the indices that have an image, int64, [k], rising."""
    return np.flatnonzero(split.labels != ABSENT)


def _without_gaps(split: Split) -> Split:
    """Return the images that exist, numbered from 0."""
    rows = present(split)
    return split if len(rows) == len(split.labels) else Split(SelectionReader(split.reader, rows), split.labels[rows])
