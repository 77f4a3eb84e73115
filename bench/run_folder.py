"""What one run leaves on disk: the durable truth, from which the store can be rebuilt.

    cell.json        what was asked for, and where it ran       (record)
    epochs.jsonl     one line an epoch
    checkpoints/     weights and the index that names them      (records and safetensors)
    outcomes/        one verdict file per checkpoint and attack (records)
    partial/         AutoAttack's place, while it runs          (records)
    log.txt          what the worker said
    progress.json    where it is now; a display file, may be lost
    done.json        last of all: finished, diverged or failed  (record)

Only a process that holds `lock` writes here: the worker, and the driver where no worker is.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from bench.errors import BenchError, DamagedFile
from bench.records import read_record, write_atomically, write_record
from bench.spec import Cell

CHECKPOINTS = ("best", "best_on_test", "last")
"""The checkpoints that are evaluated; `resume` is the fourth, there only while training is unfinished."""

Status = Literal["new", "interrupted", "finished", "diverged", "failed"]

PROGRESS_SECONDS = 0.5  # how often the display file is renewed at most


class Busy(Exception):
    """Another process holds the run folder."""


class RunFolder:
    """One run's folder under `results/runs`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.outcomes = path / "outcomes"
        self.partial = path / "partial"
        self.log = path / "log.txt"
        self.lock = path / "lock"
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
    def hold(self) -> Iterator[None]:
        """Within, no other process works in this folder, which is created if need be. Raises Busy if one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.lock, timeout=0):
                yield
        except Timeout:
            raise Busy from None

    # --- identity ----------------------------------------------------------------------------------------------------

    def begin(self, cell: Cell, environment: dict[str, Any]) -> None:
        """Create the folder and state what it is for; a folder that exists keeps its first statement."""
        for folder in (self.path, self.checkpoints, self.outcomes, self.partial):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.path / "cell.json").exists():
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
        if not self._epochs.exists():
            return []
        records = []
        for number, line in enumerate(self._epochs.read_bytes().splitlines()):
            try:
                record = json.loads(line)
                intact = record["epoch"] == number
            except (ValueError, KeyError, TypeError):
                intact = False
            if not intact:
                raise DamagedFile(f"{self._epochs}:{number + 1}: not the record of epoch {number}")
            records.append(record)
        return records

    def truncate_epochs(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` epochs, dropping one that was recorded but never committed, and return them."""
        lines = self._epochs.read_bytes().splitlines(keepends=True) if self._epochs.exists() else []
        if len(lines) > count:
            write_atomically(self._epochs, b"".join(lines[:count]))
        records = self.epochs()
        if len(records) < count:
            raise DamagedFile(f"{self._epochs} has {len(records)} epochs, though {count} were committed")
        return records

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

    # --- status ------------------------------------------------------------------------------------------------------

    def finish(self, status: Literal["finished", "diverged", "failed"], **detail: Any) -> None:
        """Write `done.json`, the last file of a run."""
        write_record(self._done, {"status": status, **detail})

    def done(self) -> dict[str, Any] | None:
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
        done = self.done()
        if done is not None:
            status: Status = done["status"]
            return status
        return "interrupted" if (self.path / "cell.json").exists() else "new"

    def set_aside(self) -> Path:
        """Rename the folder so that the cell can be run anew, and return where it is kept."""
        for number in range(1, 10_000):
            kept = self.path.with_name(f"{self.path.name}.aside-{number}")
            if not kept.exists():
                self.path.rename(kept)
                return kept
        raise BenchError(f"{self.path} has been set aside too often; delete some of the old folders")

    # --- for whoever watches -----------------------------------------------------------------------------------------

    def progress(self, *, force: bool = False, **state: Any) -> None:
        """Say where the run is; renewed twice a second at most, unless `force`."""
        now = time.monotonic()
        if force or now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            data = json.dumps({"time": time.time(), **state}).encode()
            write_atomically(self._progress, data, durable=False)

    def read_progress(self) -> dict[str, Any]:
        """Return the latest state, or an empty dict."""
        try:
            state: dict[str, Any] = json.loads(self._progress.read_bytes())
        except (OSError, ValueError):
            return {}
        return state
