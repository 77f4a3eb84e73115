"""Three training steps of a method against float64 code written from its formulas, to 1e-9 (1e-6 for TE).

The reference shares nothing with the methods but the layers of the network: its update is v <- 0.9 v + g + 5e-4 w,
w <- w - 0.1 v, and it mixes running statistics by hand, r <- 0.9 r + 0.1 m for the mean m of each batch that passes in
train mode.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import methods.averaging
from bench.training.step import EpochMetrics, train_step

RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


class Reference:
    """A float64 copy of a network, trained by hand; `passed` holds the batch means of its first normalisation."""

    def __init__(self, network, undecayed=()):
        self.network = copy.deepcopy(network).double().train()
        self.named = dict(self.network.named_parameters())
        self.velocity = {name: torch.zeros_like(value) for name, value in self.named.items()}
        self.undecayed, self.passed = undecayed, []
        self.start = self.network.body.bn1.running_mean.clone()
        self.network.body.bn1.register_forward_pre_hook(
            lambda module, args: self.passed.append(args[0].mean((0, 2, 3)).detach()) if module.training else None
        )

    def __call__(self, images):
        return self.network(images)

    def descend(self, loss):
        gradients = torch.autograd.grad(loss, list(self.named.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(self.named.items(), gradients, strict=True):
                decay = 0 if name in self.undecayed else DECAY
                self.velocity[name] = MOMENTUM * self.velocity[name] + gradient + decay * value
                value -= RATE * self.velocity[name]

    def weights(self):
        return {name: value.detach().clone() for name, value in self.named.items()}

    def running_mean(self):
        mean = self.start
        for one in self.passed:
            mean = 0.9 * mean + 0.1 * one
        return mean


def steps(method, batch, epochs=(None,) * 3):
    """Train three steps, each in the given epoch, and yield after each."""
    for epoch in epochs:
        if epoch is not None:
            method.begin_epoch(epoch)
        train_step(method, batch, method.optimizer, EpochMetrics(torch.device("cpu")))
        yield epoch


def agree(network, reference, tolerance=1e-9):
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.double(), reference[name], rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def begin(start, first_batch, trained):
    """Return a method in float64, without attack unless given, its batch and its reference."""

    def begin(name, undecayed=(), **settings):
        method = start(name, dtype=torch.float64, **{"attack": "none", **settings})
        trained(method.model)
        method.begin_training()  # averages begin with these weights
        batch = first_batch(method)
        return method, batch, Reference(method.model, undecayed)

    return begin


def test_trades_passes_clean_images_twice(begin, monkeypatch):
    method, batch, reference = begin("trades")
    adversarial = (batch.images + 0.05).clamp(max=1)
    monkeypatch.setattr(method, "perturb", lambda _batch: adversarial)
    for _ in steps(method, batch):
        natural = F.cross_entropy(reference(batch.images), batch.labels)
        q, p = reference(adversarial).softmax(1), reference(batch.images).softmax(1)
        reference.descend(natural + 6 * (p * (p / q).log()).sum(1).mean())
    agree(method.model, reference.weights())
    assert len(reference.passed) == 9
    torch.testing.assert_close(method.model.body.bn1.running_mean, reference.running_mean(), rtol=0, atol=1e-9)


def test_te_starts_at_the_90th_epoch(begin):
    method, batch, reference = begin("te", epochs=200)
    ensemble = torch.zeros(16, 10, dtype=torch.float64)
    for epoch in steps(method, batch, epochs=(88, 89, 100)):
        weight = {88: 0.0, 89: 300 * math.exp(-5), 100: 300 * math.exp(-5 * (1 - 11 / 60) ** 2)}[epoch]
        pull = 0.0
        if weight:
            reference.network.eval()
            ensemble = 0.9 * ensemble + 0.1 * reference(batch.images).softmax(1).detach()
            reference.network.train()
        logits = reference(batch.images)
        if weight:
            pull = weight * (logits.softmax(1) - ensemble / ensemble.sum(1, keepdim=True)).square().mean()
        reference.descend(F.cross_entropy(logits, batch.labels) + pull)
    agree(method.model, reference.weights(), tolerance=1e-6)  # the ensemble is kept in fp32


def test_smooth_relu_learns_a_sharpness_for_each_activation_without_decay(begin):
    names = [f"body.relu{i}.raw" for i in (1, 2, 3)]
    method, batch, reference = begin("sat", activation="smooth_relu", undecayed=names)
    for name in names:

        def formula(_module, args, _output, name=name):
            b = reference.named[name] ** 2
            return torch.where(args[0] > 0, args[0] - torch.log(b * args[0].abs() + 1) / b, 0.0)

        reference.network.get_submodule(name.removesuffix(".raw")).register_forward_hook(formula)
    for _ in steps(method, batch):
        reference.descend(F.cross_entropy(reference(batch.images), batch.labels))
    agree(method.model, reference.weights())
    assert len({round(method.model.get_parameter(name).item(), 12) for name in names}) == 3


def test_awp_after_its_warm_up(begin):
    method, batch, reference = begin("awp", epochs=200, warm_up=0.025)
    for epoch in steps(method, batch, epochs=(4, 5, 6)):
        moved = {}
        if epoch >= 5:
            network = copy.deepcopy(reference.network)
            F.cross_entropy(network(batch.images), batch.labels).backward()
            for name, value in network.named_parameters():
                if value.dim() > 1:
                    moved[name] = 0.01 * value.detach().norm() * value.grad / value.grad.norm()
        with torch.no_grad():
            for name, change in moved.items():
                reference.named[name] += change
        reference.descend(F.cross_entropy(reference(batch.images), batch.labels))
        with torch.no_grad():
            for name, change in moved.items():
                reference.named[name] -= change
    agree(method.model, reference.weights())


def plain(method, batch, reference, epochs):
    """Train plainly for three steps; return the weights and the running means after none, one, two and three."""
    found = [(reference.weights(), reference.start)]
    for _ in steps(method, batch, epochs):
        reference.descend(F.cross_entropy(reference(batch.images), batch.labels))
        found.append((reference.weights(), reference.running_mean()))
    agree(method.model, found[-1][0])
    return found


def mixed(found, decays):
    """Return a <- d a + (1 - d) w over the steps, of weights and running means."""
    weights, mean = found[0]
    for decay, (new, new_mean) in zip(decays, found[1:], strict=True):
        weights = {name: decay * old + (1 - decay) * new[name] for name, old in weights.items()}
        mean = decay * mean + (1 - decay) * new_mean
    return weights, mean


def test_ema_of_rebat_remembers_a_share_of_training(begin):
    method, batch, reference = begin("ema", epochs=200)  # four batches an epoch
    decay = 1 - 1 / (1000 / 76_400 * 200 * 4)
    weights, mean = mixed(plain(method, batch, reference, (104, 105, 106)), (0, decay, decay))
    agree(method.average, weights)
    torch.testing.assert_close(method.average.body.bn1.running_mean, mean, rtol=0, atol=1e-9)


def test_ema_of_deepmind_keeps_less_at_first(begin):
    method, batch, reference = begin("ema", recipe="deepmind", decay=0.15)
    found = plain(method, batch, reference, (0, 0, 0))
    agree(method.average, mixed(found, (1 / 10, 0.15, 0.15))[0])  # 2/11 is more
    torch.testing.assert_close(method.average.body.bn1.running_mean, found[-1][1], rtol=0, atol=1e-9)


def test_fomo_counts_all_steps(begin):
    method, batch, reference = begin("fomo", epochs=200, consolidation=1.0)
    decay = 1 - 1 / (5000 / 76_400 * 200 * 4)  # 0.98, not yet reached
    found = plain(method, batch, reference, (0, 0, 0))
    assert decay > 3 / 4
    agree(method.stable, mixed(found, (1 / 2, 2 / 3, 3 / 4))[0])
    torch.testing.assert_close(method.stable.body.bn1.running_mean, found[-1][1], rtol=0, atol=1e-9)


def test_swa_averages_equally_from_five_epochs_after_the_drop(begin, monkeypatch):
    method, batch, reference = begin("swa", epochs=200)
    monkeypatch.setattr(methods.averaging, "recompute_statistics", lambda *_: None)  # its batches are float32
    found = []
    for epoch in steps(method, batch, (104, 105, 106)):
        reference.descend(F.cross_entropy(reference(batch.images), batch.labels))
        found.append(reference.weights())
        method.end_epoch(epoch)
    agree(method.average, {name: (found[1][name] + found[2][name]) / 2 for name in found[0]})


def test_the_clean_pass_follows_every_step(begin, monkeypatch):
    method, batch, reference = begin("pgd_at", training={"clean_pass": "after_step"})
    adversarial = (batch.images + 0.05).clamp(max=1)
    monkeypatch.setattr(method, "perturb", lambda _batch: adversarial)
    for _ in steps(method, batch):
        reference.descend(F.cross_entropy(reference(adversarial), batch.labels))
        with torch.no_grad():
            reference(batch.images)
    agree(method.model, reference.weights())
    assert len(reference.passed) == 6
    torch.testing.assert_close(method.model.body.bn1.running_mean, reference.running_mean(), rtol=0, atol=1e-9)
    assert all(parameter.grad is None for parameter in method.model.parameters())
