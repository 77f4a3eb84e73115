import copy
import math

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters
from bench.data.batches import Batch
from bench.utils.rng import generator


def test_the_ramp_of_the_weight(start):
    method = start("te", epochs=200)
    for epoch in (0, 88):
        method.begin_epoch(epoch)
        assert not method.active
    for epoch in (89, 119, 148, 149, 199):  # the released code's 90, 120, ..., since it counts from 1
        method.begin_epoch(epoch)
        assert method.active
        expected = 300 * math.exp(-5 * (1 - min((epoch + 1 - 90) / 60, 1)) ** 2)
        assert method.weight == pytest.approx(expected)
    for epoch, weight in ((89, 2.02), (100, 10.69)):  # as the released code computes them
        method.begin_epoch(epoch)
        assert method.weight == pytest.approx(weight, abs=0.005)
    assert start("te").params.model_dump() == {"momentum": 0.9, "weight": 300.0, "start": 0.45, "ramp": 0.3}


def probabilities(network, images):
    return copy.deepcopy(network).double().eval()(images.double()).softmax(1).detach()


def test_the_ensemble_is_each_samples_average_of_clean_predictions(start, first_batch, trained):
    method = start("te", epochs=20, epoch=9)
    batch = first_batch(method)
    with frozen_parameters(method.model):
        method.perturb(batch)
        first = probabilities(method.model, batch.images)
        expected = 0.1 * first
        torch.testing.assert_close(method.ensemble[batch.index].double(), expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(method.target.double(), first, rtol=1e-5, atol=1e-7)
        trained(method.model)
        method.perturb(batch)
    expected = 0.9 * expected + 0.1 * probabilities(method.model, batch.images)
    torch.testing.assert_close(method.ensemble[batch.index].double(), expected, rtol=1e-5, atol=1e-7)
    target = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(method.target.double(), target, rtol=1e-5, atol=1e-7)
    others = torch.ones(len(method.ensemble), dtype=torch.bool)
    others[batch.index] = False
    assert (method.ensemble[others] == 0).all()
    assert method.ensemble.shape == (64, 10)


def test_loss_and_attack_share_one_objective(start, first_batch, monkeypatch):
    method = start("te", epochs=20, epoch=12)
    batch = first_batch(method)
    seen = {}
    monkeypatch.setattr(method, "attack", lambda _batch, objective, **kwargs: seen.update(kwargs, objective=objective))
    method.perturb(batch)
    assert seen["batch_norm"] == "eval"
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(method, "model", lambda _images: logits)
    weight = 300 * math.exp(-5 * (1 - (13 - 9) / 6) ** 2)
    squares = (logits.double().softmax(1) - method.target.double()).square()
    expected = F.cross_entropy(logits.double(), batch.labels).item() + weight * squares.mean().item()
    loss, returned = method.loss(batch, batch.images)
    assert returned is logits
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert seen["objective"](logits).item() == pytest.approx(16 * expected, rel=1e-5)


def test_the_whole_attack(start, first_batch, trained):
    method = start("te", epochs=20, epoch=15)
    method.model.double()
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model).eval()
    target = network(batch.images).softmax(1).detach()  # the first prediction, normalised
    x = batch.images + torch.empty_like(batch.images).uniform_(-0.1, 0.1, generator=generator(0, "attack", 15))
    x = x.clamp(0, 1)
    for _ in range(3):
        x = x.detach().requires_grad_()
        logits = network(x)
        value = F.cross_entropy(logits, batch.labels) + 300 * (logits.softmax(1) - target).square().mean()
        (gradient,) = torch.autograd.grad(value, x)
        x = (x + 0.05 * gradient.sign()).clamp(batch.images - 0.1, batch.images + 0.1).clamp(0, 1).detach()
    with frozen_parameters(method.model):
        found = method.perturb(batch)
    agreeing = ((found - x).abs() < 1e-6).double().mean()
    assert agreeing > 0.99  # the target is kept in fp32, so a gradient near zero may change its sign


def test_before_it_starts_it_is_plain(start, first_batch):
    method = start("te", epochs=20, epoch=7)
    batch = first_batch(method)
    with frozen_parameters(method.model):
        method.perturb(batch)
    assert (method.ensemble == 0).all()
    loss, logits = method.loss(batch, batch.images)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item())


def test_a_sample_is_known_by_its_index(start, first_batch):
    method = start("te", epochs=20, epoch=12)
    batch = first_batch(method)
    reversed_ = Batch(batch.images.flip(0), batch.labels.flip(0), batch.index.flip(0))
    with frozen_parameters(method.model):
        method.perturb(batch)
        before = method.ensemble.clone()
        method.perturb(reversed_)
    torch.testing.assert_close(method.ensemble, before * 1.9, rtol=1e-5, atol=1e-7)
