"""What one run leaves on disk: the durable truth, from which the store can be rebuilt.

    cell.json        what was asked for, and where it ran       (record)
    epochs.jsonl     one line an epoch
    checkpoints/     weights and the index that names them      (records and safetensors)
    outcomes/        one verdict file per checkpoint and attack (records)
    partial/         AutoAttack's place, while it runs          (records)
    incidents.json   what went wrong and was mended, if anything (record)
    log.txt          what the worker said
    progress.json    where it is now; a display file, may be lost
    done.json        last of all: finished, diverged or failed  (record)

Only a process that holds `lock` writes here: the worker, and the driver where no worker is.
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
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from bench.config.cell import Cell
from bench.errors import BenchError, DamagedFile
from bench.utils.files import read_record, write_atomically, write_record

CHECKPOINTS = ("best", "best_on_test", "last")
"""The checkpoints that are evaluated; `resume` is the fourth, there only while training is unfinished."""

Status = Literal["new", "interrupted", "finished", "diverged", "failed"]

ARCHIVED = ".aside-"  # in the name of a folder that was set aside, before a number

PROGRESS_SECONDS = 0.5  # how often the display file is renewed at most

_NUMBERS = {"training": ("epoch", "epochs", "done", "of"), "evaluation": ("share",)}
"""What the display file counts in each phase."""

INCIDENTS = 100  # that a run keeps, the latest ones


class RunFolderLocked(Exception):
    """Another process holds the run folder."""


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

        Its name tells people what it is; it ends in the beginnings of the training's fingerprint and of the cell's, so
        that runs of the same training under other final attacks are found by name.
        """
        label = re.sub(r"[^A-Za-z0-9]+", "-", cell.method.name).strip("-")
        name = f"{label}-seed{cell.seed}-{cell.training_fingerprint[:12]}-{cell.fingerprint[:12]}"
        return cls(results / "runs" / name)

    @contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Within, no other process works in this folder, which is created if need be.

        The system takes the lock away from a process that dies, so it is never stale. `patience`: how many seconds to
        wait for another process to end.

        Raises:
            RunFolderLocked: another process works in it.
            DamagedFile: something in it is a symbolic link.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.refuse_links()
        self.lock_file.touch()
        before, lock = self.lock_file.stat().st_ino, FileLock(self.lock_file)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise RunFolderLocked(self._holder()) from None
        try:
            # Between the two, another process may have set the folder aside, and the lock with it.
            if not self.lock_file.exists() or self.lock_file.stat().st_ino != before:
                raise RunFolderLocked(self._holder())
            yield
        finally:
            lock.release()

    def _holder(self) -> str:
        """Say who works in the folder, as far as it is known."""
        state = self.read_progress()
        who = f" (process {state['pid']} on {state['host']})" if {"pid", "host"} <= state.keys() else ""
        return f"another bench run is working on it{who}"

    def refuse_links(self) -> None:
        """Raise DamagedFile if the folder or anything in it is a symbolic link, which may lead anywhere."""
        for path in (self.path, *self.path.rglob("*")):
            if path.is_symlink():
                raise DamagedFile(f"{path} is a symbolic link; put the files themselves into the run folder")

    # --- identity ----------------------------------------------------------------------------------------------------

    def begin(self, cell: Cell, environment: dict[str, Any]) -> None:
        """Create the folder and state what it is for; a folder that exists keeps its first statement, if intact."""
        for folder in (self.path, self.checkpoints, self.outcomes, self.partial):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self.cell()
            stated = True
        except FileNotFoundError:
            stated = False
        except DamagedFile as error:
            self.record_incident(f"{error}; it was written anew")
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
        """Return the epochs recorded so far.

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
            DamagedFile: they are not all there, or not what was written.
        """
        lines = self._lines()[:count]
        if len(lines) < count:
            raise DamagedFile(f"{self._epochs} is damaged: it has {len(lines)} epochs, though {count} were committed")
        if sha256 is not None and self.curve_sha256(count) != sha256:
            raise DamagedFile(f"{self._epochs} is damaged: its first {count} lines do not match their SHA-256")
        return self._parsed(lines)

    def truncate_epochs(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` epochs, dropping one that was recorded but never committed, and return them.

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
        """Return where the outcome of a checkpoint under an attack (by key) is kept."""
        return self.outcomes / f"{checkpoint}.{attack}.json"

    def read_outcomes(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return every outcome, by checkpoint and attack key."""
        found = {}
        for path in sorted(self.outcomes.glob("*.json")):
            checkpoint, _, attack = path.stem.partition(".")
            found[checkpoint, attack] = read_record(path)
        return found

    def damaged_outcomes(self) -> dict[Path, DamagedFile]:
        """Return what is wrong with each outcome that cannot be read."""
        found = {}
        for path in sorted(self.outcomes.glob("*.json")):
            try:
                read_record(path)
            except DamagedFile as error:
                found[path] = error
        return found

    # --- incidents ---------------------------------------------------------------------------------------------------

    def record_incident(self, incident: str) -> None:
        """Put what went wrong and was mended on the run's record, and into its log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING {incident}\n")
        try:
            known = self.incidents()
        except DamagedFile as error:
            known = [f"{error}; what it held is lost"]
        write_record(self._incidents, {"incidents": [*known, incident][-INCIDENTS:]})

    def incidents(self) -> list[str]:
        """Return what went wrong and was mended, oldest first. Raises DamagedFile as `read_record` does."""
        try:
            return list(map(str, read_record(self._incidents)["incidents"]))
        except FileNotFoundError:
            return []

    # --- status ------------------------------------------------------------------------------------------------------

    def finish(self, status: Literal["finished", "diverged", "failed"], **detail: Any) -> None:
        """Write `done.json`, the last file of a run."""
        write_record(self._done, {"status": status, **detail})

    def result(self) -> dict[str, Any] | None:
        """Return the content of `done.json`, or None while there is none."""
        try:
            return read_record(self._done)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise BenchError(f"{self._done} cannot be read: permission denied") from None

    def reopen(self) -> None:
        """Forget that the run failed or diverged, so that it can go on."""
        self._done.unlink(missing_ok=True)

    def status(self) -> Status:
        """Return how far the run got."""
        done = self.result()
        if done is not None:
            status: Status = done["status"]
            return status
        return "interrupted" if (self.path / "cell.json").exists() else "new"

    def archive(self) -> Path:
        """Rename the folder so that the cell can be run anew, and return where it is kept."""
        for number in range(1, 10_000):
            kept = self.path.with_name(f"{self.path.name}{ARCHIVED}{number}")
            if not kept.exists():
                self.path.rename(kept)
                return kept
        raise BenchError(f"{self.path} has been set aside too often; delete some of the old folders")

    # --- for whoever watches -----------------------------------------------------------------------------------------

    def progress(self, *, force: bool = False, **state: Any) -> None:
        """Say where the run is; renewed twice a second at most, unless `force`. A full disk is no matter."""
        now = time.monotonic()
        if force or now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            data = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname(), **state}
            try:
                write_atomically(self._progress, json.dumps(data).encode(), durable=False)
            except OSError:
                self._touch()

    def heartbeat(self) -> None:
        """Give a sign of life: the run is still where `progress` last said; cheap enough to be called all the time."""
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            self._touch()

    def _touch(self) -> None:
        with suppress(OSError):
            os.utime(self._progress)

    def last_heartbeat(self) -> int:
        """Return when the run last gave a sign of life, in nanoseconds; 0 if never."""
        try:
            return self._progress.stat().st_mtime_ns
        except OSError:
            return 0

    def read_progress(self) -> dict[str, Any]:
        """Return the latest state, or an empty dict if there is none that says what it should."""
        try:
            state: dict[str, Any] = json.loads(self._progress.read_bytes())
            numbers = [state[name] for name in _NUMBERS.get(state.get("phase", ""), ())]
            sound = all(number >= 0 for number in numbers) and isinstance(state.get("last", {}), dict)
        except (OSError, ValueError, RecursionError, AttributeError, LookupError, TypeError):
            return {}
        return state if sound and 0 not in (state.get("of"), state.get("epochs")) else {}


def run_folders(results: Path) -> list[RunFolder]:
    """Return the folders of runs in a results folder, by name; not those that were set aside."""
    return [folder for folder in _folders(results) if ARCHIVED not in folder.path.name]


def archived_folders(results: Path) -> list[RunFolder]:
    """Return the folders in a results folder that were set aside, by name."""
    return [folder for folder in _folders(results) if ARCHIVED in folder.path.name]


def _folders(results: Path) -> list[RunFolder]:
    return [RunFolder(path.parent) for path in sorted((results / "runs").glob("*/cell.json"))]
