"""What the cells in a results folder are doing, as any machine sees it that sees the folder."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from bench.config.cell import Cell
from bench.errors import BenchError, DamagedFile
from bench.execution.driver import CellState
from bench.execution.plan import Planned
from bench.storage.run_folder import ARCHIVED, RunFolder

SILENT_SECONDS = 120
"""After which a cell that gives no sign of life is called silent; it gives one with every batch and forward pass, and
clocks of machines differ by less."""


class Watcher:
    """The states of the cells in a results folder, or of `cells` alone, renewed by `look`."""

    def __init__(self, results: Path, cells: list[Cell] | None = None) -> None:
        self._runs, self._of_suite = results / "runs", cells is not None
        self._states: dict[Path, CellState] = {}
        for cell in cells or []:
            folder = RunFolder.of(cell, results)
            self._states[folder.path] = CellState(Planned(cell, folder, "new", "run", None), "waiting")

    def look(self) -> list[CellState]:
        """Return the states, by name where no suite gives an order.

        `waiting`: not begun; `running`; `silent`: without a sign of life, so that it waits for its next command or is
        lost; or how it ended.
        """
        if not self._of_suite:
            self._find()
        for path, state in self._states.items():
            if state.status != "finished":  # one that failed may be begun again
                self._renew(path, state)
        states = list(self._states.values())
        return states if self._of_suite else sorted(states, key=lambda state: state.planned.folder.path.name)

    def _find(self) -> None:
        for path in self._runs.iterdir() if self._runs.is_dir() else []:
            if path not in self._states and ARCHIVED not in path.name:
                folder = RunFolder(path)
                try:
                    cell = Cell.model_validate(folder.cell()["cell"])
                except (OSError, DamagedFile, KeyError, ValidationError):  # not begun, or not a run's
                    continue
                self._states[path] = CellState(Planned(cell, folder, "interrupted", "run", None), "waiting")

    @staticmethod
    def _renew(path: Path, state: CellState) -> None:
        folder = state.planned.folder
        try:
            done = folder.result()
        except BenchError as error:
            state.status, state.reason = "failed", str(error)
            return
        if done is not None:
            state.status, state.reason = done["status"], done.get("reason", "")
        elif (path / "cell.json").exists():
            beat = folder.last_heartbeat()
            silence = time.time() - beat / 1e9
            state.status = "running" if silence < SILENT_SECONDS else "silent"
            state.reason = f"no sign of life for {silence / 60:.0f} minutes" if beat else "no sign of life"
            if state.status == "running":
                state.reason = ""
