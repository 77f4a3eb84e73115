"""The files of one run, from which the database can be rebuilt.

    cell.json        the cell, and the environment              (record)
    epochs.jsonl     one line per epoch
    checkpoints/     weights and the index that names them      (records and safetensors)
    outcomes/        one file per checkpoint and attack         (records)
    partial/         state of AutoAttack, while it runs         (records)
    incidents.json   what went wrong and was repaired, if anything (record)
    origin.json      the bundle that the run came in, if any    (record)
    log.txt          output of the worker
    progress.json    current position, and heartbeat; may be lost
    done.json        last: finished, diverged or failed         (record)

Only the process that has locked `lock` writes here: the worker, or the driver while there is no worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.config.cell import Cell
from bench.errors import BenchError, DamagedFile
from bench.utils.files import read_record, write_atomically, write_record

CHECKPOINTS = ("best", "best_on_test", "last")
"""The checkpoints that are evaluated; `resume` is the fourth, there only while training is unfinished."""

ORIGIN = "origin.json"
ARCHIVED = ".aside-"  # in the name of an archived folder, before a number
PROGRESS_SECONDS = 0.5  # between two updates of the progress file, at least
INCIDENTS = 100  # kept for each run, the latest ones

_NUMBERS = {"training": ("epoch", "epochs", "done", "of"), "evaluation": ("share",)}
"""The numbers of the progress file in each phase."""


class CellStatus(StrEnum):
    """The state of a cell."""

    NEW = "new"
    """It has no run folder yet."""
    QUEUED = "queued"
    """It waits for a worker."""
    RUNNING = "running"
    STALLED = "stalled"
    """It has not ended, and sends no heartbeat."""
    LOCKED = "locked"
    """Another process has locked its run folder."""
    INTERRUPTED = "interrupted"
    """It can be resumed."""
    DISK_FULL = "disk_full"
    """It can be resumed once there is disk space."""
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"
    LOST = "lost"
    """Its worker died through no known fault of the cell, and can be started again."""

    @property
    def is_final(self) -> bool:
        """Whether the run has ended, and `done.json` says so."""
        return self in {CellStatus.FINISHED, CellStatus.DIVERGED, CellStatus.FAILED}


class RunFolderLocked(Exception):
    """Another process has locked the run folder."""


class RunFolder:
    """One run's folder under `results/runs`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.outcomes = path / "outcomes"
        self.partial = path / "partial"
        self.log = path / "log.txt"
        self.lock_file = path / "lock"
        self._incidents = path / "incidents.json"
        self._epochs = path / "epochs.jsonl"
        self._done = path / "done.json"
        self._progress = path / "progress.json"
        self._last_progress = 0.0

    @classmethod
    def of(cls, cell: Cell, results: Path) -> RunFolder:
        """Return the folder of `cell`.

        Its name ends in the beginnings of the training's fingerprint and of the cell's, so that runs of the same
        training under other final attacks can be found by name.
        """
        label = re.sub(r"[^A-Za-z0-9]+", "-", cell.method.name).strip("-")
        name = f"{label}-seed{cell.seed}-{cell.training_fingerprint[:12]}-{cell.fingerprint[:12]}"
        return cls(results / "runs" / name)

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        """Lock the folder for this process, creating it if necessary.

        The operating system releases the lock of a process that dies, so it is never stale. `timeout`: seconds to wait
        for another process to release it.

        Raises:
            RunFolderLocked: another process has locked it.
            DamagedFile: something in it is a symbolic link.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.refuse_links()
        self.lock_file.touch()
        before, lock = self.lock_file.stat().st_ino, FileLock(self.lock_file)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise RunFolderLocked(self._holder()) from None
        try:
            # In between, another process may have archived the folder with its lock file.
            if not self.lock_file.exists() or self.lock_file.stat().st_ino != before:
                raise RunFolderLocked(self._holder())
            yield
        finally:
            lock.release()

    def _holder(self) -> str:
        state = self.read_progress()
        who = f" (PID {state['pid']} on {state['host']})" if {"pid", "host"} <= state.keys() else ""
        return f"run folder is locked by another process{who}"

    def refuse_links(self) -> None:
        """Raise DamagedFile for a symbolic link, which may point anywhere, and for a pipe, which waits for ever.

        Raises PermissionError for a folder that cannot be read, whose files would be missing without a word.
        """
        for path in (self.path, *self.path.rglob("*")):
            if path.is_symlink():
                raise DamagedFile(f"{path} is a symbolic link; put the files themselves into the run folder")
            if path.is_dir():
                next(path.iterdir(), None)
            elif not path.is_file() and path.exists():  # it may have been removed meanwhile
                raise DamagedFile(f"{path} is neither a file nor a folder; remove it")

    def origin(self) -> dict[str, Any] | None:
        """Return the `bundle` (SHA-256) that a run was ingested from and its `origin` in words; None for others."""
        return _read_if_there(self.path / ORIGIN)

    # --- identity ----------------------------------------------------------------------------------------------------

    def begin(self, cell: Cell, environment: dict[str, Any]) -> None:
        """Create the folder and write `cell.json`; an intact `cell.json` is kept, with the cell's label."""
        for folder in (self.path, self.checkpoints, self.outcomes, self.partial):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self.relabel(cell.method.label)
            stated = True
        except FileNotFoundError:
            stated = False
        except DamagedFile as error:
            self.record_incident(f"{error}; it was written again")
            stated = False
        if not stated:
            content = {
                "fingerprint": cell.fingerprint,
                "training_fingerprint": cell.training_fingerprint,
                "protocol_fingerprint": cell.protocol.fingerprint,
                "identity": cell.identity(),
                "cell": cell.model_dump(mode="json"),
                "environment": environment,
            }
            write_record(self.path / "cell.json", content)

    def cell(self) -> dict[str, Any]:
        """Return the content of `cell.json`."""
        return read_record(self.path / "cell.json")

    def relabel(self, label: str) -> None:
        """State `label`, which is no part of the identity, in `cell.json`; raises as `cell`."""
        content = self.cell()
        if content["cell"]["method"]["label"] != label:
            content["cell"]["method"]["label"] = label
            write_record(self.path / "cell.json", content)

    def record_data(self, data: dict[str, Any]) -> None:
        """Add the digests of the run's images to the environment in `cell.json`."""
        content = self.cell()
        write_record(self.path / "cell.json", content | {"environment": content["environment"] | {"data": data}})

    # --- epochs ------------------------------------------------------------------------------------------------------

    def append_epoch(self, record: dict[str, Any]) -> None:
        """Add one line to the curve, flushed to disk."""
        with self._epochs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def replace_epochs(self, records: list[dict[str, Any]]) -> None:
        """Make `records` the curve."""
        write_atomically(self._epochs, "".join(json.dumps(record) + "\n" for record in records).encode())

    def epochs(self) -> list[dict[str, Any]]:
        """Return the epochs so far.

        Raises:
            DamagedFile: a line is not JSON, or an epoch is missing.
        """
        return self._parsed(self._lines())

    def _parsed(self, lines: list[bytes]) -> list[dict[str, Any]]:
        records = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                intact = record["epoch"] == number
            except (ValueError, KeyError, TypeError, RecursionError):
                intact = False
            if not intact:
                raise DamagedFile(f"{self._epochs}:{number + 1}: not the record of epoch {number}")
            records.append(record)
        return records

    def curve_sha256(self, count: int) -> str:
        """Return the SHA-256 (hex) of the lines of the first `count` epochs."""
        return hashlib.sha256(b"".join(self._lines()[:count])).hexdigest()

    def committed_epochs(self, count: int, sha256: str | None) -> list[dict[str, Any]]:
        """Return the first `count` epochs, whose digest must be `sha256` if one is stated.

        Raises:
            DamagedFile: some are missing, or they do not match the digest.
        """
        lines = self._lines()[:count]
        if len(lines) < count:
            raise DamagedFile(f"{self._epochs} is damaged: it has {len(lines)} epochs, though {count} were committed")
        if sha256 is not None and self.curve_sha256(count) != sha256:
            raise DamagedFile(f"{self._epochs} is damaged: its first {count} lines do not match their SHA-256")
        return self._parsed(lines)

    def truncate_epochs(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` epochs, drop one that was never committed, and return them.

        Raises:
            DamagedFile: as `committed_epochs`.
        """
        records, lines = self.committed_epochs(count, None), self._lines()
        if len(lines) > count:
            write_atomically(self._epochs, b"".join(lines[:count]))
        return records

    def _lines(self) -> list[bytes]:
        return self._epochs.read_bytes().splitlines(keepends=True) if self._epochs.exists() else []

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def outcome_path(self, checkpoint: str, attack: str) -> Path:
        """Return the file of the outcome of a checkpoint under an attack (by key)."""
        return self.outcomes / f"{checkpoint}.{attack}.json"

    def read_outcomes(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return every outcome, by checkpoint and attack key."""
        outcomes = {}
        for path in sorted(self.outcomes.glob("*.json")):
            checkpoint, _, attack = path.stem.partition(".")
            outcomes[checkpoint, attack] = read_record(path)
        return outcomes

    def damaged_outcomes(self) -> dict[Path, DamagedFile]:
        """Return the error of each outcome that cannot be read."""
        errors = {}
        for path in sorted(self.outcomes.glob("*.json")):
            try:
                read_record(path)
            except DamagedFile as error:
                errors[path] = error
        return errors

    # --- incidents ---------------------------------------------------------------------------------------------------

    def record_incident(self, incident: str) -> None:
        """Record what went wrong and was repaired, also in the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING {incident}\n")
        try:
            known = self.incidents()
        except DamagedFile as error:
            known = [f"{error}; earlier incidents are lost"]
        write_record(self._incidents, {"incidents": [*known, incident][-INCIDENTS:]})

    def incidents(self) -> list[str]:
        """Return the recorded incidents, oldest first. Raises DamagedFile as `read_record` does."""
        record = _read_if_there(self._incidents)
        return [] if record is None else list(map(str, record["incidents"]))

    # --- status ------------------------------------------------------------------------------------------------------

    def finish(self, status: CellStatus, **detail: Any) -> None:
        """Write `done.json`, the last file of a run."""
        write_record(self._done, {"status": status, **detail})

    def result(self) -> dict[str, Any] | None:
        """Return the content of `done.json`, or None while there is none."""
        return _read_if_there(self._done)

    def reopen(self) -> None:
        """Remove `done.json` of a run that failed or diverged, so that it can resume."""
        self._done.unlink(missing_ok=True)

    def status(self) -> CellStatus:
        """Return new, interrupted (perhaps running), or the final status."""
        result = self.result()
        if result is not None:
            return CellStatus(result["status"])
        return CellStatus.INTERRUPTED if (self.path / "cell.json").exists() else CellStatus.NEW

    def archive(self) -> Path:
        """Rename the folder so that the cell can start again, and return its new path."""
        for number in range(1, 10_000):
            kept = self.path.with_name(f"{self.path.name}{ARCHIVED}{number}")
            if not kept.exists():
                self.path.rename(kept)
                return kept
        raise BenchError(f"{self.path} has been archived too often; delete some of the archived folders")

    # --- progress and heartbeat --------------------------------------------------------------------------------------

    def progress(self, *, force: bool = False, **state: Any) -> None:
        """Write the position of the run, at most twice a second unless `force`. Ignores a full disk."""
        now = time.monotonic()
        if force or now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            data = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname(), **state}
            try:
                write_atomically(self._progress, json.dumps(data).encode(), durable=False)
            except OSError:
                self._touch()

    def heartbeat(self) -> None:
        """Update the time of the progress file, at most twice a second; cheap enough for every batch."""
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            self._touch()

    def _touch(self) -> None:
        with suppress(OSError):
            os.utime(self._progress)

    def last_heartbeat(self) -> int:
        """Return the time of the last heartbeat, in nanoseconds since the epoch; 0 if there was none."""
        try:
            return self._progress.stat().st_mtime_ns
        except OSError:
            return 0

    def read_progress(self) -> dict[str, Any]:
        """Return the latest position, or an empty dict if there is no valid one."""
        try:
            state: dict[str, Any] = json.loads(self._progress.read_bytes())
            numbers = [state[name] for name in _NUMBERS.get(state.get("phase", ""), ())]
            valid = all(number >= 0 for number in numbers) and isinstance(state.get("last", {}), dict)
        except (OSError, ValueError, RecursionError, AttributeError, LookupError, TypeError):
            return {}
        return state if valid and 0 not in (state.get("of"), state.get("epochs")) else {}


def _read_if_there(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def run_folders(results: Path) -> list[RunFolder]:
    """Return the run folders of a results folder, by name, without archived ones."""
    return [folder for folder in _folders(results) if ARCHIVED not in folder.path.name]


def archived_folders(results: Path) -> list[RunFolder]:
    """Return the archived run folders of a results folder, by name."""
    return [folder for folder in _folders(results) if ARCHIVED in folder.path.name]


def _folders(results: Path) -> list[RunFolder]:
    """Return the folders with a cell.json, and those that cannot be searched for one, so that none is left out."""
    runs = results / "runs"
    for path in (results, runs):
        if os.path.lexists(path) and not path.is_dir():
            raise BenchError(f"{path} is no folder; name the results folder with --results")
    folders = [path for path in sorted(runs.iterdir()) if path.is_dir()] if runs.is_dir() else []
    return [RunFolder(path) for path in folders if not os.access(path, os.X_OK) or (path / "cell.json").exists()]
