"""Freeing disk space: files of a results folder that can be recreated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.data.status import prepared_twice
from bench.errors import BenchError, DamagedFile
from bench.storage.run_folder import RunFolder, RunFolderLocked, archived_folders, run_folders
from bench.storage.store import FILE


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be recreated: its path, its size and what it is."""

    path: Path
    bytes: int
    what: str


def removable(results: Path, data: Path | None = None, *, archived: bool = False) -> list[Removable]:
    """Return what can be removed and recreated; nothing of a run that another process has locked.

    Args:
        data: include prepared images below this root whose original files exist.
        archived: include the folders archived by `--rerun`; only training recreates these.
    """
    items = [_removable(path, "a copy of the database in an older schema") for path in results.glob(f"{FILE}.schema-*")]
    items += [_removable(path, "left by a killed process") for path in results.glob(".bundle-*")]
    for folder in run_folders(results):
        items += [_removable(path, what) for path, what in _left_over(folder)]
    if archived:
        items += [_removable(folder.path, "an archived run") for folder in archived_folders(results)]
    if data is not None:
        items += [_removable(path, "prepared images, whose original files exist") for path in prepared_twice(data)]
    return items


def remove(items: Sequence[Removable]) -> None:
    """Delete `items`. Raises BenchError if one cannot be deleted."""
    for item in items:
        try:
            shutil.rmtree(item.path) if item.path.is_dir() else item.path.unlink(missing_ok=True)
        except OSError as error:
            raise BenchError(f"{error.filename or item.path} cannot be removed: {error.strerror}") from error


def _removable(path: Path, what: str) -> Removable:
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    return Removable(path, sum(part.lstat().st_size for part in parts if not part.is_dir()), what)


def _left_over(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """Yield leftovers of killed workers, and intermediate state of attacks in a run that has ended."""
    try:
        with folder.lock():
            for path in sorted(folder.path.rglob(".*.tmp")):
                yield path, "left by a killed process"
            if folder.partial.exists() and folder.result() is not None:
                yield folder.partial, "intermediate state of an attack in a run that has ended"
    except (RunFolderLocked, DamagedFile):
        return
