"""Trained networks, from the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from bench import registry
from bench.config.cell import Cell
from bench.data.dataset import dataset_of
from bench.errors import BenchError, DamagedFile
from bench.storage.checkpoints import Checkpoints
from bench.storage.find import find_run
from bench.training.build import build_evaluated


def load_network(
    run: str | Path, checkpoint: str = "best", *, results: Path = Path("results"), device: str = "cpu"
) -> nn.Module:
    """Return the trained network of a run, in eval mode with frozen parameters.

    It takes images [n, channels, height, width] in [0, 1] and returns logits [n, classes]; it normalises the images
    itself.

    Args:
        run: a run folder, or the beginning of its name below `results`, or of its cell's fingerprint.
        checkpoint: best, best_on_test or last.
        results: the results folder.
        device: where the network is to be: cpu, cuda or cuda:N.

    Raises:
        NothingMeasured: there is no such run.
        BenchError: several runs begin so, the run has no such checkpoint, its method, dataset or architecture is not
            registered (a plug-in must be loaded first: `bench.load_plugin`), or it is a run of an external model.
        DamagedFile: a file of the run is not what was written.
    """
    folder = find_run(run, results)
    record = folder.cell()
    try:
        cell = Cell.model_validate(record["cell"])
    except (KeyError, ValidationError) as error:
        raise DamagedFile(f"{folder.path / 'cell.json'} does not describe a cell of this version") from error
    if cell.network is not None:
        raise BenchError(f"run '{folder.path.name}' evaluated an external model; load it from {cell.network.source}")
    if cell.plugins and cell.method.name not in registry.METHODS.names():
        files = ", ".join(cell.plugins)
        raise BenchError(f"method '{cell.method.name}' comes from a plug-in; call bench.load_plugin first ({files})")
    checkpoints = Checkpoints(folder.checkpoints)
    available = sorted(set(checkpoints.entries) - {"resume"})
    if checkpoint not in available:
        known = ", ".join(available) or "none yet"
        raise BenchError(f"run '{folder.path.name}' has no checkpoint '{checkpoint:.40}'; it has {known}")
    weights = checkpoints.load(checkpoint)
    return build_evaluated(cell, dataset_of(cell.protocol.dataset), weights, torch.device(device))
