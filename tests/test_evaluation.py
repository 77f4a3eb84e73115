"""Which images the network stays right about, and on which images that is asked."""

import numpy as np
import pytest
import torch

from bench import evaluation
from bench.attacks.pgd import pgd, random_start
from bench.data.batches import to_float
from bench.data.digits import digits, load
from bench.evaluation import attack_identity, balanced_subset, correct_under, evaluate, forward_passes
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.protocol import PGD, AutoAttack, Clean, Threat
from bench.seeding import generator

THREAT = Threat(norm="linf", eps=0.1)


@pytest.fixture(scope="module")
def network():
    """A network after one natural epoch: right about most digits, robust about few."""
    model = build_network(small_cnn, digits, seed=0)
    images, _ = load()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for index in torch.arange(len(images)).split(64):
        loss = torch.nn.functional.cross_entropy(model(to_float(images.pixels[index])), images.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_clean_verdicts_are_the_argmax_in_eval_mode(network, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 64)  # several batches, the last one smaller
    _, test = load()
    network.train()
    ticks = []
    verdicts = correct_under(network, test, Clean(), THREAT, generator(0, "t"), lambda *at: ticks.append(at))
    assert network.training, "the caller's mode is restored"
    assert ticks[-1] == (500, 500)
    with torch.no_grad():
        expected = network.eval()(to_float(test.pixels)).argmax(1) == test.labels
    assert torch.equal(verdicts, expected)
    assert 0.3 < expected.float().mean() < 1


def test_pgd_verdicts_are_those_of_the_attack_itself(network):
    _, test = load()
    part = test.take(torch.arange(100))
    attack = PGD(steps=3, step_size=0.05)
    verdicts = correct_under(network, part, attack, THREAT, generator(0, "t"))
    network.eval()
    x = to_float(part.pixels)
    adversarial = pgd(
        network, x, lambda logits: torch.nn.functional.cross_entropy(logits, part.labels, reduction="sum"),
        threat=THREAT, steps=3, step_size=0.05, start=random_start(x, THREAT, generator(0, "t")),
    )  # fmt: skip
    assert torch.equal(verdicts, network(adversarial).argmax(1) == part.labels)
    clean = correct_under(network, part, Clean(), THREAT, generator(0, "t"))
    assert verdicts.sum() < clean.sum()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_balanced_subset_takes_the_first_of_every_class():
    labels = torch.tensor([0, 0, 1, 0, 2, 1, 2, 2])
    assert balanced_subset(labels, 3).tolist() == [0, 2, 4]
    assert balanced_subset(labels, 5).tolist() == [0, 1, 2, 4, 5]
    assert balanced_subset(labels, 8).tolist() == list(range(8))
    assert balanced_subset(labels, 99).tolist() == balanced_subset(labels, None).tolist() == list(range(8))
    _, test = load()
    assert test.labels[balanced_subset(test.labels, 200)].bincount().tolist() == [20] * 10


def test_outcomes_state_attack_weights_and_subset(network):
    _, test = load()
    outcome = evaluate(network, "abc", test, PGD(steps=2, step_size=0.05, images=50), THREAT)
    again = evaluate(network, "abc", test, PGD(steps=2, step_size=0.05, images=50), THREAT)
    np.testing.assert_array_equal(outcome.correct, again.correct)
    assert len(outcome.correct) == 50
    assert (outcome.title, outcome.weights_sha256) == ("PGD-2", "abc")
    assert outcome.attack["eps"] == 0.1
    assert outcome.attack["precision"] == "fp32"


def test_identities_tell_attacks_apart():
    identities = [
        attack_identity(attack, threat)
        for attack in (Clean(), PGD(), PGD(steps=10), PGD(images=10), AutoAttack(), AutoAttack(batch_size=100))
        for threat in (THREAT, Threat(norm="l2", eps=0.1))
    ]
    assert len({str(identity) for identity in identities}) == 11, "clean accuracy knows no threat"
    assert "pyautoattack" in attack_identity(AutoAttack(), THREAT)["package"]


def test_work_is_counted_in_forward_passes():
    assert forward_passes(Clean()) == 1
    assert forward_passes(PGD(steps=20)) == 41
    assert forward_passes(AutoAttack()) > 10_000


def test_tf32_is_off_while_judging_and_as_before_afterwards():
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        with evaluation.exact_arithmetic():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
