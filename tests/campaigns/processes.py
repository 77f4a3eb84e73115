"""`bench run` in real processes that start at once, and what is done to them: killed, or given a disk that fails.

A process that has imported everything forks for each run, so that a whole run of the small suite takes a second or two.
The driver and its workers are processes of one group, as they are from a terminal. What they do to files and to the
store is counted, over all of them, by operations: opening for writing, writing, flushing to disk, renaming, deleting,
making folders, SQL statements and commits. An `Act` happens at an operation of choice.
"""

import builtins
import errno
import importlib
import io
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from bench.attacks.outcome import Outcome
from bench.cli.main import main
from bench.config.suite import load_suite
from bench.execution import local
from bench.reporting.formats.markdown import render_markdown
from bench.reporting.leaderboard import leaderboards
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder
from bench.storage.store import Store
from bench.testing.conformance import curve
from bench.training.trainer import Trainer

SUITE = """\
name: faults
dataset: {name: digits, validation: 64, subset: {train: 0-319, test: 0-59}}
model: small_cnn
threat: {norm: linf, eps: 0.05}
training:
  epochs: 3
  batch_size: 32
  attack: {name: pgd, steps: 1, step_size: 0.05}
evaluation:
  track: {attack: {name: pgd, steps: 1, step_size: 0.05}}
  final: [clean, {name: autoattack, attacks: [apgd-ce], images: 12, batch_size: 4}]
methods: [pgd_at, fomo]
seeds: [0]
execution: {threads: 1}
"""

SECONDS = 300
"""The longest that a run may take; more is a hang."""

_FORK = get_context("fork")


@dataclass(frozen=True)
class Act:
    """What happens at the operation `at`, from 1: `kill` the process group, or the error of an errno name.

    With `lasting`, every later operation of the run fails as well, as on a disk that stays full.
    """

    at: int
    what: str
    lasting: bool = False


@dataclass
class Run:
    """A `bench` command that was started in a process group of its own."""

    pid: int
    output: Path
    code: int | None = None

    def wait(self, seconds: float = SECONDS) -> int | None:
        """Return the exit status, or None if it has not ended within `seconds`; while all are stopped, none passes."""
        waited, looked = 0.0, time.monotonic()
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif waited > seconds:
                return None
            else:
                time.sleep(0.002)
                now = time.monotonic()
                waited, looked = waited + min(now - looked, 0.1), now
        return self.code

    def kill(self) -> bool:
        """Kill the whole group; return whether the command was still running."""
        running = self.wait(0) is None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        return running

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")


class Operations:
    """Counts the operations of a run below a folder; see `Act`."""

    def __init__(self, root: Path, act: Act | None = None) -> None:
        self.root, self.act = str(root), act
        self._count = _FORK.Value("q", 0)
        self.names = root.with_name(f"{root.name}.operations")
        self.names.unlink(missing_ok=True)

    @property
    def count(self) -> int:
        return int(self._count.value)

    def happen(self, kind: str, path: object, partly: Callable[[], Any] = lambda: None) -> None:
        """Count an operation on `path`, and act if it is its turn; a write that fails has been done `partly`."""
        if isinstance(path, bytes | int) or not str(path).startswith(self.root):
            return
        with self._count.get_lock():
            self._count.value += 1
            number = self._count.value
        descriptor = _real["open"](self.names, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{number} {kind} {Path(str(path)).name}\n".encode())
        os.close(descriptor)
        act = self.act
        if act is None or number < act.at or (number > act.at and not act.lasting):
            return
        if act.what == "kill":
            os.killpg(0, signal.SIGKILL)
        if kind == "sql":
            full = act.what == "ENOSPC"
            raise OperationalError(
                "statement", {}, sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
            )
        partly()
        code = getattr(errno, act.what)
        raise OSError(code, os.strerror(code), str(path))

    def install(self) -> None:
        """Count from now on, in this process and those that it forks."""

        def on_path(name: str, kind: str) -> None:
            real = _real[name]

            def operation(path: Any, *arguments: Any, **settings: Any) -> Any:
                self.happen(kind, path)
                return real(path, *arguments, **settings)

            setattr(os, name, operation)

        for name, kind in (("replace", "rename"), ("rename", "rename"), ("unlink", "delete"), ("mkdir", "mkdir")):
            on_path(name, kind)

        def open_descriptor(path: Any, flags: int, *arguments: Any, **settings: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.happen("open", path)
            return int(_real["open"](path, flags, *arguments, **settings))

        def fsync(descriptor: int) -> None:
            self.happen("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
            _real["fsync"](descriptor)

        def open_file(path: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            writes = isinstance(path, str | os.PathLike) and str(path).startswith(self.root) and set(mode) & set("wax+")
            if writes:
                self.happen("open", path)
            opened = _io_open(path, mode, *arguments, **settings)
            return _Counted(opened, str(path), self) if writes else opened

        os.open, os.fsync, io.open, builtins.open = open_descriptor, fsync, open_file, open_file  # type: ignore[assignment]
        event.listen(Engine, "before_cursor_execute", lambda *_: self.happen("sql", f"{self.root}/bench.sqlite"))
        event.listen(Engine, "commit", lambda *_: self.happen("sql", f"{self.root}/bench.sqlite"))


class _Counted:
    """A file whose writes are operations; half of a write that fails is done."""

    def __init__(self, file: Any, path: str, operations: Operations) -> None:
        self._file, self._path, self._operations = file, path, operations

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._operations.happen("write", self._path, half)
        return self._file.write(data)

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


_real: dict[str, Any] = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir")}
_io_open = io.open


def start(
    *words: object,
    output: Path,
    operations: Operations | None = None,
    trained: Path | None = None,
    modules: Path | None = None,
) -> Run:
    """Start `bench` with `words`.

    `trained` gets a line for each epoch that is begun, `modules` one for each module that was imported.
    """
    output.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Run(pid, output)
    code = 70
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        sys.argv = ["bench", *map(str, words)]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        torch.set_num_threads(1)
        _fork_workers(modules)
        if trained is not None:
            _tell_epochs(trained)
        if operations is not None:
            operations.install()
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            if modules is not None:
                _tell_modules(modules)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def warm(folder: Path) -> None:
    """Run the suite once, and import here what the run imported, so that later ones start at once."""
    bed, names = Bed(folder), folder / "modules"
    run = bed.command(folder / "warm", modules=names)
    assert run.wait() == 0, run.said
    for name in names.read_text().splitlines():
        with suppress(Exception):
            importlib.import_module(name)


def _fork_workers(modules: Path | None) -> None:
    """Make workers start as forks of the driver."""

    made = local.LocalExecutor.__init__

    def fork(executor: local.LocalExecutor, *arguments: Any, **settings: Any) -> None:
        made(executor, *arguments, **settings)
        executor._context = _FORK  # type: ignore[assignment]

    real = local.work_in_process

    def work(job: Any, tell: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a process of its own
        real(job, tell)
        if modules is not None:
            _tell_modules(modules)

    local.LocalExecutor.__init__ = fork  # type: ignore[method-assign]
    local.work_in_process = work


def _tell_epochs(file: Path) -> None:
    real = Trainer._epoch

    def epoch(trainer: Trainer, number: int) -> None:
        descriptor = _real["open"](file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{trainer.cell.method.name} {number}\n".encode())
        os.close(descriptor)
        real(trainer, number)

    Trainer._epoch = epoch  # type: ignore[method-assign]


def _tell_modules(file: Path) -> None:
    with _io_open(file, "a") as opened:
        opened.write("".join(f"{name}\n" for name in sys.modules))


def epochs_begun(file: Path) -> list[str]:
    """Return a line for each epoch that `start` told of."""
    return file.read_text().splitlines() if file.exists() else []


@dataclass(frozen=True)
class Bed:
    """A suite and a folder for one disturbed run after the other."""

    folder: Path

    @property
    def suite(self) -> Path:
        path = self.folder / "suite.yaml"
        if not path.exists():
            path.write_text(SUITE)
        return path

    def command(self, results: Path, *more: object, **settings: Any) -> Run:
        """Start the one command that is repeated, with `more` words."""
        words = ("run", self.suite, "--results", results, "--jobs", 1, *more)
        return start(*words, output=self.folder / "said.txt", **settings)

    def state(self, results: Path) -> dict[str, Any]:
        """Return all that must be equal: weights, curves, outcomes, the store's figures, the leaderboard."""
        state: dict[str, Any] = {}
        for cell in load_suite(str(self.suite)).cells:
            folder = RunFolder.of(cell, results)
            if folder.status() == "new":  # it was not asked for
                continue
            checkpoints = Checkpoints(folder.checkpoints)
            checkpoints.verify()
            outcomes = {key: Outcome.from_record(record) for key, record in folder.read_outcomes().items()}
            state[str(cell)] = {
                "status": folder.status(),
                "checkpoints": checkpoints.entries,
                "files": sorted(path.name for path in folder.checkpoints.iterdir()),
                "curve": curve(folder.epochs()),
                "outcomes": {
                    key: (one.weights_sha256, one.correct.tolist(), one.detail) for key, one in outcomes.items()
                },
            }
        with Store.of(results, create=False) as store:
            state["store"] = [
                (run.folder, run.status, run.epochs, [
                    (name, row.sha256, key, outcome.accuracy, outcome.correct)
                    for name, row in sorted(run.checkpoints.items()) for key, outcome in sorted(row.outcomes.items())
                ])
                for run in store.runs(bits=True)
            ]  # fmt: skip
            table = "\n".join(map(render_markdown, leaderboards(store)))
        rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
        state["leaderboard"] = [[cell for cell in row if " on CPU" not in cell] for row in rows]  # costs differ
        return state
