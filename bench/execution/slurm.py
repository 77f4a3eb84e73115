"""Workers as jobs of Slurm, submitted as arrays through submitit.

A job that is preempted or reaches its time limit is requeued, and resumes from its run folder. The states of all jobs
come from one call of `squeue`; submitit itself calls `sacct`, which clusters without accounting lack. The result of a
worker is a record in `results/slurm`; nothing there is unpickled here.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import stat
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.config.cell import Cell
from bench.errors import BenchError, DamagedFile
from bench.execution.executor import Executor, ExecutorSettings, Handle, Paths, job_of
from bench.execution.slurm_commands import check_seen, largest_array, last_line, queue, request, slurm, state_of
from bench.execution.worker import Job, WorkerResult, work
from bench.storage.run_folder import CellStatus
from bench.utils.files import read_record, write_record

try:
    import submitit
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
except ImportError:
    raise BenchError("--executor slurm needs submitit: pip install 'robust-overfitting-bench[slurm]'") from None

log = logging.getLogger(__name__)

QUEUE_SECONDS = 10.0  # between two calls of squeue: administrators of clusters dislike more of them

CANCEL_SECONDS = 90  # to wait for the end of cancelled jobs; Slurm kills them after its KillWait, usually 30

TIMEOUTS = 100
"""How often a job that reaches its time limit is requeued."""


@dataclass(frozen=True)
class Task:
    """The task of a job. A requeued job starts it again, and it resumes from the run folder."""

    job: Job
    folder: Path

    def __call__(self) -> None:
        """Run the cell, and write its result."""
        path = _result_path(self.folder, submitit.JobEnvironment().job_id)
        path.unlink(missing_ok=True)  # of an earlier start
        number = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        signal.signal(number, partial(_leave, signal.getsignal(number)))
        logger = logging.getLogger("submitit")
        logger.handlers.clear()  # it logs into the run's log, while the cell runs
        result = work(self.job)
        logger.setLevel(logging.WARNING)
        write_record(path, result._asdict())

    def checkpoint(self) -> DelayedSubmission:
        """Return the task to run when the job starts again."""
        return DelayedSubmission(self)


def _leave(requeue: Any, number: int, frame: object) -> None:
    """Requeue the job, as submitit does; if that fails, end this process: it is not the cell's fault."""
    try:
        requeue(number, frame)
    except Exception as error:
        log.exception("the job could not be requeued")
        raise SystemExit(1) from error


def _result_path(folder: Path, task: str) -> Path:
    return folder / f"{task}_ending.json"


def _array(task: str) -> str:
    """Return the number of a task's array, or of a job without an array."""
    return task.partition("_")[0]


class SlurmHandle(Handle):
    """A job, or a task of an array; `task`: its number in Slurm, such as 17 or 17_3."""

    queues = True

    def __init__(self, job: Job, task: str, folder: Path) -> None:
        super().__init__(job)
        self.task, self._folder, self._log = task, folder, folder / f"{task}_0_log.err"

    def waits(self) -> None:
        """Note that the job waits in the queue, perhaps again, and sends no heartbeat."""
        self.started, self._silence = False, 0.0

    def kill(self) -> None:
        slurm("scancel", self.task)

    def _reported(self) -> WorkerResult | None:
        with suppress(OSError, DamagedFile, KeyError, ValueError):
            record = read_record(_result_path(self._folder, self.task))
            return WorkerResult(CellStatus(record["status"]), record["reason"])
        state, _ = state_of(self.task)
        # Slurm forgets a task of an array that never started.
        if not self._hung and (state == "CANCELLED" or (state == "gone" and not self._log.exists())):
            return WorkerResult(CellStatus.INTERRUPTED, f"job {self.task} was cancelled")
        return None

    def _cause(self) -> str:
        state, code = state_of(self.task)
        cause = f"job {self.task} is {state}, exit code {code}"
        try:
            text = self._log.read_text(errors="replace")
        except OSError:
            return f"{cause}, and left no log; its node may not see {self._folder}"
        errors = [line for line in text.splitlines() if "error" in line.lower()]
        return "; ".join([cause, *(f"{line:.200}" for line in errors[-1:])])


class SlurmExecutor(Executor):
    """Submits cells to Slurm, which runs as many at a time as it has room for, or `jobs` of each array.

    A cell that an earlier run has queued is not submitted again. `close` ends only what this executor submitted.
    """

    def __init__(self, settings: ExecutorSettings, paths: Paths) -> None:
        """Check whether Slurm would accept the jobs; nothing is submitted or written.

        Raises:
            BenchError: as `request` does.
        """
        self._request, self._jobs, self._settings = request(settings), settings.jobs, settings
        self._paths = Paths(paths.results.absolute(), paths.data and paths.data.absolute())
        self._folder = self._paths.results / "slurm"
        self._running: dict[str, SlurmHandle] = {}
        self._submitted: set[str] = set()
        self._answers, self._asked, self._seen = True, 0.0, False

    def room(self) -> int:
        return 2**31 if self._answers else 0

    def submit(self, cells: Sequence[Cell]) -> list[Handle]:
        """Submit `cells` in as few arrays as the cluster allows.

        Raises:
            BenchError: Slurm refuses them or does not answer, or its nodes do not see the results folder.
        """
        if not cells:
            return []
        tasks = self._queued()
        new, size = [cell for cell in cells if cell.fingerprint not in tasks], largest_array()
        with self._request.undisturbed():
            for start in range(0, len(new), size):
                tasks |= self._submit_array(new[start : start + size])
        handles = [SlurmHandle(self._job(cell), tasks[cell.fingerprint], self._folder) for cell in cells]
        self._running |= {handle.task: handle for handle in handles}
        return [*handles]

    def _job(self, cell: Cell) -> Job:
        return job_of(cell, self._paths, self._request.devices, self._request.threads, self._settings)

    def _queued(self) -> dict[str, str]:
        """Return the jobs of this results folder that wait or run, by the fingerprints of their cells."""
        listed = queue()
        if listed is None:
            raise BenchError("Slurm does not answer; rerun the same command when it does")
        # By the script: another cluster with the same folder, or a reinstalled one, may give the same numbers.
        ours = {task for task, job in listed.items() if Path(job.script).parent == self._folder}
        queued: dict[str, str] = {}
        for array in {*map(_array, ours)}:
            with suppress(OSError, DamagedFile):  # a driver was killed while it submitted; submit again
                cells = read_record(self._cells_path(array))
                queued |= {cell: task for task, cell in cells.items() if task in ours}
        return queued

    def _cells_path(self, array: str) -> Path:
        return self._folder / f"{array}_cells.json"

    def _submit_array(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Submit `cells`, and return their jobs by their fingerprints."""
        _make_private(self._folder)
        if not self._seen:
            check_seen(self._folder, self._request)
            self._seen = True
        methods = {cell.method.name for cell in cells}
        submitter = submitit.SlurmExecutor(self._folder, max_num_timeout=TIMEOUTS)
        submitter.update_parameters(
            job_name="/".join([cells[0].suite, *(methods if len(methods) == 1 else ())]),
            time=self._request.minutes,
            wckey=None,
            array_parallelism=self._jobs or len(cells),
            setup=[f"export OMP_NUM_THREADS={self._request.threads}"],  # for libraries that read it at start
            srun_args=self._request.flags("cpus_per_task"),  # which srun does not take over from sbatch since 22.05
            additional_parameters=self._request.options,
        )
        try:
            with redirect_stderr(io.StringIO()):  # to which submitit prints what it also raises
                jobs = submitter.submit_array([Task(self._job(cell), self._folder) for cell in cells])
        except (FailedJobError, FailedSubmissionError) as error:
            raise BenchError(f"Slurm refuses the jobs: {last_line(str(error))}") from None
        array = _array(jobs[0].job_id)
        self._submitted.add(array)
        tasks = {job.job_id: cell.fingerprint for job, cell in zip(jobs, cells, strict=True)}
        write_record(self._cells_path(array), tasks)
        return {cell: task for task, cell in tasks.items()}

    def wait(self, seconds: float) -> list[Handle]:
        pause = self._asked + QUEUE_SECONDS - time.monotonic()
        if pause > seconds or not self._running:
            time.sleep(seconds)
            return []
        time.sleep(max(pause, 0))
        listed, self._asked = queue(), time.monotonic()
        if self._answers != (listed is not None):
            self._answers = listed is not None
            log.warning("Slurm answers again" if self._answers else "Slurm does not answer; its jobs keep running")
        if listed is None:
            return []
        for task in self._running.keys() & listed.keys():
            if listed[task].state not in {"RUNNING", "COMPLETING"}:
                self._running[task].waits()
        return [self._running.pop(task) for task in [*self._running] if task not in listed]

    def detach(self) -> None:
        """Leave the submitted cells to the queue: `close` does not end them."""
        self._running.clear()
        self._submitted.clear()

    def close(self) -> None:
        arrays, self._submitted = self._submitted, set()
        self._running.clear()
        if not arrays:
            return
        slurm("scancel", *sorted(arrays))
        until = time.monotonic() + CANCEL_SECONDS
        while (listed := queue()) is None or arrays & {*map(_array, listed)}:
            if time.monotonic() > until:
                log.warning("jobs are still in the queue; end them with: scancel %s", " ".join(sorted(arrays)))
                return
            time.sleep(1)


def _make_private(folder: Path) -> None:
    """Create a folder that only its owner can write to: submitit keeps pickles there, which the jobs execute.

    Raises:
        BenchError: it cannot be created, or another user owns it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise BenchError(f"{folder} must be owned by you, since jobs execute its content")
        folder.chmod(0o700)
    except OSError as error:
        raise BenchError(f"the folder {folder} cannot be created: {error.strerror}") from error
