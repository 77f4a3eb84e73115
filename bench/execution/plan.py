"""What each cell of a suite still needs, given its run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from bench.config.cell import Cell
from bench.config.corruptions import Corruptions
from bench.config.protocol import Protocol
from bench.config.suite import teachers_of
from bench.data.corrupted import check_corruptions
from bench.data.dataset import dataset_of
from bench.data.extra import extra_images
from bench.errors import BenchError, DamagedFile
from bench.execution.data_identity import DataRoot
from bench.execution.distributed import check_devices
from bench.execution.estimate import Work, work_of
from bench.storage.checkpoints import load_latest_valid
from bench.storage.run_folder import CellStatus, RunFolder
from bench.storage.verify import folder_damage
from bench.training.build import build_without_data
from bench.utils.environment import other_code
from bench.utils.files import fingerprint

log = logging.getLogger(__name__)


class Rerun(StrEnum):
    """Which cells to run."""

    MISSING = "missing"
    """Those that have not ended."""
    FAILED = "failed"
    """Also those that failed or diverged, or whose files are damaged."""
    ALL = "all"
    """Every cell; existing run folders are archived."""


class Action(StrEnum):
    """What is to be done for a cell."""

    SKIP = "skip"
    """Nothing, it has ended."""
    RUN = "run"
    """Start or resume it."""
    RESUME = "resume"
    """Resume it although it failed or diverged."""
    RESTART = "restart"
    """Archive its run folder, which is to be replaced or is too damaged to resume, and start it again."""


@dataclass
class CellState:
    """One cell: what is to be done for it, and how far it is.

    `work` is None for a cell to skip, or if it is unknown: the images must be counted and are not there, or torch
    cannot count the network. `attempts`: how many of its workers were lost. `teachers`: the cells that must finish
    before it can start.
    """

    cell: Cell
    folder: RunFolder
    status: CellStatus
    action: Action
    work: Work | None = None
    reason: str = ""
    attempts: int = 0
    teachers: list[CellState] = field(default_factory=list)

    @property
    def progress(self) -> dict[str, Any]:
        """The position of a running or interrupted cell, as its worker last wrote it; else empty."""
        active = self.status in {CellStatus.RUNNING, CellStatus.STALLED, CellStatus.INTERRUPTED}
        return self.folder.read_progress() if active else {}


def plan(
    cells: Sequence[Cell], results: Path, rerun: Rerun = Rerun.MISSING, *, data: Path | None = None, devices: int = 1
) -> list[CellState]:
    """Return the state of each cell, given what the results folder holds.

    Teachers of cells to run come before those cells. One that is not among `cells` is never trained again if it has
    finished.

    Args:
        data: root folder of the datasets, read only to count the images of datasets without a fixed number, and to
            compare them with those of runs.
        devices: of each cell.

    Raises:
        BenchError: an incomplete run was started with other code, a run used other data, a method refuses the network
            or its parameters, or it cannot train on so many devices.
    """
    works: dict[Protocol, Work | None] = {}
    states: dict[str, CellState] = {}
    chosen, built, root = {cell.fingerprint: cell for cell in cells}, set(), DataRoot(data)

    def add(cell: Cell) -> CellState:
        if cell.fingerprint not in states:
            others = Rerun.MISSING if rerun is Rerun.ALL else rerun
            state = _state(cell, results, rerun if cell.fingerprint in chosen else others, root)
            if state.action is not Action.SKIP:
                needed = [teacher for teacher, _ in teachers_of(cell).values()]
                state.teachers = [add(chosen.get(teacher.fingerprint, teacher)) for teacher in needed]
            states[cell.fingerprint] = state
        return states[cell.fingerprint]

    for cell in cells:
        add(cell)
    for state in states.values():
        cell = state.cell
        if state.action is Action.SKIP:
            continue
        if cell.protocol not in works:
            works[cell.protocol] = work_of(cell.protocol, data)
        state.work = works[cell.protocol]
        key = (cell.protocol.fingerprint, cell.method.name, fingerprint(cell.method.params))
        if key not in built:  # so that a method refuses its parameters before anything runs
            built.add(key)
            try:
                build_without_data(cell, dataset_of(cell.protocol.dataset), torch.device("cpu"))
            except BenchError as error:
                raise BenchError(f"method '{cell.method.label}': {error}") from error
    check_devices([state.cell for state in states.values() if state.action is not Action.SKIP], devices)
    return list(states.values())


def plan_evaluation(cell: Cell, results: Path, data: Path | None = None) -> CellState:
    """Return the state of a cell that is only evaluated: one that failed resumes, one that finished is kept.

    Raises:
        BenchError: the cell was evaluated on other data.
    """
    state = _state(cell, results, Rerun.FAILED, DataRoot(data))
    state.work = Work(training=0, tracking=0, final=1)
    return state


def _state(cell: Cell, results: Path, rerun: Rerun, data: DataRoot) -> CellState:
    folder = RunFolder.of(cell, results)
    try:
        status = folder.status()
    except DamagedFile:  # done.json cannot be read
        status = CellStatus.FAILED
    if rerun is Rerun.FAILED and status is CellStatus.FINISHED and folder_damage(folder):
        status = CellStatus.FAILED
    action = _action(folder, status, rerun)
    if action in {Action.RUN, Action.RESUME}:
        _check_code(cell, folder)
    if action is not Action.RESTART:
        data.check(cell, folder)
    return CellState(cell, folder, status, action)


def _check_code(cell: Cell, folder: RunFolder) -> None:
    """Raise BenchError if the run was started with other code than this; older versions did not record theirs."""
    with suppress(OSError, DamagedFile):
        environment = folder.cell()["environment"]
        if environment.get("code") and (code := other_code(environment, cell.plugin_digests())):
            raise BenchError(
                f"{folder.path} was started with {code}; restore that code to resume, or run it from the start with "
                "--rerun all"
            )


def _action(folder: RunFolder, status: CellStatus, rerun: Rerun) -> Action:
    if rerun is Rerun.ALL and status is not CellStatus.NEW:
        return Action.RESTART
    if not status.is_final:
        return Action.RUN
    if rerun is not Rerun.FAILED or status is CellStatus.FINISHED:
        return Action.SKIP
    try:
        load_latest_valid(folder)
    except DamagedFile:
        return Action.RESTART
    return Action.RESUME


def check_data(states: Sequence[CellState], root: Path | None) -> None:
    """Check that the images of the cells to run exist, before anything starts; only extra data are read.

    Files of a dataset that are not read are named in a warning.

    Raises:
        NotFound, BenchError: as `Dataset.locate`, `Dataset.select`, `extra_images` and `check_corruptions` do.
    """
    protocols = {state.cell.protocol for state in states if state.action is not Action.SKIP}
    for protocol in protocols:
        dataset = dataset_of(protocol.dataset)
        extra_images(protocol, dataset, root)
        for final in protocol.evaluation.final:
            if isinstance(final, Corruptions):
                check_corruptions(final, dataset, root)
    for settings in {protocol.dataset for protocol in protocols}:
        dataset = dataset_of(settings)
        located = dataset.locate(root)
        dataset.select(located)
        if sentence := located.not_read():
            log.warning("%s; see `bench data check`", sentence)
