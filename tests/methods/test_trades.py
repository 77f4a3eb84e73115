import copy
import math

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters
from bench.utils.rng import generator


def divergence(clean, adversarial):
    """KL(clean ‖ adversarial) of each image, from logits."""
    p, q = clean.softmax(1), adversarial.softmax(1)
    return (p * (p / q).log()).sum(1)


def sign_ascent(images, start, objective, steps, step_size, eps):
    """PGD once more, as one would write it down."""
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(x), x)
        x = x.detach() + step_size * gradient.sign()
        x = torch.min(torch.max(x, images - eps), images + eps).clamp(0, 1)
    return x.detach()


def test_the_attack_raises_the_divergence_in_eval_mode(start, first_batch, trained):
    method = start("trades", dtype=torch.float64)
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model).eval()
    noise = torch.empty_like(batch.images).normal_(std=0.001, generator=generator(0, "attack"))
    clean = network(batch.images).detach()
    expected = sign_ascent(
        batch.images, (batch.images + noise).clamp(0, 1), lambda x: divergence(clean, network(x)).sum(), 3, 0.05, 0.1
    )
    buffers = [buffer.clone() for buffer in method.model.buffers()]
    with frozen_parameters(method.model):
        found = method.perturb(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert all(torch.equal(one, other) for one, other in zip(method.model.buffers(), buffers, strict=True))


@pytest.mark.parametrize("beta", [6.0, 1.0])
def test_the_loss(start, first_batch, trained, beta):
    method = start("trades", beta=beta)
    trained(method.model)
    batch = first_batch(method)
    adversarial = (batch.images + 0.1).clamp(max=1)
    network = copy.deepcopy(method.model).double()
    clean, robust = network(batch.images.double()), network(adversarial.double())
    expected = F.cross_entropy(clean, batch.labels) + beta * divergence(clean, robust).mean()
    loss, logits = method.loss(batch, adversarial)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logits.double(), robust, rtol=1e-4, atol=1e-5)
    expected.backward()
    loss.backward()
    for ours, theirs in zip(method.model.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-6)  # through both outputs


def test_the_published_values(start):
    assert start("trades").params.model_dump() == {"beta": 6.0, "start": 0.001}


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_the_start_stays_inside_the_threat_model(start, first_batch, name):
    method = start(name, start=5.0)
    batch = first_batch(method)
    begun = method.gaussian_start(batch.images, method.params.start)
    assert (begun - batch.images).abs().max() <= 0.1 + 1e-6
    assert begun.min() >= 0
    assert begun.max() <= 1
    close = method.gaussian_start(batch.images.fill_(0.5), 0.001) - 0.5
    assert close.std().item() == pytest.approx(0.001, rel=0.1)
    assert close.mean().abs().item() < 4 * 0.001 / math.sqrt(close.numel())
