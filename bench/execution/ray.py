"""Workers on a Ray cluster. Nodes may come and go; a cell of a lost node starts again on another one.

The driver retries lost cells, as for workers of this machine; Ray's own retries are off.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.config.cell import Cell
from bench.errors import BenchError
from bench.execution.executor import Executor, ExecutorSettings, Handle, Paths, job_of
from bench.execution.worker import Job, WorkerResult, work
from bench.storage.run_folder import CellStatus

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise BenchError("--executor ray needs Ray: pip install 'robust-overfitting-bench[ray]'") from None

REACH_SECONDS = 5  # to wait for an answer of the given address

GRACE_SECONDS = 10  # to wait for cancelled tasks

GONE = (RayError, ConnectionError)

PROBE_SECONDS = 60  # to wait until each node has looked for the results folder


class RayHandle(Handle):
    """A task of the cluster, which is a process of its own."""

    queues = True

    def __init__(self, job: Job, task: ray.ObjectRef[WorkerResult]) -> None:
        super().__init__(job)
        self.task = task

    def kill(self) -> None:
        ray.cancel(self.task, force=True)

    def _result(self) -> WorkerResult | RayError:
        try:
            result: WorkerResult = ray.get(self.task)
            return result
        except RayError as error:
            return error

    def _reported(self) -> WorkerResult | None:
        result = self._result()
        return result if isinstance(result, WorkerResult) else None

    def _cause(self) -> str:
        error = self._result()
        if isinstance(error, RayTaskError):  # errors of the cell itself never leave `work`
            return f"its node cannot run cells: {type(error.cause).__name__}: {error.cause}"
        return f"{type(error).__name__} ({str(error).strip().splitlines()[0]:.200})"


class RayExecutor(Executor):
    """Submits cells to a Ray cluster, which runs as many at a time as it has room for, or `jobs`."""

    def __init__(self, settings: ExecutorSettings, paths: Paths) -> None:
        """Connect to the cluster at `settings.address`, or start one on this machine.

        Raises:
            BenchError: the cluster cannot be reached, has no node that is large enough, or has a node that does not
                see the results folder.
        """
        self._settings, self._jobs, self._paths = (
            settings,
            settings.jobs,
            Paths(paths.results.absolute(), paths.data and paths.data.absolute()),
        )
        self._running: dict[ray.ObjectRef[WorkerResult], RayHandle] = {}
        if settings.gpus or settings.device not in {"auto", "cpu", "cuda"}:
            raise BenchError("Ray numbers GPUs itself: --device auto, cpu or cuda, and no --gpus")
        self._mark = self._paths.results / f".seen-{uuid.uuid4().hex}"
        _connect(settings.address)
        try:
            each = settings.devices or 1
            self._threads = settings.threads or 1
            self.devices, self.needs = _needs(settings, each, self._threads)
            # `work` needs a process of its own (max_calls); the driver restarts lost cells (max_retries).
            self._task = ray.remote(max_calls=1, max_retries=0, **self.needs)(_work_where_seen)
            self._mark.touch()
            _check_sees(self._mark)
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        return 2**31 if self._jobs is None else self._jobs - len(self._running)

    def submit(self, cells: Sequence[Cell]) -> list[Handle]:
        handles: list[Handle] = []
        for cell in cells:
            job = job_of(cell, self._paths, self.devices, self._threads, self._settings)
            with _report_lost_cluster():
                handle = RayHandle(job, self._task.options(name=str(cell)).remote(job, str(self._mark)))
            self._running[handle.task] = handle
            handles.append(handle)
        return handles

    def wait(self, seconds: float) -> list[Handle]:
        tasks = [*self._running]
        if not tasks:
            time.sleep(seconds)
            return []
        with _report_lost_cluster():
            ended, _ = ray.wait(tasks, num_returns=1, timeout=seconds)
            if ended:  # and those that ended with it
                ended, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        return [self._running.pop(task) for task in ended]

    def close(self) -> None:
        with suppress(*GONE):
            for handle in self._running.values():
                handle.kill()
            if self._running:
                ray.wait([*self._running], num_returns=len(self._running), timeout=GRACE_SECONDS)
        self._running.clear()
        self._mark.unlink(missing_ok=True)
        ray.shutdown()


def _work_where_seen(job: Job, mark: str) -> WorkerResult:
    """Run the cell if this node sees the results folder; it may have joined the cluster late."""
    if not _sees(mark):
        reason = f"node {socket.gethostname()} does not see the results folder {job.results}"
        return WorkerResult(CellStatus.LOST, reason)
    return work(job)


@contextmanager
def _report_lost_cluster() -> Iterator[None]:
    """Turn a lost connection to the cluster into a BenchError."""
    try:
        yield
    except GONE as error:
        raise BenchError(f"the Ray cluster has ended: {str(error).strip().splitlines()[0]:.200}") from None


def _connect(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine if `address` is None."""
    if address not in (None, "auto") and not address.startswith("ray://"):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        except (OSError, ValueError) as error:
            raise BenchError(f"no Ray cluster answers at --address {address:.100} ({error})") from None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        signal.signal(signal.SIGTERM, handler)  # which Ray replaces
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BenchError(f"no Ray cluster can be reached at --address {address or 'local'}: {reason:.200}") from None


def _needs(settings: ExecutorSettings, each: int, threads: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the devices of a worker and the resources that it requests; GPUs if the cluster has any."""
    nodes = [node["Resources"] for node in _nodes()]
    on_gpu = settings.device.startswith("cuda") or (
        settings.device == "auto" and any(node.get("GPU", 0) >= each for node in nodes)
    )
    needs: dict[str, Any] = {"num_cpus": threads * each}
    if on_gpu:
        needs["num_gpus"] = each if each > 1 else 1 / settings.jobs_per_gpu
    wanted = {"CPU": needs["num_cpus"], "GPU": needs.get("num_gpus", 0)}
    if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
        raise BenchError(f"no node of the Ray cluster has {wanted['CPU']} CPUs and {wanted['GPU']:g} GPUs for a cell")
    return tuple(f"cuda:{number}" if on_gpu else "cpu" for number in range(each)), needs


def _nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _sees(path: str) -> bool:
    return Path(path).exists()


def _check_sees(mark: Path) -> None:
    """Raise BenchError unless every node sees `mark`, a file in the results folder."""
    for node in _nodes():
        name = f"node {node['NodeManagerHostname']} of the Ray cluster"
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = ray.remote(num_cpus=0)(_sees).options(scheduling_strategy=there)
        try:
            seen = ray.get(look.remote(str(mark)), timeout=PROBE_SECONDS)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BenchError(f"{name} cannot run bench: {reason:.200}") from None
        if not seen:
            raise BenchError(f"{name} does not see the results folder {mark.parent}; name one that all nodes share")
