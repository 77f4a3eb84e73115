"""Workers as processes of this machine, one for each cell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import TypeAlias

import torch

from bench.config.cell import Cell
from bench.errors import BenchError
from bench.execution.distributed import exit_cause
from bench.execution.executor import Executor, ExecutorSettings, Handle, Paths, job_of
from bench.execution.worker import Job, WorkerResult, work_in_process
from bench.utils.device import cores, resolve_device
from bench.utils.processes import import_no_working_directory

GRACE_SECONDS = 10  # between asking a worker to end and killing it

Devices: TypeAlias = tuple[str, ...]
"""The devices of one cell: one, or several that share its batches."""


@dataclass(frozen=True)
class Allocation:
    """The devices of each cell that runs at a time, and the CPU threads of each process."""

    slots: tuple[Devices, ...]
    threads: int


def allocate(settings: ExecutorSettings, cells: int) -> Allocation:
    """Divide the machine among the workers.

    On a CPU there are as many workers as there are cells and cores (or cores divided by `threads`), which share the
    cores: with more threads than cores, all become several times slower. On GPUs there is one worker on each, unless
    `jobs_per_gpu` says more.

    Raises:
        BenchError: no such device, or too few cores or GPUs.
    """
    each, available = settings.devices or 1, cores()
    if settings.threads is not None and settings.threads > available:
        raise BenchError(
            f"{settings.threads} threads for each worker, but this machine has {available} cores; lower --threads"
        )
    gpus = _gpus(settings)
    if gpus:
        if each > len(gpus):
            raise BenchError(f"each cell needs {each} devices, but there are {len(gpus)} GPUs to use")
        groups = [tuple(gpus[start : start + each]) for start in range(0, len(gpus) - each + 1, each)]
        slots = groups * settings.jobs_per_gpu
        if settings.jobs is not None and settings.jobs > len(slots):
            raise BenchError(
                f"--jobs {settings.jobs}, but there is room for {len(slots)} on the GPUs; raise --jobs-per-gpu"
            )
        slots = slots[: settings.jobs or cells]
    else:
        if settings.jobs is not None and settings.jobs > available:
            raise BenchError(f"--jobs {settings.jobs}, but this machine has {available} cores; lower --jobs")
        jobs = settings.jobs or max(1, min(cells, available // ((settings.threads or 1) * each)))
        slots = [("cpu",) * each] * jobs
    processes = len(slots) * each
    if (settings.threads is not None or not gpus) and processes * (settings.threads or 1) > available:
        raise BenchError(
            f"{len(slots)} workers with {each * (settings.threads or 1)} threads each need "
            f"{processes * (settings.threads or 1)} cores, there are {available}"
        )
    return Allocation(tuple(slots), settings.threads or max(1, available // processes))


def _gpus(settings: ExecutorSettings) -> list[str]:
    """Return the GPUs to use; none on a CPU."""
    if settings.gpus and not settings.device.startswith("cu") and settings.device != "auto":
        raise BenchError(f"--gpus and --device {settings.device:.60} exclude each other; leave one of them out")
    if settings.gpus:
        return [str(resolve_device(f"cuda:{number}")) for number in settings.gpus]
    device = resolve_device(settings.device)
    if device.type == "cpu":
        if settings.jobs_per_gpu > 1:
            raise BenchError("--jobs-per-gpu needs a GPU, but this machine has none to use; use --jobs")
        return []
    numbers = range(torch.cuda.device_count()) if device.index is None else [device.index]
    return [f"cuda:{number}" for number in numbers]


class LocalHandle(Handle):
    """A worker process."""

    def __init__(self, job: Job, process: BaseProcess, pipe: Connection) -> None:
        super().__init__(job)
        self._process, self._pipe = process, pipe

    @property
    def sentinel(self) -> int:
        """The object that `multiprocessing.connection.wait` waits for."""
        return self._process.sentinel

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        """Ask the worker to end."""
        self._process.terminate()

    def join(self) -> None:
        """Wait until the worker has ended; kill it if it does not."""
        self._process.join(GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _reported(self) -> WorkerResult | None:
        with suppress(EOFError):
            if self._pipe.poll():
                result: WorkerResult = self._pipe.recv()
                return result
        return None

    def _cause(self) -> str:
        self._process.join()
        return exit_cause(self._process.exitcode or 0)


class LocalExecutor(Executor):
    """Starts worker processes; on Linux from a server process that has torch loaded, which makes a start fast."""

    def __init__(self, allocation: Allocation, paths: Paths, settings: ExecutorSettings = ExecutorSettings()) -> None:
        self._allocation, self._paths, self._settings = allocation, paths, settings
        self._free = list(allocation.slots)
        self._running: list[LocalHandle] = []
        import_no_working_directory()
        self._context: ForkServerContext | SpawnContext = get_context("spawn")
        if sys.platform == "linux":
            self._context = get_context("forkserver")
            # torch._dynamo is imported at the first step of an optimiser and takes a second: once, not for each cell.
            self._context.set_forkserver_preload(["bench.execution.worker", "torch._dynamo"])

    def room(self) -> int:
        return len(self._free)

    def submit(self, cells: Sequence[Cell]) -> list[Handle]:
        # For libraries that read it at start, in workers and in the server that forks them.
        os.environ["OMP_NUM_THREADS"] = str(self._allocation.threads)
        handles: list[Handle] = []
        for cell in cells:
            handle = self._start(cell, self._free.pop(0))
            self._running.append(handle)  # at once, so that `close` ends it whatever happens next
            handles.append(handle)
        return handles

    def _start(self, cell: Cell, devices: Devices) -> LocalHandle:
        job = job_of(cell, self._paths, devices, self._allocation.threads, self._settings)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work_in_process, args=(job, sender), name=str(cell))
        handle = LocalHandle(job, process, receiver)
        process.start()
        sender.close()  # the worker has the other copy
        return handle

    def wait(self, seconds: float) -> list[Handle]:
        ready = set(wait([handle.sentinel for handle in self._running], seconds))
        ended = [handle for handle in self._running if handle.sentinel in ready]
        for handle in ended:
            self._running.remove(handle)
            self._free.append(handle.job.devices)
        return [*ended]

    def close(self) -> None:
        for handle in self._running:
            handle.terminate()
        for handle in self._running:
            handle.join()
        self._running.clear()
