"""The networks of other cells that a cell uses, from their run folders in the same results folder."""

from __future__ import annotations

import torch
from torch import nn

from bench.config.cell import Cell
from bench.config.suite import teachers_of
from bench.data.dataset import Dataset
from bench.errors import BenchError
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder
from bench.training.build import build_evaluated


def load_teachers(cell: Cell, dataset: Dataset, folder: RunFolder, device: torch.device) -> dict[str, nn.Module]:
    """Return the trained networks that `cell` uses, by the parameter that names each, in eval mode and frozen.

    Raises:
        BenchError: one has not been trained.
        DamagedFile: its weights are not what was written.
    """
    return {
        name: build_evaluated(teacher, dataset, _trained(teacher, folder).load(checkpoint), device)
        for name, (teacher, checkpoint) in teachers_of(cell).items()
    }


def teacher_digests(cell: Cell, folder: RunFolder) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file that `load_teachers` reads; raises BenchError as it does."""
    return {
        name: _trained(teacher, folder).entries[checkpoint].sha256
        for name, (teacher, checkpoint) in teachers_of(cell).items()
    }


def teacher_folder(teacher: Cell, folder: RunFolder) -> RunFolder:
    """Return the run folder of `teacher`, beside that of the cell that uses it."""
    return RunFolder.of(teacher, folder.path.parents[1])


def _trained(teacher: Cell, folder: RunFolder) -> Checkpoints:
    checkpoints = Checkpoints(teacher_folder(teacher, folder).checkpoints)
    if not checkpoints.finished:
        raise BenchError(f"the teacher {teacher} has not been trained; run the suite again to train it first")
    return checkpoints
