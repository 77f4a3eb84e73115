"""What a suite still needs: the state of each cell on disk, and the work that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import torch

from bench.attacks.autoattack import check_classes
from bench.config.attacks import AutoAttack
from bench.config.cell import Cell
from bench.config.protocol import Protocol
from bench.data.dataset import dataset_of
from bench.errors import BenchError, DamagedFile
from bench.execution.distributed import check_devices
from bench.execution.estimate import Work, work_of
from bench.storage.checkpoints import load_latest_valid
from bench.storage.run_folder import RunFolder, Status
from bench.storage.verify import folder_damage
from bench.training.build import build_without_data
from bench.utils.files import fingerprint

Action = Literal["skip", "run", "reopen", "anew"]
"""skip: it has ended; run: start or continue it; reopen: continue though it failed; anew: set the old folder aside,
as it is to be run again or is too damaged to be continued."""


class Rerun(StrEnum):
    """Which cells to run again."""

    MISSING = "missing"
    """Those that have not ended."""
    FAILED = "failed"
    """Those too that failed or diverged, or whose files are damaged."""
    ALL = "all"
    """Every one; the old folders are kept aside."""


@dataclass(frozen=True)
class Planned:
    """One cell, its folder, how far it got, what is to be done about it, and how much work that is in all.

    `work` is None for a cell to skip, and where it cannot be told: the images must be counted and are not there, or the
    network cannot be.
    """

    cell: Cell
    folder: RunFolder
    status: Status
    action: Action
    work: Work | None


def plan(
    cells: Sequence[Cell],
    results: Path,
    rerun: Rerun = Rerun.MISSING,
    *,
    data: Path | None = None,
    devices: int = 1,
) -> list[Planned]:
    """Return what is to be done for each cell, given what the results folder holds.

    Images are looked for below `data` only where no more than they can tell their number. `devices`: of each cell.

    Raises:
        BenchError: a final attack is not defined for the data, a method refuses the network or its parameters, or it
            cannot train on so many devices.
    """
    for protocol in {cell.protocol for cell in cells}:
        check_attacks(protocol)
    works: dict[Protocol, Work | None] = {}
    planned, built = [], set()
    for cell in cells:
        folder = RunFolder.of(cell, results)
        status = _status(folder, rerun)
        action = _action(folder, status, rerun)
        if action != "skip" and cell.protocol not in works:
            works[cell.protocol] = work_of(cell.protocol, data)
        planned.append(Planned(cell, folder, status, action, None if action == "skip" else works[cell.protocol]))
        key = (cell.protocol.fingerprint, cell.method.name, fingerprint(cell.method.params))
        if action != "skip" and key not in built:  # whatever the method refuses, it refuses before anything
            built.add(key)
            try:
                build_without_data(cell, dataset_of(cell.protocol.dataset), torch.device("cpu"))
            except BenchError as error:
                raise BenchError(f"method '{cell.method.label}': {error}") from error
    check_devices([item.cell for item in planned if item.action != "skip"], devices)
    return planned


def plan_evaluation(cell: Cell, results: Path) -> Planned:
    """Return what is to be done for a cell that is only evaluated: one that failed goes on, one that finished is kept.

    Raises:
        BenchError: a final attack is not defined for the data.
    """
    check_attacks(cell.protocol)
    folder = RunFolder.of(cell, results)
    status = _status(folder, Rerun.FAILED)
    return Planned(cell, folder, status, _action(folder, status, Rerun.FAILED), Work(training=0, tracking=0, final=1))


def check_attacks(protocol: Protocol) -> None:
    """Raise BenchError if a final attack is not defined for the data."""
    for attack in protocol.evaluation.final:
        if isinstance(attack, AutoAttack):
            check_classes(dataset_of(protocol.dataset).classes, attack.cascade)


def _status(folder: RunFolder, rerun: Rerun) -> Status:
    """Return how far a run got; one with damage is looked for only where failed ones are to run again."""
    try:
        status = folder.status()
    except DamagedFile:  # how it ended is not known any more
        return "failed"
    return "failed" if rerun is Rerun.FAILED and status == "finished" and folder_damage(folder) else status


def _action(folder: RunFolder, status: Status, rerun: Rerun) -> Action:
    if rerun is Rerun.ALL and status != "new":
        return "anew"
    if status in {"new", "interrupted"}:
        return "run"
    if rerun is not Rerun.FAILED or status == "finished":
        return "skip"
    try:
        load_latest_valid(folder)
    except DamagedFile:
        return "anew"
    return "reopen"


def check_data(planned: Sequence[Planned], root: Path | None) -> None:
    """Look whether the images that the cells to run need are there, before anything starts; none is decoded.

    Raises:
        NotFound, BenchError: as `Dataset.locate` and `Dataset.choose` do.
    """
    for settings in {item.cell.protocol.dataset for item in planned if item.action != "skip"}:
        dataset = dataset_of(settings)
        dataset.select(dataset.locate(root))
