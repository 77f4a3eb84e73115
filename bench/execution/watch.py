"""The states of the cells in a results folder, from any machine that sees the folder."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from bench.config.cell import Cell
from bench.errors import BenchError, DamagedFile
from bench.execution.plan import Action, CellState
from bench.storage.run_folder import CellStatus, RunFolder, run_folders

STALLED_SECONDS = 120
"""Without a heartbeat, after which a cell counts as stalled. There is one for each batch and forward pass, and clocks
of machines differ by less."""


class Watcher:
    """The states of the cells in a results folder, or of `cells` alone."""

    def __init__(self, results: Path, cells: list[Cell] | None = None) -> None:
        self._results, self._search = results, cells is None
        self._states: dict[Path, CellState] = {}
        for cell in cells or []:
            self._add(cell, RunFolder.of(cell, results))

    def states(self) -> list[CellState]:
        """Return the current states: in the suite's order, or by the names of the run folders.

        Each is queued (not started), running, interrupted, stalled, or has ended.
        """
        if self._search:
            self._find()
        for state in self._states.values():
            if state.status is not CellStatus.FINISHED:  # one that failed may be resumed
                self._update(state)
        states = list(self._states.values())
        return sorted(states, key=lambda state: state.folder.path.name) if self._search else states

    def _add(self, cell: Cell, folder: RunFolder) -> None:
        self._states[folder.path] = CellState(cell, folder, CellStatus.QUEUED, Action.RUN)

    def _find(self) -> None:
        for folder in run_folders(self._results):
            if folder.path not in self._states:
                try:
                    self._add(Cell.model_validate(folder.cell()["cell"]), folder)
                except (OSError, DamagedFile, KeyError, ValidationError):  # not a run folder
                    continue

    @staticmethod
    def _update(state: CellState) -> None:
        try:
            result = state.folder.result()
        except (BenchError, OSError) as error:
            state.status, state.reason = CellStatus.FAILED, str(error)
            return
        if result is not None:
            state.status, state.reason = CellStatus(result["status"]), result.get("reason", "")
        elif (state.folder.path / "cell.json").exists():
            heartbeat = state.folder.last_heartbeat()
            silence = time.time() - heartbeat / 1e9
            state.status, state.reason = CellStatus.RUNNING, ""
            if state.progress.get("interrupted"):
                state.status = CellStatus.INTERRUPTED
            elif silence >= STALLED_SECONDS:
                state.status = CellStatus.STALLED
                state.reason = f"no heartbeat for {silence / 60:.0f} minutes" if heartbeat else "no heartbeat"
