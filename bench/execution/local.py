"""Workers as processes of this machine, one cell each."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from bench.errors import BenchError
from bench.execution.worker import Ending, Job, work_in_process
from bench.run_folder import RunFolder

GRACE_SECONDS = 10  # between asking a worker to end and killing it

LOOK_SECONDS = 1.0
"""The most that one look at a worker adds to its silence: whoever looks may have been asleep in between."""


class Handle:
    """A submitted cell: ask `ended` until it says so, then `ending`."""

    def __init__(self, job: Job, process: BaseProcess, told: Connection) -> None:
        self.job, self._process, self._told = job, process, told
        self._folder = RunFolder.of(job.cell, job.results)
        self._beat, self._looked, self._silence, self._hung = 0, time.monotonic(), 0.0, False

    def ended(self) -> bool:
        """Return whether the worker is gone."""
        return self._process.exitcode is not None

    def end_if_silent(self, seconds: float) -> None:
        """Kill the worker if it has given no sign of life for so long. To be called often, as its silence adds up."""
        now, beat = time.monotonic(), self._folder.last_beat()
        self._silence = 0.0 if beat != self._beat else self._silence + min(now - self._looked, LOOK_SECONDS)
        self._beat, self._looked = beat, now
        if self._silence > seconds:
            self._hung = True
            self._process.kill()

    def ending(self) -> Ending:
        """Return how a worker that is gone ended."""
        try:
            if self._told.poll():
                ending: Ending = self._told.recv()
                return ending
        except EOFError:
            pass
        if self._hung:
            return Ending("lost", f"the worker hung: it gave no sign of life for {self._silence / 60:.2g} minutes")
        with suppress(OSError, BenchError):
            if done := self._folder.done():  # it died in its last breath
                return Ending(done["status"], done.get("reason", ""))
        return Ending("lost", f"the worker died: {_cause(self._process.exitcode or 0)}")

    def terminate(self) -> None:
        """Ask the worker to end; what it has committed stays."""
        self._process.terminate()

    def join(self) -> None:
        """Wait until the worker is gone, killing it if it does not end."""
        self._process.join(GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class LocalExecutor:
    """Starts worker processes; on Linux from a server process that has torch loaded, so that a start takes no time."""

    def __init__(self) -> None:
        self._context: ForkServerContext | SpawnContext = get_context("spawn")
        if sys.platform == "linux":
            self._context = get_context("forkserver")
            # The second is what torch imports at an optimiser's first step: a second, once and not for each cell.
            self._context.set_forkserver_preload(["bench.execution.worker", "torch._dynamo"])

    def submit(self, job: Job) -> Handle:
        """Start a worker for `job`."""
        told, tell = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work_in_process, args=(job, tell), name=str(job.cell))
        process.start()
        tell.close()  # the worker has the other copy
        return Handle(job, process, told)


def _cause(code: int) -> str:
    """Say what an exit code means."""
    if code == -9:
        return "killed (signal 9); the system does that when memory runs out"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
