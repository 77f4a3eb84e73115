"""What the reference checks share: a method of a small cell, ready to train, and its first batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from bench.config.cell import Cell
from bench.config.suite import Suite, resolve_method
from bench.data.batches import Batch, TrainingBatches
from bench.data.dataset import dataset_of
from bench.data.datasets.digits import digits
from bench.training.build import build_method
from bench.training.method import Method
from bench.utils.rng import RngStreams

CPU = torch.device("cpu")
ATTACK = {"name": "pgd", "steps": 3, "step_size": 0.05}


@pytest.fixture
def start() -> Callable[..., Method[Any]]:
    """Return a method in epoch `epoch` of a training: `start("fomo", epochs=200, epoch=100, fraction=0.5)`."""

    def start(
        name: str,
        *,
        epochs: int = 6,
        epoch: int = 0,
        model: str = "small_cnn",
        attack: object = ATTACK,
        dtype: torch.dtype = torch.float32,
        training: Mapping[str, object] = MappingProxyType({}),
        **params: Any,
    ) -> Method[Any]:
        suite = Suite.model_validate(
            {
                "name": "reference",
                "dataset": {"name": "digits", "validation": 200},
                "model": model,
                "threat": {"norm": "linf", "eps": 0.1},
                "training": {"epochs": epochs, "batch_size": 16, "attack": attack, **training},
                "methods": [{"name": name, "params": params}],
            }
        )
        cell = Cell(protocol=suite.protocol, method=resolve_method(suite, suite.methods[0]), seed=0, suite="reference")
        images = dataset_of(cell.protocol.dataset).splits(None).train.take(torch.arange(64))
        random = RngStreams(0)
        method = build_method(cell, digits, TrainingBatches(images, 16, (), random), random, CPU)
        method.model.to(dtype).train()
        random.start_epoch(epoch)
        method.begin_epoch(epoch)
        return method

    return start


@pytest.fixture
def first_batch() -> Callable[[Method[Any]], Batch]:
    """Return the first batch of a method's epoch, in the precision of its network."""

    def first_batch(method: Method[Any]) -> Batch:
        batch = next(iter(method.context.batches))
        dtype = next(method.model.parameters()).dtype
        return Batch(batch.images.to(dtype), batch.labels, batch.index)

    return first_batch


@pytest.fixture
def follows(first_batch) -> Callable[..., None]:
    """Compare the loss and the first two updates of a method with those of a formula, in float64.

    `formula(network, batch, adversarial)` is the loss, with every pass that counts; the images are the batch's, moved
    by 0.1. `perturbation(network, batch, adversarial)` returns what is added to the named weights before the loss, and
    withdrawn after the update. Weights and batch statistics after each update agree up to `rtol` and `atol`.
    """

    def follows(
        method: Method[Any],
        formula: Callable[..., torch.Tensor],
        rtol: float = 1e-9,
        *,
        atol: float | None = None,
        perturbation: Callable[..., dict[str, torch.Tensor]] = lambda *_: {},
    ) -> None:
        method.model.double()
        batch, network = first_batch(method), copy.deepcopy(method.model)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        adversarial = (batch.images + 0.1).clamp(max=1)
        for _ in range(2):
            change = perturbation(network, batch, adversarial)
            with torch.no_grad():
                for name, value in change.items():
                    network.get_parameter(name).add_(value)
            expected = formula(network, batch, adversarial)
            optimizer.zero_grad()
            expected.backward()
            optimizer.step()
            with torch.no_grad():
                for name, value in change.items():
                    network.get_parameter(name).sub_(value)
            loss, logits = method.backward(batch, adversarial)
            assert logits.shape == (16, 10)
            method.optimizer.step()
            method.optimizer.zero_grad()
            method.after_step()
            assert loss.item() == pytest.approx(expected.item(), rel=rtol)
            for (name, ours), theirs in zip(
                method.model.state_dict().items(), network.state_dict().values(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol or rtol / 10, msg=name)

    return follows


@pytest.fixture
def trained() -> Callable[[nn.Module], nn.Module]:
    """Move the weights and batch statistics of a network a little, so that nothing is at its initial value."""

    def trained(network: nn.Module) -> nn.Module:
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in (*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())):
                if value.dim() != 4 or value.shape[0] != 1:  # the normalisation of the input stays
                    value.mul_(1 + 0.2 * torch.rand(value.shape, generator=random)).add_(0.02)
        return network

    return trained
