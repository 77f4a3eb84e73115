import copy
import math

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters
from bench.utils.rng import generator
from methods.mart import mart_loss


def by_hand(clean, adversarial, labels, beta):
    """The loss of MART image by image, in Python's floats."""
    total = 0.0
    for natural, robust, label in zip(clean.tolist(), adversarial.tolist(), labels.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, natural)) for x in natural]
        q = [math.exp(x) / sum(map(math.exp, robust)) for x in robust]
        wrong = max(value for place, value in enumerate(q) if place != label)
        boosted = -math.log(q[label]) - math.log(1.0001 - wrong)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += boosted + beta * divergence * (1.0000001 - p[label])
    return total / len(labels)


@pytest.mark.parametrize("beta", [5.0, 0.0])
def test_the_loss(start, first_batch, trained, beta):
    method = start("mart", beta=beta)
    trained(method.model)
    batch = first_batch(method)
    adversarial = (batch.images + 0.1).clamp(max=1)
    network = copy.deepcopy(method.model).double()
    clean, robust = network(batch.images.double()).detach(), network(adversarial.double()).detach()
    loss, logits = method.loss(batch, adversarial)
    assert loss.item() == pytest.approx(by_hand(clean, robust, batch.labels, beta), rel=1e-5)
    torch.testing.assert_close(logits.double(), robust, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [5.0, 0.0, 1.0])
def test_the_formula_where_outputs_differ_much(beta):
    random = torch.Generator().manual_seed(0)
    clean, adversarial = (3 * torch.randn(8, 10, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, 10, (8,), generator=random)
    found = mart_loss(clean, adversarial, labels, beta).item()
    assert found == pytest.approx(by_hand(clean, adversarial, labels, beta), rel=1e-8)


def test_a_sure_wrong_answer_keeps_the_loss_finite():
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    loss = mart_loss(logits, -logits, torch.tensor([0, 1]), 5.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_attack_raises_the_cross_entropy_in_eval_mode_from_close_by(start, first_batch, trained):
    method = start("mart", dtype=torch.float64)
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model).eval()
    noise = torch.empty_like(batch.images).normal_(std=0.001, generator=generator(0, "attack"))
    x = (batch.images + noise).clamp(0, 1)
    for _ in range(3):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), batch.labels), x)
        x = (x + 0.05 * gradient.sign()).clamp(batch.images - 0.1, batch.images + 0.1).clamp(0, 1).detach()
    with frozen_parameters(method.model):
        found = method.perturb(batch)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_the_published_values(start):
    assert start("mart").params.model_dump() == {"beta": 5.0, "start": 0.001}
