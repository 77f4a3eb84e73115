"""The trained network of a run, as exports take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bench.config.cell import EVALUATED, Cell
from bench.data.dataset import Dataset, dataset_of
from bench.errors import BenchError
from bench.models.description import NetworkDescription, describe_network
from bench.storage.checkpoints import Checkpoints, Entry
from bench.storage.find import find_run
from bench.storage.run_folder import RunFolder
from bench.training.load import load_checkpoint, recorded_cell


@dataclass(frozen=True)
class TrainedNetwork:
    """A checkpoint of a run that has ended, with its network on the CPU in eval mode, frozen."""

    folder: RunFolder
    cell: Cell
    checkpoint: str
    entry: Entry
    dataset: Dataset
    network: nn.Module

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the tensors of the network, in the usual layout."""
        state = self.network.state_dict()
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    def write_safetensors(self, path: Path) -> None:
        """Write the tensors into a safetensors file, with the metadata that libraries of hubs expect."""
        path.write_bytes(save(self.tensors(), {"format": "pt"}))

    def describe(self) -> NetworkDescription:
        """Return the description that rebuilds the network. Raises BenchError: there is none."""
        params = self.cell.method.params
        architecture = params["model"] if self.cell.network else self.cell.protocol.model
        try:
            return describe_network(self.network, architecture, self.dataset.classes, self.dataset.shape)
        except BenchError as error:
            raise BenchError(f"{self.folder.path.name}: {error}") from error


def trained_network(run: str | Path, checkpoint: str | None = None, results: Path = Path("results")) -> TrainedNetwork:
    """Return the network of a run.

    Args:
        run: a run folder, or the beginning of its name below `results`, or of its cell's fingerprint.
        checkpoint: best, best_on_test or last; None: best, or of a network that was only evaluated its one.
        results: the results folder.

    Raises:
        NothingMeasured: there is no such run.
        BenchError: as `load_network`, or the run has not ended.
        DamagedFile: the weights are missing, or a file of the run is not what was written.
    """
    folder = find_run(run, results)
    cell = recorded_cell(folder)
    if not folder.status().is_final:
        raise BenchError(f"run '{folder.path.name}' has not ended, so its weights may still change")
    chosen = checkpoint or ("last" if cell.method.name == EVALUATED else "best")
    network = load_checkpoint(folder, cell, chosen).to(memory_format=torch.channels_last)
    entry = Checkpoints(folder.checkpoints).entries[chosen]
    return TrainedNetwork(folder, cell, chosen, entry, dataset_of(cell.protocol.dataset), network)
