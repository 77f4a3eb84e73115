"""The interface of executors, which run cells: submit cells, wait for workers that end, kill one.

There are three: processes of this machine (`local`), a Ray cluster (`ray`) and Slurm's queue (`slurm`). All of them run
`bench.execution.worker.work`. Its results are in the run folder, so that only a `WorkerResult` comes back.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.config.cell import Cell
from bench.errors import BenchError
from bench.execution.worker import Job, WorkerResult
from bench.storage.run_folder import CellStatus

CHECK_SECONDS = 1.0
"""The most that one check of a heartbeat adds to a worker's silence: the machine may have been asleep in between."""


@dataclass(frozen=True)
class ExecutorSettings:
    """How cells are spread over machines; the executor chooses what is None or empty.

    `jobs`: cells at a time; `threads`: CPU threads of each process; `devices`: processes of one cell, which share its
    batches; `compile`: whether networks are compiled for training; `preview`: whether a short attack precedes
    AutoAttack; `gpus`: numbers of this machine's GPUs; `jobs_per_gpu`: cells that share a GPU; `address`: of a Ray
    cluster; `slurm`: options of `sbatch`, without their dashes.
    """

    executor: Literal["local", "ray", "slurm"] = "local"
    device: str = "auto"
    jobs: int | None = None
    threads: int | None = None
    devices: int | None = None
    compile: bool | None = None
    preview: bool | None = None
    gpus: tuple[int, ...] = ()
    jobs_per_gpu: int = 1
    address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paths:
    """The results folder and the root folder of the datasets, on every machine that runs cells."""

    results: Path
    data: Path | None


def job_of(cell: Cell, paths: Paths, devices: tuple[str, ...], threads: int, settings: ExecutorSettings) -> Job:
    """Return the job of a cell on the devices and with the threads that an executor gives it."""
    compile, preview = bool(settings.compile), bool(settings.preview)
    return Job(cell, paths.results, devices, paths.data, threads, compile, preview)


class Handle(ABC):
    """A submitted cell; `started` says whether its worker has sent a heartbeat since."""

    queues = False
    """Whether the cell may wait in a queue, for any time, before its worker starts."""

    def __init__(self, job: Job) -> None:
        self.job, self.started, self._hung, self._silence = job, False, False, 0.0
        self._beat, self._checked = job.folder.last_heartbeat(), time.monotonic()

    def check_heartbeat(self, timeout: float) -> None:
        """Kill the worker if it has sent no heartbeat for `timeout` seconds of calls to this method.

        To be called often: only the time between calls counts, at most `CHECK_SECONDS` for each.
        """
        now, beat = time.monotonic(), self.job.folder.last_heartbeat()
        if beat != self._beat:
            self.started, self._silence = True, 0.0
        elif self.started or not self.queues:
            self._silence += min(now - self._checked, CHECK_SECONDS)
        self._beat, self._checked = beat, now
        if self._silence > timeout and not self._hung:
            self._hung = True
            self.kill()

    def result(self) -> WorkerResult:
        """Return the result of a worker that has ended."""
        if reported := self._reported():
            return reported
        if self._hung:
            return WorkerResult(CellStatus.LOST, f"the worker hung: no heartbeat for {self._silence / 60:.2g} minutes")
        with suppress(OSError, BenchError):
            if result := self.job.folder.result():  # it died after its last write
                return WorkerResult(CellStatus(result["status"]), result.get("reason", ""))
        return WorkerResult(CellStatus.LOST, f"the worker died: {self._cause()}")

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once; what it has committed is kept."""

    @abstractmethod
    def _reported(self) -> WorkerResult | None:
        """Return the result that the worker reported, if it could."""

    @abstractmethod
    def _cause(self) -> str:
        """Return what is known of why a worker died that reported nothing."""


class Executor(ABC):
    """Runs cells. Created by `bench.execution.driver.open_executor`, which closes it."""

    @abstractmethod
    def room(self) -> int:
        """Return how many cells can be submitted now."""

    @abstractmethod
    def submit(self, cells: Sequence[Cell]) -> list[Handle]:
        """Submit `cells`, at most as many as there is room for, and return their handles, in order."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Handle]:
        """Return the handles of workers that have ended, each once; wait at most `seconds` for the first."""

    @abstractmethod
    def close(self) -> None:
        """End all workers and wait for their end."""

    def detach(self) -> None:
        """Leave the submitted cells to their queue, so that `close` ends nothing; Slurm only."""
        raise NotImplementedError
