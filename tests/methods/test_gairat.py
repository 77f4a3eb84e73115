import copy
import math

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters
from bench.utils.rng import generator


def test_the_first_epoch_with_weights(start):
    method = start("gairat", epochs=120)
    for epoch, active in ((0, False), (58, False), (59, True), (119, True)):  # the 60th is epoch 59
        method.begin_epoch(epoch)
        assert method.active == active


def test_the_weights_of_the_formula(start):
    """w = (tanh(-1 + 5 (1 - 2 k / 10)) + 1) / 2, divided by the mean; the values for ten steps."""
    method = start("gairat", attack={"name": "pgd", "steps": 10, "step_size": 0.02})
    correct = torch.arange(11.0)
    each = [(math.tanh(-1 + (5 - k) * 5 / 5) + 1) / 2 for k in range(11)]
    expected = [11 * w / sum(each) for w in each]
    assert method.weigh(correct).tolist() == pytest.approx(expected, rel=1e-4)
    assert method.weigh(torch.full((4,), 10.0)).tolist() == pytest.approx([1] * 4)  # all alike


def test_iterates_are_counted_without_the_last(start, first_batch, trained, follows):
    method = start("gairat", epoch=5, dtype=torch.float64)
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model).eval()
    x = batch.images + torch.empty_like(batch.images).uniform_(-0.1, 0.1, generator=generator(0, "attack", 5))
    x, correct = x.clamp(0, 1), torch.zeros(16)
    for _ in range(3):
        x = x.detach().requires_grad_()
        logits = network(x)
        correct += logits.argmax(1) == batch.labels
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch.labels), x)
        x = (x + 0.05 * gradient.sign()).clamp(batch.images - 0.1, batch.images + 0.1).clamp(0, 1)
    with frozen_parameters(method.model):
        found = method.perturb(batch)
    torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-12)
    assert len(correct.unique()) > 1
    weights = torch.tensor([(math.tanh(-1 + 5 * (1 - 2 * k / 3)) + 1) / 2 for k in correct.tolist()])
    weights = (16 * weights / weights.sum()).double()
    torch.testing.assert_close(method.weights.double(), weights, rtol=1e-4, atol=1e-7)

    method.weights = weights
    follows(
        method,
        lambda network, batch, x: (weights * F.cross_entropy(network(x), batch.labels, reduction="none")).mean(),
    )


def test_before_it_starts_it_is_plain(start, follows):
    follows(start("gairat"), lambda network, batch, x: F.cross_entropy(network(x), batch.labels))


@pytest.mark.parametrize("shift", [-30.0, 1e6])
def test_weights_are_finite_at_the_limits_of_the_shift(start, shift):
    method = start("gairat", shift=shift)
    assert method.weigh(torch.arange(4.0)).isfinite().all()
    with pytest.raises(ValueError, match="shift"):  # all weights would round to zero
        start("gairat", shift=-31)
