"""Which images the network stays right about, and on which images that is asked."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bench.attacks import evaluate as evaluation
from bench.attacks.combined import joint_outcome
from bench.attacks.evaluate import (
    attack_identity,
    balanced_subset,
    correct_under,
    evaluate,
    forward_passes,
)
from bench.attacks.outcome import Outcome
from bench.attacks.pgd import margin, pgd, random_start
from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Clean, Threat
from bench.data.batches import to_float
from bench.data.dataset import ImageSet
from bench.data.datasets.digits import load
from bench.testing.recorded_graph import record
from bench.utils.rng import generator

THREAT = Threat(norm="linf", eps=0.1)


@pytest.fixture
def network(digits_network):
    return digits_network


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


@pytest.mark.parametrize(
    "attack", [FGSM(), CW(steps=2, step_size=0.05, restarts=2, iterate="worst")], ids=["fgsm", "cw"]
)
def test_final_attacks_are_captured(network, monkeypatch, attack):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 64)
    monkeypatch.setattr(evaluation, "MIN_CAPTURED_IMAGES", 200)
    test, captures = load()[1].take(torch.arange(200)), []

    def capture(compute, generators):
        captures.append(1)
        return record(compute, generators)

    plain = evaluate(network, "0" * 64, test, attack, THREAT)
    monkeypatch.setattr(evaluation, "capture_on", lambda _device: capture)
    np.testing.assert_array_equal(evaluate(network, "0" * 64, test, attack, THREAT).correct, plain.correct)
    assert captures == [1]


def test_a_captured_attack_returns_the_same_result(network, monkeypatch):
    """Captured on the second whole batch, replayed on it and those after it; the last one is smaller."""
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 64)
    monkeypatch.setattr(evaluation, "MIN_CAPTURED_IMAGES", 320)
    _, test = load()
    done = []

    def capture(compute, generators):
        assert generators == [], "those of a GPU"
        state = random.get_state()
        result = compute()
        random.set_state(state)  # a capture does not run
        done.append("captured")

        def replay():
            result.copy_(compute())
            done.append("replayed")

        return result, replay

    def refuse(_compute, _generators):
        raise RuntimeError("operation not permitted when stream is capturing")

    attack = PGD(steps=3, step_size=0.05)
    plain = correct_under(network, test, attack, THREAT, generator(0, "t"))
    random = generator(0, "t")
    assert torch.equal(correct_under(network, test, attack, THREAT, random, capture=capture), plain)
    assert done == ["captured"] + 6 * ["replayed"]
    assert torch.equal(correct_under(network, test, attack, THREAT, generator(0, "t"), capture=refuse), plain)
    few = test.take(torch.arange(300))
    correct_under(network, few, attack, THREAT, random, capture=capture)
    assert len(done) == 7, "not worth it"


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


# --- other attacks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def part():
    _, test = load()
    return test.take(torch.arange(100))


def verdicts(network, part, attack, threat=THREAT):
    return correct_under(network, part, attack, threat, generator(0, "t"))


@pytest.mark.parametrize("threat", [THREAT, Threat(norm="l2", eps=0.5)], ids=["linf", "l2"])
def test_fgsm_is_one_step_to_the_edge(network, part, threat):
    network.eval()
    x = to_float(part.pixels).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(network(x), part.labels, reduction="sum"), x)
    if threat.norm == "linf":
        step = threat.eps * gradient.sign()
    else:
        step = threat.eps * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = network((x + step).clamp(0, 1)).argmax(1) == part.labels
    found = verdicts(network, part, FGSM(), threat)
    assert torch.equal(found, expected)
    assert found.sum() < verdicts(network, part, Clean(), threat).sum()


def test_the_margin_does_not_wait_for_the_device():
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 2])
    value, replay = record(lambda: margin(labels)(logits), [])
    replay()
    assert value == (2 - 3) + (5 - 1)


def test_cw_raises_the_margin(network, part):
    network.eval()
    x = start = random_start(to_float(part.pixels), THREAT, generator(0, "t"))
    for _ in range(3):
        x = x.detach().requires_grad_()
        logits = network(x)
        others = logits.clone()
        others[torch.arange(100), part.labels] = -1e9
        (gradient,) = torch.autograd.grad((others.max(1)[0] - logits[torch.arange(100), part.labels]).sum(), x)
        x = x + 0.05 * gradient.sign()
        x = torch.min(torch.max(x, to_float(part.pixels) - THREAT.eps), to_float(part.pixels) + THREAT.eps).clamp(0, 1)
    assert not torch.equal(x, start)
    expected = network(x).argmax(1) == part.labels
    assert torch.equal(verdicts(network, part, CW(steps=3, step_size=0.05)), expected)


def test_every_restart_must_be_withstood(network, part):
    once, often = (verdicts(network, part, PGD(steps=2, step_size=0.02, restarts=n)) for n in (None, 8))
    assert not (often & ~once).any(), "the first start is the same"
    assert often.sum() < once.sum()


class Hill(torch.nn.Module):
    """Two classes; the second wins where the image is between 0.26 and 0.54, on top of a hill."""

    def forward(self, x):
        height = 0.02 - (x.flatten(1).mean(1) - 0.4) ** 2
        return torch.stack([torch.zeros_like(height), height], dim=1)


def test_the_worst_iterate_is_not_the_last():
    """From 0.2, steps of 0.3 go over the hill to 0.5 and back again."""
    image = ImageSet(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8), torch.tensor([0]))
    found = {
        (steps, iterate): bool(
            verdicts(
                Hill(), image, PGD(steps=steps, step_size=0.3, random_start=False, iterate=iterate),
                Threat(norm="linf", eps=0.5),
            )
        )
        for steps in (1, 2)
        for iterate in (None, "worst")
    }  # fmt: skip
    assert found == {(1, None): False, (1, "worst"): False, (2, None): True, (2, "worst"): False}


def test_titles_and_identities_tell_them_apart():
    attacks = [
        Clean(), FGSM(), PGD(), PGD(restarts=10), PGD(iterate="worst"), PGD(restarts=10, iterate="worst"), CW(),
        AutoAttack(), AutoAttack(version="standard-bf16-confirmed"), AutoAttack(attacks=("apgd-ce", "apgd-t")),
    ]  # fmt: skip
    assert [attack.title for attack in attacks] == [
        "Clean", "FGSM", "PGD-20", "PGD-20x10", "PGD-20 (worst)", "PGD-20x10 (worst)", "CW-20",
        "AutoAttack", "AutoAttack (bf16-confirmed)", "AutoAttack (apgd-ce, apgd-t)",
    ]  # fmt: skip
    assert len({str(attack_identity(attack, THREAT)) for attack in attacks}) == len(attacks)
    assert attack_identity(PGD(), THREAT).keys() == {
        "name",
        "steps",
        "step_size",
        "random_start",
        "precision",
        "norm",
        "eps",
        "seed",
    }
    assert attack_identity(attacks[-2], THREAT)["precision"] == "bf16, confirmed in fp32"
    assert forward_passes(PGD(restarts=10)) == 410
    assert forward_passes(FGSM()) == 3
    assert forward_passes(AutoAttack(attacks=("apgd-ce",))) == 200


@pytest.mark.parametrize("attack", [FGSM, PGD, CW])
def test_an_attack_may_have_a_ball_of_its_own(network, part, attack):
    other = Threat(norm="l2", eps=0.7)
    settings = {} if attack is FGSM else {"steps": 2, "step_size": 0.2}
    outcome = evaluate(network, "abc", part, attack(threat=other, **settings), THREAT)
    expected = evaluate(network, "abc", part, attack(**settings), other)
    np.testing.assert_array_equal(outcome.correct, expected.correct)
    assert not np.array_equal(outcome.correct, evaluate(network, "abc", part, attack(**settings), THREAT).correct)
    assert {key: outcome.attack[key] for key in ("norm", "eps")} == {"norm": "l2", "eps": 0.7}


def test_joint_is_correct_under_every_attack_on_the_images_of_all():
    _, test = load()
    random = np.random.default_rng(0)
    outcomes = [Outcome({}, "", "abc", random.random(count) < 0.7, 0.0, {}) for count in (500, 30, 50)]
    joint = joint_outcome({"name": "joint"}, outcomes, test.labels)
    by_image = [
        dict(zip(balanced_subset(test.labels, len(outcome.correct)).tolist(), outcome.correct, strict=True))
        for outcome in outcomes
    ]
    shared = balanced_subset(test.labels, 30).tolist()
    assert joint.correct.tolist() == [all(image[index] for image in by_image) for index in shared]
    assert (len(joint.correct), joint.title, joint.weights_sha256) == (30, "Joint", "abc")


def test_classes_are_counted(network):
    _, test = load()
    outcome = evaluate(network, "abc", test, Clean(), THREAT)
    counts = np.array(outcome.detail["per_class"])
    labels = test.labels.numpy()
    assert counts.tolist() == [
        [int(outcome.correct[labels == label].sum()), int((labels == label).sum())] for label in range(10)
    ]
    few = evaluate(network, "abc", test, FGSM(images=3), THREAT).detail["per_class"]
    assert [attacked for _, attacked in few] == 3 * [1] + 7 * [0]


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValidationError, match="all 'restarts' are the same"):
        PGD(random_start=False, restarts=3)
    with pytest.raises(ValidationError, match="duplicate attack"):
        AutoAttack(attacks=("square", "square"))


def test_an_outcome_says_that_memory_was_short_and_what_is_in_doubt(network, monkeypatch):
    _, test = load()
    forward = type(network).forward

    def short(self, x):
        if len(x) > 5 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(type(network), "forward", short)
    outcome = evaluate(network, "abc", test, AutoAttack(images=10, attacks=("apgd-ce",)), THREAT)
    assert 1 <= outcome.attack["reduced_batch_size"] <= 5
    assert outcome.attack["batch_size"] == 250
    assert outcome.detail["doubts"] == []
