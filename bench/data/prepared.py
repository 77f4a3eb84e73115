"""Prepared images: a dataset's files decoded once, into arrays below the data root that runs map into memory.

    <root>/prepared/<key>/train-<digest>.npy          uint8, [images, channels, height, width]
                          train-labels-<digest>.npy   int64, [official images], `ABSENT` where there is no image
                          test-...                    the same, where there are test images
                          index.json                  last of all: a record of the arrays and of the files' digest
                          lock                        held by the process that prepares

`<digest>` is the beginning of the files' digest, so that arrays of other files never take the place of those that a run
has open.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, Found, Part
from bench.data.readers import Pixels, Source, Tick
from bench.errors import BenchError, DamagedFile, NotFound
from bench.utils.files import file_sha256, fingerprint, read_record

log = logging.getLogger(__name__)

VERSION = 1  # of the layout, and of how images are decoded: raised when either changes


@dataclass(frozen=True)
class MappedSource:
    """Images in an .npy file, uint8, [n, channels, height, width], mapped when the first is asked for.

    Small when sent to another process, which maps the file itself.
    """

    path: Path

    @cached_property
    def _pixels(self) -> Pixels:
        try:
            pixels: Pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BenchError(f"prepared images {self.path} cannot be read: {error}") from error
        return pixels

    def __reduce__(self) -> tuple[type[MappedSource], tuple[Path]]:
        return MappedSource, (self.path,)

    def __len__(self) -> int:
        return len(self._pixels)

    def load(self, index: NDArray[np.int64], tick: Tick = lambda _done, _of: None) -> Pixels:
        """Return copies of the images at `index`."""
        found: Pixels = np.ascontiguousarray(self._pixels[index])
        tick(len(index), len(index))
        return found


@dataclass(frozen=True)
class Picked:
    """Another source's images in another order: position i shows its image `rows[i]`."""

    source: Source
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: NDArray[np.int64], tick: Tick = lambda _done, _of: None) -> Pixels:
        """Return the images at `index`."""
        return self.source.load(self.rows[index], tick)


def with_gaps(source: Source, labels: NDArray[np.int64]) -> Part:
    """Return the part whose images stand in `source` one after the other, without those that `labels` has as ABSENT."""
    present = labels != ABSENT
    return Part(source if present.all() else Picked(source, np.cumsum(present) - 1), labels)


@dataclass(frozen=True)
class ImageFiles:
    """`Dataset.find` for image files: prepared images where they are those of the files, else the files.

    `look(root, settings)` is `find` for the files alone; its parts have the official numbers, with gaps. If a suite
    states the files' `digest`, it means these and no others, and they are numbered from 0 without gaps.
    """

    look: Callable[[Path | None, DatasetSettings], Found]

    def __call__(self, root: Path | None, settings: DatasetSettings) -> Found:
        """Return what is found below `root`; a sentence is logged where prepared images cannot be used."""
        prepared = damage = None
        try:
            prepared = None if root is None else Prepared.read(folder_of(root, settings))
        except DamagedFile as error:
            damage = error
        try:
            found = self.look(root, settings)
        except NotFound:
            if damage:
                raise damage from None
            if prepared is None or not prepared.serves(settings):
                raise
            found = prepared.found
        else:
            if damage:
                log.warning("%s; the files themselves are read", damage)
            elif prepared and found.digest and prepared.digest == found.digest():
                found = prepared.found
            elif prepared:
                log.warning(
                    "%s holds other images than %s, which are read instead; run 'bench data prepare' again",
                    prepared.folder, found.where,
                )  # fmt: skip
        if settings.digest is None:
            return found
        test = found.test and _without_gaps(found.test)
        return Found(found.where, _without_gaps(found.train), test, found.digest)


@dataclass(frozen=True)
class Prepared:
    """Prepared images on disk, as their record states them."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Prepared | None:
        """Return the prepared images in `folder`, None if there are none of this version.

        Raises:
            DamagedFile: the record, the labels, or the size of an array is not what was written.
        """
        try:
            record = read_record(folder / "index.json")
            if record.get("version") != VERSION:
                return None
            prepared = cls(folder, record)
            for file in prepared.files():
                if (folder / file["name"]).stat().st_size != file["bytes"]:
                    raise DamagedFile(f"{folder / file['name']} has not the size that was written; {_AGAIN}")
            _ = prepared.found
        except FileNotFoundError as error:
            if Path(error.filename).name == "index.json":
                return None
            raise DamagedFile(f"{error.filename} is gone; {_AGAIN}") from error
        except OSError as error:
            raise DamagedFile(f"{folder} cannot be read: {error.strerror}") from error
        return prepared

    @property
    def digest(self) -> str:
        """The digest of the files that were decoded."""
        return str(self.record["files"])

    def serves(self, settings: DatasetSettings) -> bool:
        """Whether a suite can rest on these images alone, when the files are gone.

        What was prepared under a stated digest may be a part of the dataset, so it serves only whoever states one.
        """
        return settings.digest is not None or not self.record["of_a_part"]

    @cached_property
    def found(self) -> Found:
        """The images as `Dataset.find` returns them."""
        parts = {}
        for name, part in self.record["parts"].items():
            self._check(part["labels"])
            labels = np.load(self.folder / part["labels"]["name"], allow_pickle=False)
            parts[name] = with_gaps(MappedSource(self.folder / part["pixels"]["name"]), labels)
        return Found(self.folder, parts["train"], parts.get("test"), lambda: self.digest)

    def verify(self) -> None:
        """Read every array. Raises DamagedFile, naming the file, where its SHA-256 is not the recorded one."""
        for file in self.files():
            self._check(file)

    def files(self) -> Iterator[dict[str, Any]]:
        """Yield what the record says of each array: its name, bytes and SHA-256."""
        for part in self.record["parts"].values():
            yield part["pixels"]
            yield part["labels"]

    def _check(self, file: dict[str, Any]) -> None:
        if file_sha256(self.folder / file["name"]) != file["sha256"]:
            raise DamagedFile(f"{self.folder / file['name']} is damaged: its SHA-256 does not match; {_AGAIN}")


_AGAIN = "run 'bench data prepare' again"


def folder_of(root: Path, settings: DatasetSettings) -> Path:
    """Return where the prepared images of a dataset lie; for own files, after their path and shape."""
    key = settings.name
    if files := settings.files:
        words = re.sub(r"[^A-Za-z0-9]+", "-", files.path).strip("-")
        key += f"-{words}-{fingerprint([files.path, list(files.shape)])[:12]}"
    return root / "prepared" / key


def present(part: Part) -> NDArray[np.int64]:
    """Return the positions of a part's images that are there, int64, [k], rising."""
    return np.flatnonzero(part.labels != ABSENT)


def _without_gaps(part: Part) -> Part:
    """Return the images that are there, numbered from 0."""
    rows = present(part)
    return part if len(rows) == len(part.labels) else Part(Picked(part.source, rows), part.labels[rows])
