"""Looking after a results folder: taking its run folders into a store, and freeing what can be made again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.data.status import prepared_twice
from bench.errors import BenchError, DamagedFile, NothingMeasured
from bench.storage.run_folder import RunFolder, RunFolderLocked, archived_folders, run_folders
from bench.storage.store import FILE, Store


@dataclass(frozen=True)
class Ingested:
    """A run folder that was to be taken in; `damage` says why it was not, None if it was."""

    name: str
    damage: str | None


def ingest(results: Path, store: str | None) -> list[Ingested]:
    """Take every run folder of `results` into the store, by name; folders that were set aside are left out.

    An empty store, or one that is not there yet, then holds what the one that the runs were stored in held, row by row.

    Raises:
        NothingMeasured: there is no run folder.
        BenchError: the store cannot be opened or written.
    """
    folders = run_folders(results)
    if not folders:
        raise NothingMeasured(f"there is no run folder in {results / 'runs'}; `bench run SUITE` makes them")
    taken = []
    with Store.of(results, store) as opened:
        for folder in folders:
            try:
                opened.ingest(folder)
                taken.append(Ingested(folder.path.name, None))
            except DamagedFile as error:
                taken.append(Ingested(folder.path.name, str(error)))
    return taken


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be made again: how large it is, and what it is."""

    path: Path
    bytes: int
    what: str


def removable(results: Path, data: Path | None = None, *, archived: bool = False) -> list[Removable]:
    """Return what can be removed and made again; nothing of a run that another process works on.

    Args:
        data: look for prepared images below this root too; those are named whose original files are there.
        archived: include the folders archived by `--rerun`; only training recreates these.
    """
    found = [_removable(path, "a copy of the store in an older schema") for path in results.glob(f"{FILE}.schema-*")]
    for folder in run_folders(results):
        found += [_removable(path, what) for path, what in _left_over(folder)]
    if archived:
        found += [_removable(folder.path, "a run that was set aside") for folder in archived_folders(results)]
    if data is not None:
        found += [_removable(path, "prepared images, whose files are there") for path in prepared_twice(data)]
    return found


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
    """Yield what a worker left that was killed, and the place of attacks in a run that has ended since."""
    try:
        with folder.lock():
            for path in sorted(folder.path.rglob(".*.tmp")):
                yield path, "left by a process that was killed"
            if folder.partial.exists() and folder.result() is not None:
                yield folder.partial, "the place of an attack, of a run that has ended"
    except (RunFolderLocked, DamagedFile):
        return
