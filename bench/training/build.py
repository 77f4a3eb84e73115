"""A cell's method with its network, optimiser and schedule, and its trained network for the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench import registry
from bench.config.cell import Cell
from bench.config.suite import teachers_of
from bench.data.batches import TrainingBatches
from bench.data.dataset import Dataset, ImageSet
from bench.errors import BenchError
from bench.models.architecture import build_network
from bench.training.lr_schedule import protocol_schedule
from bench.training.method import Context, Method
from bench.training.optimizers import make_optimizer
from bench.utils.rng import RngStreams, derive_seed


def build_method(
    cell: Cell,
    dataset: Dataset,
    batches: TrainingBatches,
    random: RngStreams,
    device: torch.device,
    *,
    initialise: bool = True,
    teachers: Mapping[str, nn.Module] | None = None,
) -> Method[Any]:
    """Return the method of `cell` with its model on `device`, its optimiser and its schedule, ready to train.

    Set `initialise` to False if trained weights are loaded next. Without `teachers`, networks with fresh weights stand
    for those of other cells.

    Raises:
        BenchError: the method rejects the network or its hyperparameters, such as weights that do not fit; a teacher
            has another architecture than the protocol's.
    """
    protocol = cell.protocol
    if teachers is None:
        teachers = {
            name: build_without_data(teacher, dataset, device).evaluated_model().eval().requires_grad_(False)
            for name, (teacher, _) in teachers_of(cell).items()
        }
    context = Context(protocol, dataset.classes, batches, random, device, teachers)
    kind: type[Method[Any]] = registry.METHODS.get(cell.method.name)
    method = kind(kind.Params.model_validate(cell.method.params), context)
    network = build_network(registry.MODELS.get(protocol.model), dataset, derive_seed(cell.seed, "weights"))
    for name, teacher in teachers.items():
        if _shapes(teacher) != _shapes(network):
            raise BenchError(f"the teacher '{name}' has another architecture than {protocol.model}")
    with torch.random.fork_rng(devices=[]):  # a method may draw fresh layers
        torch.manual_seed(derive_seed(cell.seed, "build"))
        built = method.build(network)
        if initialise:
            method.initialise(built)
    method.model = built.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.optimizer = make_optimizer(method.model.parameters(), protocol.training.optimizer, method.no_weight_decay())
    method.lr_schedule = method.schedule(protocol_schedule(protocol.training))
    random.start_epoch(0)
    method.begin_training()
    return method


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def build_without_data(cell: Cell, dataset: Dataset, device: torch.device, *, initialise: bool = True) -> Method[Any]:
    """Return the method of `cell` without training images; raises as `build_method` does."""
    random = RngStreams(cell.seed, device)
    no_images = ImageSet(torch.empty(0, *dataset.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return build_method(cell, dataset, TrainingBatches(no_images, 1, (), random), random, device, initialise=initialise)


def build_evaluated(cell: Cell, dataset: Dataset, weights: dict[str, Any], device: torch.device) -> nn.Module:
    """Return the network of `cell` with `weights`, on `device`, in eval mode with frozen parameters."""
    model = build_without_data(cell, dataset, device, initialise=False).evaluated_model()
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
