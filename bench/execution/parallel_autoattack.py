"""AutoAttack of one network on several devices: a process for each, which attacks one batch at a time.

The batches of an attack are those of one device, and their results are merged in order. So outcomes, and the states
from which an evaluation resumes, do not depend on the number of devices.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from bench import registry
from bench.attacks.autoattack import BatchResult, CascadeState, Index
from bench.attacks.evaluate import BatchAttack, batch_attack
from bench.config.attacks import AutoAttack
from bench.config.cell import Cell
from bench.data.dataset import dataset_of
from bench.execution.data_identity import identify_data
from bench.execution.distributed import ProcessDied
from bench.execution.final_evaluation import load_network
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder
from bench.utils.device import use_device
from bench.utils.processes import end_with_parent, import_no_working_directory

Key = tuple[str, str, int, int]
"""Checkpoint, attack of the cascade, first image and size of a batch."""


class Devices:
    """The processes that attack batches of `cell`, started when they are needed; use it as a context manager."""

    def __init__(self, cell: Cell, results: Path, devices: Sequence[str], data: Path | None, threads: int) -> None:
        import_no_working_directory()
        context = get_context("spawn")
        free: SimpleQueue[str] = context.SimpleQueue()
        for device in devices:
            free.put(device)
        self._size, self._futures = len(devices), dict[Key, Future[BatchResult]]()
        self._pool = ProcessPoolExecutor(len(devices), context, _start, (free, cell, results, data, threads))

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def attack(self, checkpoint: str, settings: AutoAttack, name: str, state: CascadeState) -> BatchResult:
        """Return the result of the next batch of attack `name` on a checkpoint, while those after it run as well.

        Raises:
            ProcessDied: a process was killed.
            Exception: the error of a process, such as exhausted memory.
        """
        current = (checkpoint, name, state.done, state.batch_size)
        ahead: dict[Key, Future[BatchResult]] = {}
        try:
            for number in range(self._size):
                if len(index := state.batch(number)):
                    key = (checkpoint, name, state.done + number * state.batch_size, state.batch_size)
                    running = self._futures.get(key)
                    ahead[key] = running or self._pool.submit(_attack, checkpoint, settings, name, index)
            self._futures = ahead  # others belong to a batch size that was too large
            return ahead.pop(current).result()
        except BrokenProcessPool as error:
            raise ProcessDied("a process of AutoAttack died, perhaps because memory ran out") from error


# --- in each of the processes ----------------------------------------------------------------------------------------


def _start(free: SimpleQueue[str], cell: Cell, results: Path, data: Path | None, threads: int) -> None:
    """Take a device and what all batches need; errors are those of the first batch."""
    end_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    _Process.device, _Process.threads = free.get(), threads
    _Process.cell, _Process.results, _Process.data = cell, results, data


class _Process:
    """What `_start` received."""

    device: str
    threads: int
    cell: Cell
    results: Path
    data: Path | None


def _attack(checkpoint: str, settings: AutoAttack, name: str, index: Index) -> BatchResult:
    return _prepared(checkpoint, settings)(name, index)


@lru_cache(1)
def _prepared(checkpoint: str, settings: AutoAttack) -> BatchAttack:
    """Return the attack of batches on a checkpoint, which is loaded here, with the test images."""
    cell, device = _Process.cell, torch.device(_Process.device)
    for plugin in cell.plugins:
        registry.load_plugin(Path(plugin))
    use_device(device, _Process.threads)
    dataset, folder = dataset_of(cell.protocol.dataset), RunFolder.of(cell, _Process.results)
    splits = dataset.splits(_Process.data)
    identify_data(cell, folder, splits)  # the files may have changed since the worker read them
    model = load_network(cell, dataset, Checkpoints(folder.checkpoints).load(checkpoint), device)
    model.register_forward_pre_hook(lambda *_: folder.heartbeat())
    return batch_attack(model, splits.test.to(device), settings, cell.protocol.threat, folder.heartbeat)
