"""Training of one cell by several processes, one on each device, under torch's own launcher.

The worker starts them, holds the run folder for them, and waits; the first of them writes into it. They live and die
together: none is replaced, none outlives the worker, and what one of them raises, the worker raises.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bench import registry
from bench.config.cell import Cell
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.storage.run_folder import RunFolder
from bench.training.trainer import Trainer
from bench.utils.device import out_of_memory, peak_memory, use_device
from bench.utils.distributed import ProcessGroup
from bench.utils.processes import import_no_working_directory

log = logging.getLogger(__name__)

PATIENCE = timedelta(days=7)
"""With the others, in a sum over all: the first writes files meanwhile. Who hangs is for the driver to see."""

GRACE_SECONDS = 10  # for the launcher to find who ended first


class ProcessDied(Exception):
    """A training process ended without a word, and the others with it."""


class _Abandoned(Exception):
    """Another process has ended, which is why this one cannot go on."""


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
        # Of the class itself: what a subclass adds may not hold for parts of a batch.
        if not vars(registry.METHODS.get(method)).get("data_parallel"):
            raise BenchError(
                f"method '{method}' cannot train on several devices; remove 'devices' from the suite's execution"
            )


def train_together(cell: Cell, results: Path, devices: Sequence[str], data: Path | None, threads: int) -> int:
    """Train `cell` on all `devices`, from wherever its run folder stands, which the caller holds.

    Returns:
        The peak memory in bytes of the process that took most, on its device.

    Raises:
        BenchError: the cell cannot be trained on so many devices.
        ProcessDied: a process was killed.
        Exception: whatever was raised first in one of them, such as `Diverged`.
    """
    # Here, since not every build of torch has them.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_devices([cell], len(devices))
    import_no_working_directory()
    context = get_context("spawn")
    told: SimpleQueue[Exception] = context.SimpleQueue()
    held, holding = context.Pipe(duplex=False)
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
        with _signal_handlers_kept():
            peaks: dict[int, int] = elastic_launch(config, _train_part)(
                cell, results, devices, data, threads, told, held
            )
    except SignalException as error:  # the launcher has ended the processes; now as if it had not been there
        signal.raise_signal(error.sigval)
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        if not told.empty():
            raise told.get() from None
        _, failure = error.get_first_failure()
        raise ProcessDied(f"a training process died: {exit_cause(failure.exitcode)}") from None
    finally:
        holding.close()
    return max(peaks.values())


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Take back the signals that the launcher takes."""
    kept = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def exit_cause(code: int) -> str:
    """Say what the exit code of a process means; negative ones are signals."""
    if code == -signal.SIGKILL:
        return "killed (signal 9); the system does that when memory runs out"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# --- in each of the processes ----------------------------------------------------------------------------------------


def _train_part(
    cell: Cell,
    results: Path,
    devices: Sequence[str],
    data: Path | None,
    threads: int,
    told: SimpleQueue[Exception],
    held: Connection,
) -> int:
    """Train on this process's part of every batch, and return its peak memory in bytes.

    What it raises goes through `told`, which needs no disk; the process then ends. `held` breaks when the worker dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the launcher may end it with, while it waits for the others
    threading.Thread(target=_end_with, args=(held,), daemon=True).start()
    rank = int(os.environ["RANK"])
    level, layout = logging.INFO if rank == 0 else logging.WARNING, f"%(asctime)s %(levelname)s [{rank}] %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=layout, force=True)
    try:
        for plugin in cell.plugins:
            registry.load_plugin(Path(plugin))
        device = torch.device(devices[rank])
        use_device(device, threads)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        dataset, group = dataset_of(cell.protocol.dataset), ProcessGroup(rank, len(devices), _add)
        splits = dataset.splits(data).to(device)
        Trainer(cell, dataset, splits, RunFolder.of(cell, results), device, group).run()
        dist.destroy_process_group()
        return peak_memory(device)
    except _Abandoned as error:
        log.warning("another process has ended: %s", error)
        time.sleep(GRACE_SECONDS)  # the launcher ends this one, when it has found that
    except Exception as error:
        log.exception("failed")
        told.put(_portable(error))
    os._exit(1)  # at once: what an orderly end waits for may never come


def _end_with(held: Connection) -> None:
    """End this process when the other end of `held` is closed."""
    try:
        held.recv()
    except EOFError:
        os._exit(1)


def _add(tensor: Tensor) -> None:
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise _Abandoned(str(error)) from error


def _portable(error: Exception) -> Exception:
    """Return `error`, or what can be sent in its place."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
