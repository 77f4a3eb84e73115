import copy

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters
from bench.utils.rng import generator


def test_n_fgsm_leaves_the_ball(start, first_batch, trained):
    method = start("n_fgsm", dtype=torch.float64)
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model)
    noise = torch.empty_like(batch.images).uniform_(-0.2, 0.2, generator=generator(0, "attack"))
    x = (batch.images + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), batch.labels), x)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1).detach()
    with frozen_parameters(method.model):
        found = method.perturb(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert 0.2 < (found - batch.images).abs().max() <= 0.3 + 1e-12
    assert method.params.training_radius == 3
    assert start("n_fgsm", noise=0.1, step=0.2).params.training_radius == 1


@pytest.mark.parametrize("random_start", [True, False])
def test_fgsm_takes_one_long_step_from_a_random_start(start, first_batch, trained, follows, random_start):
    """Whether the protocol's attack has a random start or not."""
    attack = {"name": "pgd", "steps": 3, "step_size": 0.05, "random_start": random_start}
    method = start("fgsm_rs", dtype=torch.float64, attack=attack)
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model)
    noise = torch.empty_like(batch.images).uniform_(-0.1, 0.1, generator=generator(0, "attack"))
    x = (batch.images + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), batch.labels), x)
    expected = (x + 0.125 * gradient.sign()).clamp(batch.images - 0.1, batch.images + 0.1).clamp(0, 1).detach()
    with frozen_parameters(method.model):
        torch.testing.assert_close(method.perturb(batch), expected, rtol=0, atol=1e-12)
    follows(method, lambda network, batch, x: F.cross_entropy(network(x), batch.labels))


def test_fgsm_ends_with_the_weights_before_the_collapse(start, trained):
    method = start("fgsm_rs")
    before = copy.deepcopy(method.model)
    trained(method.model)
    checked = copy.deepcopy(method.model.state_dict())
    method.end_epoch(0)
    assert all(torch.equal(value, checked[name]) for name, value in method.model.state_dict().items())
    assert not method.should_stop([])
    assert 0 <= method.accuracy <= 1
    assert not torch.equal(method.evaluated_model().body.conv1.weight, before.body.conv1.weight)
    sound = copy.deepcopy(method.model.state_dict())
    method.accuracy = 1.0  # as if it had been perfect: a fall
    trained(method.model)
    method.end_epoch(1)
    assert method.should_stop([])
    assert method.accuracy == 1.0
    for name, value in method.evaluated_model().state_dict().items():
        assert torch.equal(value, sound[name]), name
    method.accuracy = 0.0
    method.end_epoch(2)
    assert method.should_stop([])  # for good


@pytest.mark.parametrize(("fall", "stops"), [(0.3, False), (0.1, True)])
def test_only_a_large_fall_ends_training(start, fall, stops):
    method = start("fgsm_rs", fall=fall)
    method.end_epoch(0)
    method.accuracy += 0.2
    method.context.random.start_epoch(0)
    method.end_epoch(1)
    assert method.should_stop([]) == stops
