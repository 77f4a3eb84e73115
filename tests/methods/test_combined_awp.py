import copy

import pytest
import torch
import torch.nn.functional as F


def kl(clean, adversarial):
    p, q = clean.softmax(1), adversarial.softmax(1)
    return (p * (p / q).log()).sum(1)


def trades(network, batch, adversarial):
    natural = F.cross_entropy(network(batch.images), batch.labels)
    robust, clean = network(adversarial), network(batch.images)  # clean images pass twice
    return natural + 6 * kl(clean, robust).mean()


def mart(network, batch, adversarial):
    clean, robust = network(batch.images), network(adversarial)
    p, q = clean.softmax(1), robust.softmax(1)
    wrong = q.scatter(1, batch.labels[:, None], 0).amax(1)
    boosted = F.cross_entropy(robust, batch.labels) - (1.0001 - wrong).log().mean()
    return boosted + 5 * (kl(clean, robust) * (1.0000001 - p.gather(1, batch.labels[:, None])[:, 0])).mean()


@pytest.mark.parametrize(("name", "formula", "rtol"), [("trades_awp", trades, 1e-9), ("mart_awp", mart, 1e-5)])
def test_two_updates_equal_those_by_hand(start, follows, trained, name, formula, rtol):
    def perturbation(network, batch, adversarial):
        proxy = copy.deepcopy(network)
        formula(proxy, batch, adversarial).backward()
        return {
            key: 0.005 * value.detach().norm() * value.grad / value.grad.norm()
            for key, value in proxy.named_parameters()
            if value.dim() > 1
        }

    method = start(name, dtype=torch.float64, epochs=20, epoch=1)
    trained(method.model)
    follows(method, formula, rtol, perturbation=perturbation)


@pytest.mark.parametrize("name", ["trades_awp", "mart_awp"])
def test_the_first_epochs_perturb_no_weights(start, follows, name):
    method = start(name, epochs=200)
    for epoch, active in ((0, False), (9, False), (10, True)):
        method.begin_epoch(epoch)
        assert method.active == active
    method.begin_epoch(0)
    follows(method, {"trades_awp": trades, "mart_awp": mart}[name], rtol=1e-5)


def test_the_attack_is_that_of_the_other_method(start):
    for name, kind in (("trades_awp", "methods.trades"), ("mart_awp", "methods.mart")):
        assert type(start(name)).perturb.__module__ == kind
