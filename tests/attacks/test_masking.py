"""Masked gradients raise a flag under every attack, networks without them raise none, and no outcome changes."""

import copy

import pytest
import torch
from torch import nn

from bench.attacks.evaluate import correct_under, evaluate
from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Threat
from bench.data.batches import to_float
from bench.data.datasets.digits import digits, load
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.utils.rng import generator

LINF, L2 = Threat(norm="linf", eps=0.08), Threat(norm="l2", eps=0.3)
ATTACK = PGD(steps=5, step_size=0.03)
_, TEST = load()


@pytest.fixture(scope="module")
def network():
    """A network after three natural epochs."""
    model = build_network(small_cnn, digits, seed=0)
    images, _ = load()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for index in [*torch.arange(len(images)).split(64)] * 3:
        loss = torch.nn.functional.cross_entropy(model(to_float(images.pixels[index])), images.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


class Masked(nn.Module):
    """What `function` makes of a network and images."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x):
        return self.function(self.network, x)


def signs(model, attack=ATTACK, threat=LINF):
    return evaluate(model, "weights", TEST, attack, threat).detail["doubts"]


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (FGSM(), LINF),
        (ATTACK, LINF),
        (PGD(steps=5, step_size=0.03, restarts=2, iterate="worst"), LINF),
        (CW(steps=5, step_size=0.03), LINF),
        (FGSM(), L2),
        (PGD(steps=5, step_size=0.1), L2),
        (CW(steps=5, step_size=0.1), L2),
    ],
    ids=lambda setting: setting.title if hasattr(setting, "title") else setting.norm,
)
def test_a_network_without_masked_gradients_raises_none(network, attack, threat):
    assert signs(network, attack, threat) == []


def test_an_attack_that_cannot_reach_the_edge_of_the_ball_raises_a_flag(network):
    assert any("a single step, FGSM" in line for line in signs(network, PGD(steps=2, step_size=0.01), LINF))


ROBUST = "of 128 robust images checked"


@pytest.mark.parametrize(
    ("function", "sign"),
    [
        (lambda network, x: 1000 * network(x), "have no gradient where it starts"),
        (lambda network, x: 1000 * network(x), "are broken by PGD on rescaled logits"),
        (lambda network, x: 1000 * network(x), "are broken by PGD on the margin"),
        (lambda network, x: 0.01 * network(x), "are broken by PGD on rescaled logits"),
        (lambda network, x: 1e-6 * network(x), "have such small logits"),
        (lambda network, x: network(x) ** 5, "are broken by PGD on the margin"),
        (lambda network, x: (30 * network(x)).softmax(1).clamp(1e-6, 1).log(), "have no gradient where it starts"),
        (lambda network, x: network((15 * x).round() / 15), "have no gradient where it starts"),
        (lambda network, x: network((15 * x).round() / 15), "are broken by random noise of the same radius"),
        (lambda network, x: network(torch.where(x.sum((1, 2, 3), True) % 1 < 0.1, x, x.detach())), "have no gradient"),
        (lambda network, x: network(x) + 0 * network(x).sub(network(x).detach()).sqrt(), "have no gradient"),
        (lambda network, x: network(x.detach()) + 1e-6 * x.flatten(1)[:, :10], "change their margin otherwise"),
        (lambda network, x: network(x + 0.01 * torch.sin(2000 * x)), "change their margin otherwise"),
        (lambda network, x: network(2 * x.detach() - x), "change their margin otherwise"),
    ],
    ids=["large", "large, rescaled", "large, margin", "small", "smaller", "power", "clamped", "rounded",
         "rounded, noise", "stopped", "nan", "detached", "shattered", "reversed"],
)  # fmt: skip
def test_masked_gradients_raise_a_flag(network, function, sign):
    found = signs(Masked(network, function))
    assert any(ROBUST in line and sign in line for line in found), found


def test_quantised_weights_raise_a_flag(network):
    """Their logits are in the thousands: what int8 weights give if nobody scales them back."""
    quantised = copy.deepcopy(network)
    weights = {
        name: (127 * value / value.abs().max()).round() if name.endswith("weight") and value.dim() > 1 else value
        for name, value in network.state_dict().items()
    }
    quantised.load_state_dict(weights)
    assert any("have no gradient where it starts" in line for line in signs(quantised))


def test_noise_and_probabilities_raise_a_flag(network):
    noisy = Masked(network, lambda network, x: network(x) + torch.randn(len(x), 10))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    outcome = evaluate(noisy, "weights", TEST, ATTACK, LINF)
    after = torch.rand(1)
    torch.manual_seed(0)
    correct = correct_under(noisy, TEST, ATTACK, LINF, generator(0, "evaluation"))
    assert outcome.correct.tolist() == correct.tolist()
    assert torch.rand(1) == after, "the checks leave the global random state as it was"
    torch.set_rng_state(state)
    assert outcome.detail["doubts"][0] == "the network is not deterministic"
    assert "the network returns probabilities, not logits" in signs(nn.Sequential(network, nn.Softmax(1)))


def test_autoattack_is_compared_with_other_losses_but_may_meet_zero_gradients(network):
    part = AutoAttack(attacks=("apgd-ce",), images=60)
    large = signs(Masked(network, lambda network, x: 1000 * network(x)), part)
    assert any("are broken by PGD on the margin" in line for line in large)
    assert not any("no gradient" in line for line in large)
    without_gradient = Masked(network, lambda network, x: network(x).detach())
    assert signs(without_gradient, AutoAttack(attacks=("square",), images=10), Threat(norm="linf", eps=0.01)) == []
