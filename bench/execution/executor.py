"""The interface to what runs cells: hand cells over, wait for those that end, end one.

There are three executors: processes of this machine (`local`), a Ray cluster (`ray`) and Slurm's queue (`slurm`). All
of them run `bench.execution.worker.work`, and what a worker finished is in its run folder, so that nothing but how it
ended has to come back.
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

LOOK_SECONDS = 1.0
"""The most that one look at a worker adds to its silence: whoever looks may have been asleep in between."""


@dataclass(frozen=True)
class ExecutorSettings:
    """How cells are spread over machines; the executor chooses what is None or empty.

    `jobs`: cells at a time; `threads`: CPU threads of each process; `devices`: processes of one cell, which share its
    batches; `gpus`: numbers of this machine's GPUs; `jobs_per_gpu`: cells that share a GPU; `address`: of a Ray
    cluster; `slurm`: options of `sbatch`, without their dashes.
    """

    executor: Literal["local", "ray", "slurm"] = "local"
    device: str = "auto"
    jobs: int | None = None
    threads: int | None = None
    devices: int | None = None
    gpus: tuple[int, ...] = ()
    jobs_per_gpu: int = 1
    address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paths:
    """Where cells find what they need, on every machine that runs them: the results folder and the datasets' root."""

    results: Path
    data: Path | None


class Handle(ABC):
    """A cell that was handed over; `begun` says whether its worker has given a sign of life since."""

    queues = False
    """Whether the cell may wait in a queue for as long as it takes before its worker begins."""

    def __init__(self, job: Job) -> None:
        self.job, self.started, self._hung, self._silence = job, False, False, 0.0
        self._beat, self._looked = job.folder.last_heartbeat(), time.monotonic()

    def check_heartbeat(self, timeout: float) -> None:
        """Kill the worker if it has sent no heartbeat for `timeout` seconds of calls to this method.

        To be called often: only the time between calls counts, at most `LOOK_SECONDS` for each.
        """
        now, beat = time.monotonic(), self.job.folder.last_heartbeat()
        if beat != self._beat:
            self.started, self._silence = True, 0.0
        elif self.started or not self.queues:
            self._silence += min(now - self._looked, LOOK_SECONDS)
        self._beat, self._looked = beat, now
        if self._silence > timeout and not self._hung:
            self._hung = True
            self.kill()

    def result(self) -> WorkerResult:
        """Return how a worker that is gone ended."""
        if told := self._reported():
            return told
        if self._hung:
            return WorkerResult("lost", f"the worker hung: no heartbeat for {self._silence / 60:.2g} minutes")
        with suppress(OSError, BenchError):
            if done := self.job.folder.result():  # it died in its last breath
                return WorkerResult(done["status"], done.get("reason", ""))
        return WorkerResult("lost", f"the worker died: {self._cause()}")

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once; what it has committed stays."""

    @abstractmethod
    def _reported(self) -> WorkerResult | None:
        """Return what the worker said last, if it could."""

    @abstractmethod
    def _cause(self) -> str:
        """Return what is known of why a worker died that said nothing."""


class Executor(ABC):
    """Runs cells. Made by `bench.execution.driver.open_executor`; to be closed, which ends what still runs."""

    @abstractmethod
    def room(self) -> int:
        """Return how many cells could be handed over now."""

    @abstractmethod
    def submit(self, cells: Sequence[Cell]) -> list[Handle]:
        """Hand over `cells`, no more than there is room for; their handles, in order."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Handle]:
        """Return the handles of workers that are gone, each once: as soon as there is one, at most after `seconds`."""

    @abstractmethod
    def close(self) -> None:
        """End all workers and wait until they are gone."""

    def detach(self) -> None:
        """Leave what was handed over to itself, so that `close` ends nothing; only where a queue outlives us."""
        raise NotImplementedError
