"""The driver: runs what a suite still needs, and writes the store from what the workers leave."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.config.cell import Cell
from bench.config.suite import LoadedSuite, select_cells
from bench.errors import BenchError, DamagedFile
from bench.execution.executor import Executor, ExecutorSettings, Handle, Paths
from bench.execution.local import LocalExecutor, allocate
from bench.execution.plan import Planned, Rerun, check_data, plan
from bench.execution.worker import DISK, WorkerResult
from bench.storage.run_folder import RunFolder, RunFolderLocked
from bench.storage.store import Store
from bench.utils.device import check_precision

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # at most, until a watcher is called again

LOOK_SECONDS = 0.5  # between two looks at the signs of life: file systems of clusters would feel more

RESUBMIT_SECONDS = 60  # after a cluster refused to take more cells

MAX_ATTEMPTS = 3
"""How often a cell is begun at most, by default, whose worker is lost: killed, out of memory, or hung."""

HEARTBEAT_TIMEOUT = 30.0
"""How long a worker may give no sign of life, by default: it gives one with every batch and every forward pass."""

GO_ON = "mend that, and the same command goes on from the last finished epoch and attack"


@dataclass
class CellState:
    """One cell as the driver sees it.

    `status`: waiting (for a worker to begin), running, silent (see `bench.execution.watch`), busy (another process
    holds it), interrupted or full (its folder or the disk cannot be written), or how its run ended; `progress`: where a
    running one is, as its worker last said; `tries`: how many of its workers were lost.
    """

    planned: Planned
    status: str
    reason: str = ""
    tries: int = 0

    @property
    def progress(self) -> dict[str, Any]:
        return self.planned.folder.read_progress() if self.status in {"running", "silent"} else {}


Watch = Callable[[Sequence[CellState]], None]


@dataclass(frozen=True)
class RetryPolicy:
    """What is done about workers that are lost: those that crash, run out of memory or send no heartbeat.

    `max_attempts`: of each cell; `heartbeat_timeout`: without a heartbeat, after which a worker counts as lost.
    """

    max_attempts: int = MAX_ATTEMPTS
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT


@contextmanager
def open_executor(settings: ExecutorSettings, paths: Paths, cells: Sequence[Cell]) -> Iterator[Executor]:
    """Return what runs `cells`, or some of them; at the end of the block, workers that still run are ended.

    Raises:
        BenchError: there is no such machine, not as much of it as is wanted, or it lacks the protocol's precision.
    """
    executor = _executor(settings, paths, cells)
    try:
        yield executor
    finally:
        executor.close()


def _executor(settings: ExecutorSettings, paths: Paths, cells: Sequence[Cell]) -> Executor:
    if settings.slurm and settings.executor != "slurm":
        raise BenchError("--slurm is for jobs of Slurm; add --executor slurm")
    if settings.address and settings.executor != "ray":
        raise BenchError("--address is that of a Ray cluster; add --executor ray")
    if settings.executor == "ray":
        from bench.execution.ray import RayExecutor

        check_writable(paths.results)
        return RayExecutor(settings, paths)
    if settings.executor == "slurm":
        from bench.execution.slurm import SlurmExecutor

        return SlurmExecutor(settings, paths)
    allocation = allocate(settings, len(cells))
    for protocol in {cell.protocol for cell in cells}:
        check_precision(protocol.training.precision, torch.device(allocation.slots[0][0]))
    return LocalExecutor(allocation, paths)


def check_writable(results: Path) -> None:
    """Raise BenchError unless files can be made in `results`, which is created if need be."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise BenchError(f"the results folder {results} cannot be written: {error.strerror}") from error


def open_store(results: Path, url: str | None) -> Store:
    """Open the store, creating the results folder; if the store cannot be opened, the folder is not left behind.

    Raises:
        BenchError: the results folder cannot be written, or as `Store` does.
    """
    existed = results.exists()
    check_writable(results)
    try:
        return Store.of(results, url)
    except BenchError:
        if not existed:
            with suppress(OSError):
                results.rmdir()
        raise


@contextmanager
def _disk_errors_named() -> Iterator[None]:
    """Turn an error of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise BenchError(f"{error.filename or 'the results folder'}: {error.strerror}; {GO_ON}") from error


@_disk_errors_named()
def run_suite(
    loaded: LoadedSuite,
    *,
    results: Path = Path("results"),
    store: str | None = None,
    data: Path | None = None,
    settings: ExecutorSettings = ExecutorSettings(),
    methods: Collection[str] = (),
    seeds: Collection[int] = (),
    rerun: Rerun = Rerun.MISSING,
    retry: RetryPolicy = RetryPolicy(),
    watch: Watch = lambda _states: None,
    detach: bool = False,
) -> list[CellState]:
    """Run the cells of a suite that have not ended, and return the state of every cell that was asked for.

    Cells that fail or diverge do not stop the others. Everything a worker finished is on disk when this is interrupted,
    and the same call continues it.

    Args:
        results: folder of the run folders and, unless `store` is given, of the store.
        store: SQLAlchemy URL; default: SQLite in the results folder.
        data: root folder of datasets that live in files.
        settings: on what machines, and how many cells at a time; what it leaves open is the suite's to say.
        retry: what is done about workers that are lost.
        watch: called several times a second with the states.
        detach: hand the cells over to a queue that outlives this process, and return; the same call takes in later
            what they came to.

    Raises:
        BenchError: something is wrong with the suite, the machines, the results folder or the store, and nothing has
            run; or the disk is full, and the same call goes on when it is not.
    """
    if detach and settings.executor != "slurm":
        raise BenchError(
            f"--detach needs --executor slurm, whose queue outlives this command; not '{settings.executor}'"
        )
    cells = select_cells(loaded.cells, methods, seeds)
    paths = Paths(results, data)
    settings = by_suite(settings, loaded)
    with open_executor(settings, paths, cells) as executor:
        planned = plan(cells, results, rerun, data=data, devices=settings.devices or 1)
        check_data(planned, data)
        return run_planned(planned, executor, paths, store, retry, watch, detach=detach)


def by_suite(settings: ExecutorSettings, loaded: LoadedSuite) -> ExecutorSettings:
    """Return `settings` with what it leaves open as the suite's execution section says."""
    execution = loaded.suite.execution
    return replace(
        settings, threads=settings.threads or execution.threads, devices=settings.devices or execution.devices
    )


def run_planned(
    planned: Sequence[Planned],
    executor: Executor,
    paths: Paths,
    store: str | None,
    retry: RetryPolicy,
    watch: Watch,
    *,
    detach: bool = False,
) -> list[CellState]:
    """Run what is to be run and take it into the store; return the state of every cell."""
    states = [CellState(item, item.status if item.action == "skip" else "waiting") for item in planned]
    with open_store(paths.results, store) as opened:
        unstored = [state for state in states if not _prepare(state, opened)]
        if detach:
            executor.submit([state.planned.cell for state in states if state.status == "waiting"])
            executor.detach()
        else:
            unstored += _run(states, executor, retry, opened, watch)
        for state in unstored:  # the store was locked or full for a while: once more, and now it is an error
            opened.ingest(state.planned.folder)
    for state in states:
        if state.status == "full":
            raise BenchError(f"{state.reason}; {GO_ON}")
    return states


def _prepare(state: CellState, store: Store) -> bool:
    """Make a cell's folder ready before anything runs, and return False if the store could not take in an ended one.

    All folders are set aside or reopened at the beginning, so that after an interruption the command without `--rerun`
    goes on.
    """
    item = state.planned
    if item.action == "skip":
        with suppress(DamagedFile):
            state.reason = (item.folder.result() or {}).get("reason", "")
        return _store(state, store.ingest_if_new)
    if item.action != "run":
        try:
            with item.folder.lock():
                item.folder.archive() if item.action == "anew" else item.folder.reopen()
        except RunFolderLocked as error:
            state.status, state.reason = "busy", str(error)
        except DamagedFile as error:
            state.status, state.reason = "failed", str(error)
    return True


def _run(
    states: Sequence[CellState], executor: Executor, retry: RetryPolicy, store: Store, watch: Watch
) -> list[CellState]:
    """Keep the executor busy until every waiting cell has ended, or the disk is full.

    Returns:
        The cells that could not be stored.
    """
    waiting = [state for state in states if state.status == "waiting"]
    running: dict[Handle, CellState] = {}
    unstored: list[CellState] = []
    next_look = not_before = 0.0
    full = False
    try:
        while (waiting and not full) or running:
            if time.monotonic() >= not_before and not full:
                now, waiting = waiting[: executor.room()], waiting[executor.room() :]
                try:
                    running |= zip(executor.submit([state.planned.cell for state in now]), now, strict=True)
                except BenchError as error:  # a cluster that takes nothing more is no reason to end what it runs
                    if not running:
                        raise
                    log.warning("%s; tried again in %d s", error, RESUBMIT_SECONDS)
                    waiting, not_before = now + waiting, time.monotonic() + RESUBMIT_SECONDS
            for handle in executor.wait(POLL_SECONDS):
                state = running.pop(handle)
                _settle(state, handle.result(), retry.max_attempts)
                if state.status == "waiting":
                    waiting.append(state)
                elif state.status != "busy" and not _store(state, store.ingest):
                    unstored.append(state)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_SECONDS
                for handle, state in running.items():
                    handle.check_heartbeat(60 * retry.heartbeat_timeout)
                    state.status = "running" if handle.started else "waiting"
            if not full and any(state.status == "full" for state in states):
                full = True  # as it will be for those that have not begun
                for handle in [handle for handle in running if handle.queues and not handle.started]:
                    handle.kill()
            watch(states)
    finally:
        executor.close()
        with suppress(OSError):  # what they have so far; the folders keep it in any case
            for state in running.values():
                if not _store(state, store.ingest):  # nor the others, each after a while
                    break
    return unstored


def _settle(state: CellState, ending: WorkerResult, tries: int) -> None:
    """Take note of how a cell's worker ended: one that was lost makes the cell wait again, or fail after `tries`."""
    state.status, state.reason = ending
    if ending.status != "lost":
        return
    state.tries += 1
    state.status = "waiting" if state.tries < tries else "failed"
    state.reason = f"{ending.reason} (try {state.tries} of {tries})"
    folder = state.planned.folder
    try:
        with folder.lock():
            folder.record_incident(state.reason)
            if state.status == "failed":
                folder.finish("failed", reason=state.reason)
    except RunFolderLocked as error:  # another run was quicker to take it over
        state.status, state.reason = "busy", str(error)
    except (OSError, DamagedFile) as error:
        state.reason += f"; {error}"


def _store(state: CellState, ingest: Callable[[RunFolder], None]) -> bool:
    """Take a run folder into the store; return False if the store failed.

    A folder that is damaged fails its own cell and stops no other.
    """
    try:
        ingest(state.planned.folder)
    except DamagedFile as error:
        state.status, state.reason = "failed", state.reason or str(error)
    except BenchError:
        return False
    return True
