"""Trained networks, from the checkpoints of a run and from hub folders."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from bench import registry
from bench.config.cell import Cell
from bench.data.dataset import dataset_of
from bench.errors import BenchError, DamagedFile
from bench.models.description import CONFIG, load_hub_folder
from bench.models.external import external_description
from bench.storage.checkpoints import Checkpoints
from bench.storage.find import find_run
from bench.storage.run_folder import RunFolder
from bench.training.build import build_evaluated


def load_network(
    run: str | Path, checkpoint: str = "best", *, results: Path = Path("results"), device: str = "cpu"
) -> nn.Module:
    """Return the trained network of a run or of a hub folder, in eval mode with frozen parameters.

    It takes images [n, channels, height, width] in [0, 1] and returns logits [n, classes]; it normalises the images
    itself.

    Args:
        run: a run folder, or the beginning of its name below `results`, or of its cell's fingerprint; or a hub folder.
        checkpoint: best, best_on_test or last, of a run.
        results: the results folder.
        device: where the network is to be: cpu, cuda or cuda:N.

    Raises:
        NothingMeasured: there is no such run.
        BenchError: several runs begin so, the run has no such checkpoint, its method, dataset or architecture is not
            registered (a plug-in must be loaded first: `bench.load_plugin`), it is a run of a network of the zoo or
            of a factory, or the hub folder is invalid.
        DamagedFile: a file of the run is not what was written.
    """
    if (Path(run) / CONFIG).exists():
        network: nn.Module = load_hub_folder(Path(run))
    else:
        folder = find_run(run, results)
        network = load_checkpoint(folder, recorded_cell(folder), checkpoint)
    placed: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def recorded_cell(folder: RunFolder) -> Cell:
    """Return the cell of a run. Raises DamagedFile: the record is damaged, or of another version."""
    record = folder.cell()
    try:
        return Cell.model_validate(record["cell"])
    except (KeyError, ValidationError) as error:
        raise DamagedFile(f"{folder.path / 'cell.json'} does not describe a cell of this version") from error


def load_checkpoint(folder: RunFolder, cell: Cell, checkpoint: str) -> nn.Module:
    """Return the network of a checkpoint of a run on the CPU; see `load_network`."""
    if cell.plugins and cell.method.name not in registry.METHODS.names():
        files = ", ".join(cell.plugins)
        raise BenchError(f"method '{cell.method.name}' comes from a plug-in; call bench.load_plugin first ({files})")
    dataset, described = dataset_of(cell.protocol.dataset), None
    if cell.network is not None:
        described = external_description(cell.method.params, dataset)
        if described is None:
            raise BenchError(
                f"run '{folder.path.name}' evaluated an external model; load it from {cell.network.source}"
            )
    checkpoints = Checkpoints(folder.checkpoints)
    available = sorted(set(checkpoints.entries) - {"resume"})
    if checkpoint not in available:
        known = ", ".join(available) or "none yet"
        raise BenchError(f"run '{folder.path.name}' has no checkpoint '{checkpoint:.40}'; it has {known}")
    weights = checkpoints.load(checkpoint)
    if described is None:
        return build_evaluated(cell, dataset, weights, torch.device("cpu"))
    network = described.build()
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
