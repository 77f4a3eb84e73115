"""Workers as processes of this machine, one cell each."""

from __future__ import annotations

import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from bench.errors import BenchError
from bench.execution.worker import EXIT_BUSY, Job, work_in_process
from bench.run_folder import RunFolder

BUSY = "another bench run is working on it"

GRACE_SECONDS = 10  # between asking a worker to end and killing it


class Handle:
    """A submitted cell: ask `ended` until it says so, then `fate`."""

    def __init__(self, job: Job, process: BaseProcess) -> None:
        self.job, self._process = job, process

    def ended(self) -> bool:
        """Return whether the worker is gone."""
        return self._process.exitcode is not None

    def fate(self) -> tuple[str, str]:
        """Return (status, reason) of a worker that is gone; a death it could not record itself is recorded for it."""
        code, folder = self._process.exitcode, RunFolder.of(self.job.cell, self.job.results)
        if code == EXIT_BUSY:
            return "busy", BUSY
        reason = f"the worker died: {_cause(code or 0)}"
        try:
            done = folder.done()
            if done is None:
                folder.finish("failed", reason=reason)
                return "failed", reason
        except (OSError, BenchError) as error:
            return "failed", f"{reason}; {error}"
        return done["status"], done.get("reason", "")

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
            self._context.set_forkserver_preload(["bench.execution.worker"])

    def submit(self, job: Job) -> Handle:
        """Start a worker for `job`."""
        process = self._context.Process(target=work_in_process, args=(job,), name=str(job.cell))
        process.start()
        return Handle(job, process)


def _cause(code: int) -> str:
    """Say what an exit code means."""
    if code == -9:
        return "killed (signal 9); the system does that when memory runs out"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
