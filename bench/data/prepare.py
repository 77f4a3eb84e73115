"""Writing prepared images, atomically and by one process at a time."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from bench.data.dataset import Dataset, Split
from bench.data.prepared import VERSION, ImageFiles, Prepared, folder_of, present
from bench.data.readers import Pixels
from bench.errors import BenchError, DamagedFile, NotFound
from bench.utils.files import file_sha256, sync_folder, write_record
from bench.utils.progress import ProgressCallback, no_progress

log = logging.getLogger(__name__)

CHUNK = 128  # images decoded at a time


def prepare(
    dataset: Dataset, root: Path, progress: ProgressCallback = no_progress, *, say: Callable[[str], None] = log.warning
) -> tuple[Prepared, bool]:
    """Decode all images of a configured dataset into arrays below `root`, unless intact arrays exist.

    Args:
        progress: called with the numbers of finished and of all images.
        say: called with a message while waiting for another process, if arrays are damaged, and if there are files
            that are not read.

    Returns:
        The prepared images, every array verified, and whether they existed before.

    Raises:
        NotFound, BenchError: as `Dataset.locate` does; an image cannot be read; the disk is full or read-only.
    """
    settings, images = dataset.settings, dataset.find
    if settings is None or not isinstance(images, ImageFiles):
        raise BenchError(f"dataset '{dataset.name}' has no image files to prepare")
    folder = folder_of(root, settings)
    try:
        located = replace(dataset, find=images.locate).locate(root)
    except NotFound:
        prepared = _intact(folder, say)
        if prepared is None or not prepared.serves(settings):
            raise
        return prepared, True
    assert located.digest is not None
    assert located.state is not None
    state, digest = located.state(), located.digest()  # in this order: files may change meanwhile
    if sentence := located.not_read():
        say(sentence)
    with _writing(folder, say):
        prepared = _intact(folder, say)
        if prepared and prepared.digest == digest:
            if prepared.record.get("state") != state:  # the files were copied or touched; need not be read next time
                write_record(folder / "index.json", prepared.record | {"state": state})
            return prepared, True
        if prepared:
            say(f"{folder} was prepared from other files, or by an older version; preparing it again")
        _sweep(folder)  # files of a killed process
        splits = {"train": located.train} | ({"test": located.test} if located.test else {})
        shape = located.train.reader.load(present(located.train)[:1]).shape[1:]
        _check_space(folder, splits.values(), shape)
        total = sum(len(present(split)) for split in splits.values())
        written: dict[str, dict[str, Any]] = {}
        for name, split in splits.items():
            before = sum(entry["images"] for entry in written.values())
            pixels, labels = (folder / f"{kind}-{digest[:12]}.npy" for kind in (name, f"{name}-labels"))
            written[name] = {
                "images": len(present(split)),
                "pixels": _write_array(
                    pixels,
                    (len(present(split)), *shape),
                    np.uint8,
                    _decoded(split, lambda n: progress(n, total), before),
                ),
                "labels": _write_array(labels, split.labels.shape, np.int64, [split.labels]),
            }
        sync_folder(folder)
        record = {"version": VERSION, "files": digest, "state": state, "of_a_part": settings.digest is not None}
        write_record(folder / "index.json", {**record, "shape": list(shape), "parts": written})
        _sweep(folder)  # arrays of an earlier version of the files
    prepared = Prepared.read(folder)
    assert prepared is not None
    return prepared, False


@contextmanager
def _writing(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `folder`; after an error, remove files that the record does not name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is preparing {folder}; waiting")
            lock.acquire()
        try:
            yield
        except BaseException:
            with suppress(OSError):
                _sweep(folder)
            raise
        finally:
            lock.release()
    except OSError as error:
        raise BenchError(f"{folder} cannot be written: {error.strerror or error}") from error


def _sweep(folder: Path) -> None:
    """Remove temporary files and arrays that the record does not name."""
    try:
        prepared = Prepared.read(folder)
    except DamagedFile:
        prepared = None
    recorded = {file["name"] for file in prepared.files()} if prepared else set()
    for path in folder.iterdir():
        if path.suffix == ".tmp" or (path.suffix == ".npy" and path.name not in recorded):
            path.unlink()


def _intact(folder: Path, say: Callable[[str], None]) -> Prepared | None:
    """Return the prepared images in `folder` if every array matches its record, else None."""
    try:
        prepared = Prepared.read(folder)
        if prepared:
            prepared.verify()
    except DamagedFile as error:
        say(str(error))
        return None
    return prepared


def _check_space(folder: Path, splits: Iterable[Split], shape: tuple[int, ...]) -> None:
    """Raise BenchError if the disk has no room for the arrays."""
    needed = sum(len(present(split)) * int(np.prod(shape)) + split.labels.nbytes for split in splits)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BenchError(f"{folder} needs {needed / 2**30:.2f} GiB, but its disk has {free / 2**30:.2f} GiB free")


def _decoded(split: Split, progress: Callable[[int], None], before: int) -> Iterator[Pixels]:
    """Yield the images in chunks; `before`: the number of images of other splits that are done."""
    positions = present(split)
    for start in range(0, len(positions), CHUNK):
        yield split.reader.load(positions[start : start + CHUNK])
        progress(before + min(start + CHUNK, len(positions)))


def _write_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], chunks: Iterable[NDArray[Any]]
) -> dict[str, Any]:
    """Write an .npy file, flushed to disk, and return its entry in the record.

    With ordinary writes: a full disk raises an error, whereas a memory map would kill the process.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)
        file.flush()
        os.fsync(file.fileno())
    entry = {"name": path.name, "bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
    temporary.replace(path)
    return entry
