"""What a suite still needs: the state of each cell on disk, and the work that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import torch

from bench.attacks.autoattack import check_classes
from bench.data.dataset import dataset_of
from bench.errors import BenchError, DamagedFile
from bench.execution.estimate import Work, work_of
from bench.protocol import AutoAttack, Protocol
from bench.records import fingerprint
from bench.run_folder import RunFolder, Status
from bench.spec import Cell
from bench.training.trainer import build_without_data

Action = Literal["skip", "run", "reopen", "anew"]
"""skip: it has ended; run: start or continue it; reopen: continue though it failed; anew: set the old folder aside."""


class Rerun(StrEnum):
    """Which cells to run again."""

    MISSING = "missing"
    """Those that have not ended."""
    FAILED = "failed"
    """Those too that failed or diverged."""
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
    cells: Sequence[Cell], results: Path, rerun: Rerun = Rerun.MISSING, *, data: Path | None = None
) -> list[Planned]:
    """Return what is to be done for each cell, given what the results folder holds.

    Images are looked for below `data` only where no more than they can tell their number.

    Raises:
        BenchError: a final attack is not defined for the data, or a method refuses the network or its parameters.
    """
    for protocol in {cell.protocol for cell in cells}:
        if any(isinstance(attack, AutoAttack) for attack in protocol.evaluation.final):
            check_classes(dataset_of(protocol.dataset).classes)
    works: dict[Protocol, Work | None] = {}
    planned, built = [], set()
    for cell in cells:
        folder = RunFolder.of(cell, results)
        try:
            status = folder.status()
        except DamagedFile:  # how it ended is not known any more
            status = "failed"
        action = _action(status, rerun)
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
    return planned


def _action(status: Status, rerun: Rerun) -> Action:
    if rerun is Rerun.ALL and status != "new":
        return "anew"
    if status in {"new", "interrupted"}:
        return "run"
    return "reopen" if rerun is Rerun.FAILED and status in {"failed", "diverged"} else "skip"


def check_data(planned: Sequence[Planned], root: Path | None) -> None:
    """Look whether the images that the cells to run need are there, before anything starts; none is decoded.

    Raises:
        NotFound, BenchError: as `Dataset.locate` and `Dataset.choose` do.
    """
    for settings in {item.cell.protocol.dataset for item in planned if item.action != "skip"}:
        dataset = dataset_of(settings)
        dataset.choose(dataset.locate(root))
