import pytest
import torch
from torch import nn

from bench.config.protocol import Training
from bench.data.datasets.digits import digits
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.testing.conformance import keeping_trainer_of, same, small_cell
from bench.training.optimizers import make_optimizer


def optimizer(parameters, **settings):
    return make_optimizer(parameters, Training(epochs=1, optimizer=settings).optimizer)


def test_weight_decay_acts_on_every_parameter():
    network = build_network(small_cnn, digits, 0)
    made = optimizer(network.parameters(), lr=0.3, momentum=0.8, weight_decay=0.01, nesterov=True)
    assert type(made) is torch.optim.SGD
    (group,) = made.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.8, 0.01, True)
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in network.parameters()]


def test_weight_decay_may_leave_out_biases_and_batch_normalisation():
    network = build_network(small_cnn, digits, 0)
    made = optimizer(network.parameters(), weight_decay_on="weights")
    decayed, others = made.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {id(parameter) for parameter in decayed["params"]} == {id(layer.weight) for layer in layers}
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_the_defaults_of_adam_are_those_of_torch():
    weights = [torch.ones(2, requires_grad=True)]
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        made = optimizer(weights, name=name)
        assert type(made) is kind
        assert made.defaults == {**kind(weights).defaults, "fused": True}


def lamb_by_hand(weights, gradients, *, lr, weight_decay, steps):
    """Two moments without bias correction, then a step of the length lr · min(norm of the tensor, 10)."""
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for _ in range(steps):
        for weight, gradient, mean, square in zip(weights, gradients, means, squares, strict=True):
            mean.copy_(0.9 * mean + 0.1 * gradient)
            square.copy_(0.999 * square + 0.001 * gradient**2)
            update = mean / (square.sqrt() + 1e-6) + weight_decay * weight
            norm = weight.norm().item()
            share = min(norm, 10) / update.norm().item() if norm and update.norm() else 1
            weight -= lr * share * update
    return weights


def test_lamb_against_its_formulas():
    random = torch.Generator().manual_seed(0)
    shapes, scales = [(3, 4), (5,), (2, 2), (4,), (3,)], [1, 0.1, 30, 0, 0]  # short, long, at zero
    start = [
        s * torch.randn(shape, generator=random, dtype=torch.float64) for shape, s in zip(shapes, scales, strict=True)
    ]
    gradients = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    gradients[-1].zero_()
    expected = lamb_by_hand([w.clone() for w in start], gradients, lr=0.05, weight_decay=0.1, steps=3)
    weights = [weight.clone().requires_grad_() for weight in start]
    made = optimizer(weights, name="lamb", lr=0.05, weight_decay=0.1)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    for _ in range(3):
        made.step()
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), other, rtol=1e-12, atol=1e-14)
    assert weights[2].norm() > 10


@pytest.mark.parametrize(
    ("name", "augmentation"),
    [
        ("lamb", ["flip", "mixup"]),
        *(pytest.param(name, steps, marks=pytest.mark.slow) for name, steps in (("adam", []), ("adamw", ["cutmix"]))),
    ],
)
def test_a_resumed_training_has_the_state_of_the_optimiser(tmp_path, name, augmentation):
    cell = small_cell("pgd_at")
    training = Training.model_validate(
        {
            **cell.protocol.training.model_dump(),
            "epochs": 2,
            "optimizer": name,
            "schedule": "cosine",
            "augmentation": augmentation,
        }
    )
    cell = cell.model_copy(update={"protocol": cell.protocol.model_copy(update={"training": training})})
    whole = keeping_trainer_of(cell, tmp_path / "whole")
    whole.run()
    keeping_trainer_of(cell, tmp_path / "parts").run(1)
    second = keeping_trainer_of(cell, tmp_path / "parts")
    second.run()
    assert same(second.kept, whole.kept[1:])
    assert whole.history[1]["lr"] == pytest.approx(0)
