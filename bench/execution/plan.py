"""What a suite still needs: the state of each cell on disk, and the work that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import torch

from bench import registry
from bench.attacks.autoattack import check_classes
from bench.data.dataset import Dataset
from bench.errors import BenchError, DamagedFile
from bench.evaluation import evaluated_images, forward_passes
from bench.models.architecture import size_of
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
    """One cell, its folder, how far it got, and what is to be done about it."""

    cell: Cell
    folder: RunFolder
    status: Status
    action: Action


def plan(cells: Sequence[Cell], results: Path, rerun: Rerun = Rerun.MISSING) -> list[Planned]:
    """Return what is to be done for each cell, given what the results folder holds.

    Raises:
        BenchError: a final attack is not defined for the data, or a method refuses the network or its parameters.
    """
    for protocol in {cell.protocol.fingerprint: cell.protocol for cell in cells}.values():
        if any(isinstance(attack, AutoAttack) for attack in protocol.evaluation.final):
            check_classes(registry.DATASETS.get(protocol.dataset.name).classes)
    planned, built = [], set()
    for cell in cells:
        folder = RunFolder.of(cell, results)
        try:
            status = folder.status()
        except DamagedFile:  # how it ended is not known any more
            status = "failed"
        planned.append(Planned(cell, folder, status, _action(status, rerun)))
        key = (cell.protocol.fingerprint, cell.method.name, fingerprint(cell.method.params))
        if planned[-1].action != "skip" and key not in built:  # whatever the method refuses, it refuses before anything
            built.add(key)
            try:
                build_without_data(cell, registry.DATASETS.get(cell.protocol.dataset.name), torch.device("cpu"))
            except BenchError as error:
                raise BenchError(f"method '{cell.method.label}': {error}") from error
    return planned


def _action(status: Status, rerun: Rerun) -> Action:
    if rerun is Rerun.ALL and status != "new":
        return "anew"
    if status in {"new", "interrupted"}:
        return "run"
    return "reopen" if rerun is Rerun.FAILED and status in {"failed", "diverged"} else "skip"


def work(protocol: Protocol) -> dict[str, float]:
    """Estimate the work of one cell in PFLOP: `training`, `tracking` (every epoch) and `final` (all checkpoints).

    Counted in forward passes of the plain PGD-AT recipe: an attack step is a forward and an input gradient (2), an
    update a forward and both gradients (3). Methods that stop early, augment or consult further networks differ;
    AutoAttack is counted as if every image stayed robust.
    """
    dataset: Dataset = registry.DATASETS.get(protocol.dataset.name)
    forward = size_of(registry.MODELS.get(protocol.model), (dataset.classes, *dataset.shape))[1] / 1e15
    training, track = protocol.training, protocol.evaluation.track
    attack_steps = 0 if training.attack.name == "none" else training.attack.steps
    trained = dataset.train_images - protocol.dataset.validation
    tracked = protocol.dataset.validation + (dataset.test_images if track.test else 0)
    final = sum(evaluated_images(attack, dataset) * forward_passes(attack) for attack in protocol.evaluation.final)
    checkpoints = 3 if track.test else 2
    return {
        "training": forward * training.epochs * trained * (2 * attack_steps + 3),
        "tracking": forward * training.epochs * tracked * (2 * track.attack.steps + 2),
        "final": forward * checkpoints * final,
    }
