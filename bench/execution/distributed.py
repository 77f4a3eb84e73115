"""Data-parallel training of one cell: one process for each device, started by torch's launcher.

The worker locks the run folder, starts the processes and waits; the first of them writes into the folder. If one ends,
all end: none is restarted, none outlives the worker, and the worker raises the first error.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bench import registry
from bench.config.cell import Cell
from bench.data.dataset import dataset_of
from bench.data.extra import load_splits
from bench.errors import BenchError
from bench.execution.data_identity import identify_data
from bench.storage.run_folder import RunFolder
from bench.training.trainer import Trainer
from bench.utils.device import out_of_memory, peak_memory, use_device
from bench.utils.distributed import ProcessGroup
from bench.utils.processes import end_with_parent, import_no_working_directory

log = logging.getLogger(__name__)

SUM_TIMEOUT = timedelta(days=7)
"""Of a sum over all processes. It is long since the first one writes files meanwhile; the driver notices a hang."""

GRACE_SECONDS = 10  # for the launcher to determine which process ended first


class ProcessDied(Exception):
    """A training process died without an error message."""


class _Abandoned(Exception):
    """Another process has ended, so that this one cannot continue."""


def check_devices(cells: Iterable[Cell], devices: int) -> None:
    """Raise BenchError if one of `cells` cannot be trained on so many devices."""
    for cell in cells:
        batch, method = cell.protocol.training.batch_size, cell.method.name
        if devices == 1 or cell.network is not None:
            continue
        if batch % devices:
            raise BenchError(
                f"a batch of {batch} images cannot be cut into {devices} equal parts; "
                "change 'devices' in the suite's execution"
            )
        # Not inherited: what a subclass adds may not be valid for parts of a batch.
        if not vars(registry.METHODS.get(method)).get("data_parallel"):
            raise BenchError(
                f"method '{method}' cannot train on several devices; remove 'devices' from the suite's execution"
            )


def train_together(cell: Cell, results: Path, devices: Sequence[str], data: Path | None, threads: int) -> int:
    """Train `cell` on all `devices`, resuming from its run folder, which the caller has locked.

    Returns:
        The highest peak memory of a process on its device, in bytes.

    Raises:
        BenchError: the cell cannot be trained on so many devices.
        ProcessDied: a process was killed.
        Exception: the first error of a process, such as `Diverged`.
    """
    # Imported here, since not every build of torch has them.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_devices([cell], len(devices))
    import_no_working_directory()
    context = get_context("spawn")
    errors: SimpleQueue[Exception] = context.SimpleQueue()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=len(devices),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # the disk may be full
    )
    try:
        with _restored_signal_handlers():
            peaks: dict[int, int] = elastic_launch(config, _train_part)(cell, results, devices, data, threads, errors)
    except SignalException as error:  # the launcher has ended the processes; raise the signal again
        signal.raise_signal(error.sigval)
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        if not errors.empty():
            raise errors.get() from None
        _, failure = error.get_first_failure()
        raise ProcessDied(f"a training process died: {exit_cause(failure.exitcode)}") from None
    return max(peaks.values())


@contextmanager
def _restored_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces."""
    kept = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def exit_cause(code: int) -> str:
    """Return the meaning of a process's exit code; negative ones are signals."""
    if code == -signal.SIGKILL:
        return "killed (signal 9), probably because memory ran out"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# --- in each of the processes ----------------------------------------------------------------------------------------


def _train_part(
    cell: Cell,
    results: Path,
    devices: Sequence[str],
    data: Path | None,
    threads: int,
    errors: SimpleQueue[Exception],
) -> int:
    """Train on this process's part of every batch, and return its peak memory in bytes.

    An error is sent through `errors`, which needs no disk; then the process ends. It also ends when the worker dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher may end it with SIGINT while it waits for the others
    end_with_parent()
    rank = int(os.environ["RANK"])
    level, layout = logging.INFO if rank == 0 else logging.WARNING, f"%(asctime)s %(levelname)s [{rank}] %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=layout, force=True)
    try:
        for plugin in cell.plugins:
            registry.load_plugin(Path(plugin))
        device = torch.device(devices[rank])
        use_device(device, threads)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=SUM_TIMEOUT)
        dataset, group = dataset_of(cell.protocol.dataset), ProcessGroup(rank, len(devices), _add)
        splits, folder = load_splits(cell.protocol, dataset, data), RunFolder.of(cell, results)
        identify_data(cell, folder, splits)  # the files may have changed since the worker read them
        Trainer(cell, dataset, splits.to(device), folder, device, group).run()
        dist.destroy_process_group()
        return peak_memory(device)
    except _Abandoned as error:
        log.warning("another process has ended: %s", error)
        time.sleep(GRACE_SECONDS)  # the launcher ends this process, once it has noticed
    except Exception as error:
        log.exception("failed")
        errors.put(_portable(error))
    os._exit(1)  # at once: an orderly exit may wait forever


def _add(tensor: Tensor) -> None:
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise _Abandoned(str(error)) from error


def _portable(error: Exception) -> Exception:
    """Return `error`, or a RuntimeError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
