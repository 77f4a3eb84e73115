"""The driver: runs the cells that a suite still needs, and imports the run folders into the database."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.config.cell import Cell
from bench.config.suite import LoadedSuite, select_cells
from bench.errors import BenchError, DamagedFile
from bench.execution.executor import Executor, ExecutorSettings, Handle, Paths
from bench.execution.local import LocalExecutor, allocate
from bench.execution.plan import Action, CellState, Rerun, check_data, plan
from bench.execution.worker import DISK_ERRORS, WorkerResult
from bench.registry import METHODS
from bench.storage.run_folder import CellStatus, RunFolder, RunFolderLocked
from bench.storage.store import Store
from bench.training.compiled import check_compiler
from bench.utils.device import check_precision

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # between two calls of a watcher, at most

HEARTBEAT_SECONDS = 0.5  # between two checks of the heartbeats: more would burden the file systems of clusters

RESUBMIT_SECONDS = 60  # after a cluster refused more cells

MAX_ATTEMPTS = 3

HEARTBEAT_TIMEOUT = 30.0  # minutes; a worker sends a heartbeat with every batch and every forward pass

HOW_TO_RESUME = "fix this and rerun the same command to resume"

Watch = Callable[[Sequence[CellState]], None]


@dataclass(frozen=True)
class RetryPolicy:
    """How lost workers are handled: those that crash, run out of memory or send no heartbeat.

    `max_attempts`: of each cell; `heartbeat_timeout`: minutes without a heartbeat after which a worker is killed.
    """

    max_attempts: int = MAX_ATTEMPTS
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT


@contextmanager
def open_executor(settings: ExecutorSettings, paths: Paths, cells: Sequence[Cell]) -> Iterator[Executor]:
    """Yield an executor for `cells`; at the end of the block, workers that still run are ended.

    Raises:
        BenchError: the machine does not exist, has too few resources, or lacks the protocol's precision.
    """
    executor = _executor(settings, paths, cells)
    try:
        yield executor
    finally:
        executor.close()


def _executor(settings: ExecutorSettings, paths: Paths, cells: Sequence[Cell]) -> Executor:
    if settings.slurm and settings.executor != "slurm":
        raise BenchError("--slurm needs --executor slurm")
    if settings.address and settings.executor != "ray":
        raise BenchError("--address needs --executor ray")
    if settings.compile and (settings.devices or 1) > 1:
        raise BenchError("a cell that trains on several devices cannot be compiled; use --no-compile")
    for cell in cells:
        if settings.compile and cell.network is None and not METHODS.get(cell.method.name).compiled:
            raise BenchError(
                f"method '{cell.method.name}' cannot be compiled: it differentiates twice; use --no-compile"
            )
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
    if settings.compile:
        check_compiler(torch.device(allocation.slots[0][0]))
    return LocalExecutor(allocation, paths, settings)


def check_writable(results: Path) -> None:
    """Raise BenchError unless files can be created in `results`, which is created if necessary."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise BenchError(f"the results folder {results} cannot be written: {error.strerror}") from error


def open_store(results: Path, url: str | None) -> Store:
    """Open the store, creating the results folder; if that fails, a new folder is removed again.

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
def _report_disk_errors() -> Iterator[None]:
    """Turn an error of the disk into a BenchError."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise BenchError(f"{error.filename or 'the results folder'}: {error.strerror}; {HOW_TO_RESUME}") from error


@_report_disk_errors()
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
    """Run the cells of a suite that are not complete, and return the state of every selected cell.

    Cells that fail or diverge do not stop the others. After an interruption, the same call resumes.

    Args:
        loaded: the suite.
        results: folder of the run folders and, unless `store` is given, of the store.
        store: SQLAlchemy URL; default: SQLite in the results folder.
        data: root folder of the datasets.
        settings: how cells are spread over machines; default: the suite's `execution` section.
        methods: only these methods, by name or label; all if empty.
        seeds: only these seeds; all if empty.
        rerun: which cells run: missing, failed or all.
        retry: how lost workers are handled.
        watch: called several times a second with the states.
        detach: submit the cells to Slurm and return; the same call without `detach` collects their results.

    Raises:
        BenchError: the suite, the machines, the results folder or the store is not usable, and nothing has run; or the
            disk is full, and the same call resumes when there is space.
    """
    if detach and settings.executor != "slurm":
        raise BenchError(
            f"--detach needs --executor slurm, whose queue outlives this command; not '{settings.executor}'"
        )
    cells = select_cells(loaded.cells, methods, seeds)
    paths = Paths(results, data)
    settings = by_suite(settings, loaded)
    with open_executor(settings, paths, cells) as executor:
        states = plan(cells, results, rerun, data=data, devices=settings.devices or 1)
        check_data(states, data)
        if detach and any(teacher.action is not Action.SKIP for state in states for teacher in state.teachers):
            raise BenchError("--detach cannot wait for teachers to be trained; run without it until they have finished")
        run_planned(states, executor, paths, store, retry, watch, detach=detach)
    return states


def by_suite(settings: ExecutorSettings, loaded: LoadedSuite) -> ExecutorSettings:
    """Return `settings` with defaults from the suite's `execution` section."""
    suite = loaded.suite.execution
    return replace(
        settings,
        threads=settings.threads or suite.threads,
        devices=settings.devices or suite.devices,
        compile=suite.compile if settings.compile is None else settings.compile,
        preview=suite.preview if settings.preview is None else settings.preview,
    )


def run_planned(
    states: Sequence[CellState],
    executor: Executor,
    paths: Paths,
    store: str | None,
    retry: RetryPolicy,
    watch: Watch,
    *,
    detach: bool = False,
) -> None:
    """Run planned cells and import their run folders, updating `states`."""
    with open_store(paths.results, store) as opened:
        unstored = [state for state in states if not _prepare(state, opened)]
        if detach:
            executor.submit([state.cell for state in states if state.status is CellStatus.QUEUED])
            executor.detach()
        else:
            unstored += _run(states, executor, retry, opened, watch)
        for state in unstored:  # the store was locked or full before; now its error is raised
            opened.ingest(state.folder)
    for state in states:
        if state.status is CellStatus.DISK_FULL:
            raise BenchError(f"{state.reason}; {HOW_TO_RESUME}")


def _prepare(state: CellState, store: Store) -> bool:
    """Prepare a cell's run folder and queue the cell, or import a run that has ended; False if the store failed.

    All folders are archived or reopened before anything runs, so that after an interruption the command without
    `--rerun` resumes.
    """
    if state.action is Action.SKIP:
        with suppress(DamagedFile, FileNotFoundError):
            state.reason = (state.folder.result() or {}).get("reason", "")
            label = state.cell.method.label
            # A network keeps the name under which it was evaluated first: another may be a mistake.
            if not state.cell.network and state.folder.cell()["cell"]["method"]["label"] != label:
                with suppress(RunFolderLocked), state.folder.lock():
                    state.folder.relabel(label)
        return _store(state, store.ingest_if_new)
    state.status = CellStatus.QUEUED
    if state.action is not Action.RUN:
        try:
            with state.folder.lock():
                state.folder.archive() if state.action is Action.RESTART else state.folder.reopen()
        except RunFolderLocked as error:
            state.status, state.reason = CellStatus.LOCKED, str(error)
        except DamagedFile as error:
            state.status, state.reason = CellStatus.FAILED, str(error)
    return True


def _run(
    states: Sequence[CellState], executor: Executor, retry: RetryPolicy, store: Store, watch: Watch
) -> list[CellState]:
    """Keep the executor busy until every queued cell has ended, or the disk is full.

    Returns:
        The cells that could not be stored.
    """
    queue = [state for state in states if state.status is CellStatus.QUEUED]
    running: dict[Handle, CellState] = {}
    unstored: list[CellState] = []
    next_check = not_before = 0.0
    full = False
    try:
        while (queue and not full) or running:
            if time.monotonic() >= not_before and not full:
                _drop_without_teachers(queue)
                now = [state for state in queue if _can_start(state)][: executor.room()]
                queue = [state for state in queue if not any(state is other for other in now)]
                try:
                    running |= zip(executor.submit([state.cell for state in now]), now, strict=True)
                except BenchError as error:  # a cluster may refuse more cells while others run
                    if not running:
                        raise
                    log.warning("%s; retried in %d s", error, RESUBMIT_SECONDS)
                    queue, not_before = now + queue, time.monotonic() + RESUBMIT_SECONDS
            for handle in executor.wait(POLL_SECONDS):
                state = running.pop(handle)
                _settle(state, handle.result(), retry.max_attempts)
                if state.status is CellStatus.QUEUED:
                    queue.append(state)
                elif state.status is not CellStatus.LOCKED and not _store(state, store.ingest):
                    unstored.append(state)
            if time.monotonic() >= next_check:
                next_check = time.monotonic() + HEARTBEAT_SECONDS
                for handle, state in running.items():
                    handle.check_heartbeat(60 * retry.heartbeat_timeout)
                    state.status = CellStatus.RUNNING if handle.started else CellStatus.QUEUED
            if not full and any(state.status is CellStatus.DISK_FULL for state in states):
                full = True  # also for cells that have not started
                for handle in [handle for handle in running if handle.queues and not handle.started]:
                    handle.kill()
            watch(states)
    finally:
        executor.close()
        with suppress(OSError):
            for state in running.values():
                if not _store(state, store.ingest):  # the others would fail as slowly; their folders are kept
                    break
        for state in running.values():
            mark_interrupted(state.folder)
    return unstored


def mark_interrupted(folder: RunFolder) -> None:
    """State in the progress file of an unfinished run that its worker has ended; the next worker removes the mark."""
    with suppress(OSError, DamagedFile, RunFolderLocked):
        if folder.status() is CellStatus.INTERRUPTED:
            with folder.lock():
                folder.progress(force=True, **{**folder.read_progress(), "interrupted": True})


def _can_start(state: CellState) -> bool:
    return all(teacher.status == CellStatus.FINISHED for teacher in state.teachers)


def _drop_without_teachers(queue: list[CellState]) -> None:
    """Remove the cells with a teacher that will not finish; nothing is written, so that a later run tries them."""
    for state in list(queue):
        for teacher in state.teachers:
            if teacher.status not in {CellStatus.QUEUED, CellStatus.RUNNING, CellStatus.FINISHED}:
                state.status = CellStatus.LOCKED if teacher.status is CellStatus.LOCKED else CellStatus.FAILED
                state.reason = f"its teacher {teacher.cell} is {teacher.status}"
                queue[:] = [other for other in queue if other is not state]
                break


def _settle(state: CellState, result: WorkerResult, max_attempts: int) -> None:
    """Update a cell whose worker has ended: if the worker was lost, the cell is queued again, or fails."""
    state.status, state.reason = result
    if state.status is not CellStatus.LOST:
        return
    state.attempts += 1
    state.status = CellStatus.QUEUED if state.attempts < max_attempts else CellStatus.FAILED
    state.reason = f"{result.reason} (attempt {state.attempts} of {max_attempts})"
    try:
        with state.folder.lock():
            state.folder.record_incident(state.reason)
            if state.status is CellStatus.FAILED:
                state.folder.finish(CellStatus.FAILED, reason=state.reason)
    except RunFolderLocked as error:  # another run has taken it over
        state.status, state.reason = CellStatus.LOCKED, str(error)
    except (OSError, DamagedFile) as error:
        state.reason += f"; {error}"


def _store(state: CellState, ingest: Callable[[RunFolder], None]) -> bool:
    """Import a run folder, and return False if the store failed.

    A damaged folder fails its own cell only.
    """
    try:
        ingest(state.folder)
    except DamagedFile as error:
        state.status, state.reason = CellStatus.FAILED, state.reason or str(error)
    except BenchError:
        return False
    return True
