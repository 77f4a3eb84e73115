"""Writing prepared images: whole or not there at all, whatever ends it, and by one process at a time."""

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

from bench.data.dataset import Dataset, Part
from bench.data.prepared import VERSION, ImageFiles, Prepared, folder_of, present
from bench.data.readers import Pixels, Tick
from bench.errors import BenchError, DamagedFile, NotFound
from bench.utils.files import file_sha256, sync_folder, write_record

log = logging.getLogger(__name__)

CHUNK = 128  # images decoded at a time


def prepare(
    dataset: Dataset, root: Path, tick: Tick = lambda _done, _of: None, *, say: Callable[[str], None] = log.warning
) -> tuple[Prepared, bool]:
    """Decode all images of a configured dataset into arrays below `root`, unless that has been done.

    Args:
        tick: called with (done, of) images.
        say: called with a sentence if another process is at it, which is waited for, or if arrays are damaged.

    Returns:
        The prepared images, every array of them verified, and whether they were there already.

    Raises:
        NotFound, BenchError: as `Dataset.locate` does; an image cannot be read; the disk is full or read-only.
    """
    settings, images = dataset.settings, dataset.find
    if settings is None or not isinstance(images, ImageFiles):
        raise BenchError(f"dataset '{dataset.name}' has no image files to prepare")
    folder = folder_of(root, settings)
    try:
        found = replace(dataset, find=images.look).locate(root)
    except NotFound:
        prepared = _intact(folder, say)
        if prepared is None or not prepared.serves(settings):
            raise
        return prepared, True
    assert found.digest is not None
    digest = found.digest()
    with _writing(folder, say):
        prepared = _intact(folder, say)
        if prepared and prepared.digest == digest:
            return prepared, True
        _sweep(folder)  # what a killed process left
        parts = {"train": found.train} | ({"test": found.test} if found.test else {})
        shape = found.train.source.load(present(found.train)[:1]).shape[1:]
        _check_space(folder, parts.values(), shape)
        total = sum(len(present(part)) for part in parts.values())
        written: dict[str, dict[str, Any]] = {}
        for name, part in parts.items():
            before = sum(other["images"] for other in written.values())
            pixels, labels = (folder / f"{kind}-{digest[:12]}.npy" for kind in (name, f"{name}-labels"))
            written[name] = {
                "images": len(present(part)),
                "pixels": _write_array(
                    pixels, (len(present(part)), *shape), np.uint8, _decoded(part, lambda n: tick(n, total), before)
                ),
                "labels": _write_array(labels, part.labels.shape, np.int64, [part.labels]),
            }
        sync_folder(folder)
        record = {"version": VERSION, "files": digest, "of_a_part": settings.digest is not None, "shape": list(shape)}
        write_record(folder / "index.json", {**record, "parts": written})
        _sweep(folder)  # arrays of files that have changed since
    prepared = Prepared.read(folder)
    assert prepared is not None
    return prepared, False


@contextmanager
def _writing(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Within, no other process writes in `folder`; what is not committed at an early end is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process prepares {folder}; waiting for it")
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
    """Remove temporary files, and arrays that the record does not name."""
    try:
        prepared = Prepared.read(folder)
    except DamagedFile:
        prepared = None
    kept = {file["name"] for file in prepared.files()} if prepared else set()
    for path in folder.iterdir():
        if path.suffix == ".tmp" or (path.suffix == ".npy" and path.name not in kept):
            path.unlink()


def _intact(folder: Path, say: Callable[[str], None]) -> Prepared | None:
    """Return the prepared images in `folder` if there are any and every array is as it was written."""
    try:
        prepared = Prepared.read(folder)
        if prepared:
            prepared.verify()
    except DamagedFile as error:
        say(str(error))
        return None
    return prepared


def _check_space(folder: Path, parts: Iterable[Part], shape: tuple[int, ...]) -> None:
    """Raise BenchError if the arrays cannot fit on the disk."""
    needed = sum(len(present(part)) * int(np.prod(shape)) + part.labels.nbytes for part in parts)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BenchError(f"{folder} needs {needed / 2**30:.2f} GiB, but its disk has {free / 2**30:.2f} GiB free")


def _decoded(part: Part, tick: Callable[[int], None], before: int) -> Iterator[Pixels]:
    """Yield the images that are there, some at a time; `before`: how many of other parts are done."""
    positions = present(part)
    for start in range(0, len(positions), CHUNK):
        yield part.source.load(positions[start : start + CHUNK])
        tick(before + min(start + CHUNK, len(positions)))


def _write_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], chunks: Iterable[NDArray[Any]]
) -> dict[str, Any]:
    """Write an .npy file, flushed to disk, and return its entry in the record.

    By ordinary writes: a full disk fails one of them, where a mapping would kill the process.
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
