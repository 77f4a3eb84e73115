"""Trackers that follow the cells of a suite while they run, each in a thread, so that none slows or ends the driver."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

from bench.errors import DamagedFile
from bench.execution.plan import CellState
from bench.storage.run_folder import CellStatus
from bench.trackers.mirror import Mirror

log = logging.getLogger(__name__)

FOLDER = "trackers"  # in the results folder

INTERVAL_SECONDS = 5.0  # between two looks at the run folders

PATIENCE_SECONDS = 300.0
"""At the end, without progress, after which a tracker is left behind: examples of a large network take minutes."""

INTERRUPTED_SECONDS = 10.0  # the same after an error or Ctrl-C

WAITING = {CellStatus.NEW, CellStatus.QUEUED, CellStatus.LOCKED}
"""The states of cells whose run folder, if any, is not of this run."""


class LiveTrackers:
    """Keeps trackers equal to the run folders of cells; a context manager around `run_suite`.

    A tracker that fails, or hangs at the end, is dropped with a warning.
    """

    def __init__(self, names: Collection[str], results: Path, data: Path | None = None) -> None:
        """`data`: root folder of the datasets. Raises BenchError: a tracker is unknown or not installed."""
        self._threads = [_Thread(Mirror(name, results / FOLDER, data)) for name in dict.fromkeys(names)]

    def watch(self, states: Sequence[CellState]) -> None:
        """Follow the cells of `states`, which the driver updates; returns at once."""
        for thread in self._threads:
            thread.states = states
            if not thread.ident:  # has not been started; not before the driver has opened its database
                thread.start()

    def __enter__(self) -> LiveTrackers:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """Wait until each tracker has recorded everything."""
        patience = PATIENCE_SECONDS if error is None else INTERRUPTED_SECONDS
        for thread in self._threads:
            thread.ending.set()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.1)
                if time.monotonic() - thread.progressed > patience:
                    log.warning(
                        "tracker '%s' does not respond; rerun the same command to record what is missing",
                        thread.mirror.name,
                    )
                    break


class _Thread(threading.Thread):
    def __init__(self, mirror: Mirror) -> None:
        super().__init__(daemon=True, name=f"tracker {mirror.name}")
        self.mirror = mirror
        self.states: Sequence[CellState] = ()
        self.ending = threading.Event()
        self.progressed = time.monotonic()

    def run(self) -> None:
        torch.set_num_threads(1)  # of this thread: the cores are the workers'
        try:
            ended = False
            while not ended:
                ended = self.ending.wait(INTERVAL_SECONDS)
                for state in self.states:
                    self.progressed = time.monotonic()
                    if state.status not in WAITING:
                        with suppress(FileNotFoundError, DamagedFile):  # not begun; the line of an epoch being written
                            self.mirror.update(state.folder)
            self.mirror.close()
        except BaseException as error:
            log.warning("tracker '%s' failed and is disabled: %s: %s", self.mirror.name, type(error).__name__, error)
