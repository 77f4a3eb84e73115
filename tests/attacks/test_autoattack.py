"""The cascade gives the package's verdicts, image by image, resumes anywhere, and leaves the process as it was."""

import sys

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from bench.attacks.autoattack import Cascade, CascadeState
from bench.attacks.evaluate import balanced_subset
from bench.config.attacks import STANDARD, Threat
from bench.config.attacks import AutoAttack as AutoAttackSettings
from bench.data.batches import to_float
from bench.data.datasets.digits import load
from bench.errors import BenchError, DamagedFile
from bench.utils.rng import generator

IMAGES, BATCH = 14, 8  # two batches, the last one smaller


class Stripped(nn.Module):
    """A small network trained for a moment, so that some images are robust and some are not."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, classes)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def trained():
    """Return for a number of classes: (model, images, labels)."""

    def train(classes: int):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Stripped(classes)
        train_set, test_set = load()
        keep, known = train_set.labels < classes, test_set.labels < classes
        x, y = to_float(train_set.pixels[keep]), train_set.labels[keep]
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for index in torch.randperm(len(y), generator=generator(0, "order")).repeat(6).split(100):
            noise = torch.empty_like(x[index]).uniform_(-0.1, 0.1, generator=generator(0, "noise"))
            nn.functional.cross_entropy(model(x[index] + noise), y[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
        pixels, labels = test_set.pixels[known], test_set.labels[known]
        chosen = balanced_subset(labels, IMAGES)
        return model.eval().requires_grad_(False), to_float(pixels[chosen]), labels[chosen]

    return train


def run(model, images, labels, threat, state=None, commit=lambda _state: None, **settings):
    settings = AutoAttackSettings(batch_size=BATCH, **settings)
    return Cascade(model, threat, settings, seed=0).run(images, labels, state, commit, lambda *_place: None)


def plain(model, images, labels, threat, targets, attacks):
    """What the package itself says, with the number of target classes set by hand."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    official = AutoAttack(model, norm=norm, eps=threat.eps, seed=0)
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = targets
    official.attacks_to_run = list(attacks)
    adversarial, _ = official.run_standard_evaluation(images, labels, batch_size=BATCH)
    return (model(adversarial).argmax(1) == labels).numpy()


@pytest.mark.parametrize(
    ("classes", "threat", "attacks"),
    [
        pytest.param(10, Threat(norm="linf", eps=0.08), STANDARD, id="10 classes", marks=pytest.mark.slow),
        pytest.param(10, Threat(norm="l2", eps=0.35), STANDARD, id="L2", marks=pytest.mark.slow),
        pytest.param(9, Threat(norm="linf", eps=0.08), STANDARD, id="9 classes", marks=pytest.mark.slow),
        pytest.param(4, Threat(norm="linf", eps=0.1), STANDARD, id="4 classes", marks=pytest.mark.slow),
        pytest.param(4, Threat(norm="linf", eps=0.1), STANDARD[:3], id="without Square"),
    ],
)
def test_verdicts_are_the_packages(trained, classes, threat, attacks):
    model, images, labels = trained(classes)
    tracer = sys.gettrace()
    expected = plain(model, images.contiguous(), labels, threat, min(9, classes - 1), attacks)
    sys.settrace(tracer)  # the package removes it
    final = run(model, images, labels, threat, attacks=attacks)
    assert 0 < expected.sum() < IMAGES, "an easy or a hopeless case would prove nothing"
    np.testing.assert_array_equal(final.robust, expected)
    assert list(final.accuracy_after) == ["clean", *attacks]
    accuracies = list(final.accuracy_after.values())
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == final.robust.mean()


@pytest.mark.parametrize(
    "attacks", [("apgd-ce", "apgd-t"), pytest.param(STANDARD, marks=pytest.mark.slow)], ids=["two attacks", "all"]
)
def test_every_place_can_be_continued(trained, attacks):
    model, images, labels = trained(10)
    threat, places = Threat(norm="linf", eps=0.08), []
    whole = run(model, images, labels, threat, commit=places.append, attacks=attacks)
    assert len(places) > len(attacks)
    early, between = places[0], next(place for place in places if (place.attack, place.done) == (1, 0))
    for place in (early, between, places[-2]):
        kept = CascadeState.from_record(place.to_record())
        rest = run(model, images, labels, threat, state=kept, attacks=attacks)
        np.testing.assert_array_equal(rest.robust, whole.robust)
        assert rest.accuracy_after == whole.accuracy_after
        assert rest.seconds >= place.seconds


def test_random_state_and_tracer_are_left_alone(trained):
    model, images, labels = trained(10)
    calls = []

    def tracer(_frame, _event, _argument):
        calls.append(1)

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        run(model, images[:4], labels[:4], Threat(norm="linf", eps=0.3))
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert calls
    assert torch.equal(torch.rand(3), expected)


def test_a_network_that_is_always_wrong_is_done_at_once(trained):
    model, images, _ = trained(10)
    final = run(model, images, (model(images).argmax(1) + 1) % 10, Threat(norm="linf", eps=0.1))
    assert not final.robust.any()
    assert set(final.accuracy_after.values()) == {0.0}


def test_too_few_classes_are_refused(trained):
    with pytest.raises(BenchError, match="at least 4 classes, not 3"):
        AutoAttackSettings().check_classes(3)
    AutoAttackSettings(attacks=("apgd-ce", "square")).check_classes(2)
    model, images, labels = trained(4)

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)[:, :3]

    with pytest.raises(BenchError, match="not 3"):
        run(Three(), images, labels % 3, Threat(norm="linf", eps=0.1))


# --- two precisions ---------------------------------------------------------------------------------------------------


class OnceInBfloat16(nn.Module):
    """A network that gives other answers under autocast."""

    def __init__(self, model, answer):
        super().__init__()
        self.model, self.answer = model, answer

    def forward(self, x):
        logits = self.model(x)
        return self.answer(logits) if torch.is_autocast_enabled("cpu") else logits


@pytest.mark.slow
def test_the_confirmed_version_differs_by_little(trained):
    model, images, labels = trained(10)
    threat = Threat(norm="linf", eps=0.08)
    exact = run(model, images, labels, threat)
    confirmed = run(model, images, labels, threat, version="standard-bf16-confirmed")
    assert (exact.robust != confirmed.robust).sum() <= 1
    assert not (confirmed.robust & ~exact.robust).all()


@pytest.mark.parametrize("wrong", [lambda z: z.roll(1, 1), lambda z: -z], ids=["shifted", "reversed"])
def test_no_image_falls_that_the_fp32_network_gets_right(trained, wrong):
    """A search that is told of successes everywhere, none of them true, breaks nothing but by the second look."""
    model, images, labels = trained(10)
    threat = Threat(norm="linf", eps=1e-4)
    liar = OnceInBfloat16(model, wrong)
    right = run(liar, images[:6], labels[:6], threat, attacks=("apgd-ce", "fab-t"), version="standard-bf16-confirmed")
    np.testing.assert_array_equal(right.robust, (model(images[:6]).argmax(1) == labels[:6]).numpy())


def test_where_the_precisions_disagree_fp32_looks_again(trained):
    model, images, labels = trained(10)
    threat = Threat(norm="linf", eps=0.08)
    liar = OnceInBfloat16(model, lambda logits: logits.roll(1, 1))
    exact = run(model, images[:8], labels[:8], threat, attacks=("square",))
    confirmed = run(liar, images[:8], labels[:8], threat, attacks=("square",), version="standard-bf16-confirmed")
    assert exact.robust.sum() < 8
    np.testing.assert_array_equal(confirmed.robust, exact.robust)


# --- what counts as broken --------------------------------------------------------------------------------------------


CONFIRMED = "standard-bf16-confirmed"


@pytest.mark.parametrize(
    ("threat", "version", "attacks"),
    [
        pytest.param(Threat(norm="linf", eps=0.1), "standard", STANDARD[:3], id="without Square"),
        pytest.param(Threat(norm="linf", eps=0.1), "standard", STANDARD, id="linf", marks=pytest.mark.slow),
        pytest.param(Threat(norm="l2", eps=0.5), "standard", STANDARD, id="l2", marks=pytest.mark.slow),
        pytest.param(Threat(norm="linf", eps=0.1), CONFIRMED, STANDARD, id="linf in bf16", marks=pytest.mark.slow),
        pytest.param(Threat(norm="l2", eps=0.5), CONFIRMED, STANDARD, id="l2 in bf16", marks=pytest.mark.slow),
    ],
)
def test_every_image_that_counts_is_in_the_ball_and_fools_alone(trained, threat, version, attacks, monkeypatch):
    model, images, labels = trained(10)
    counted = []
    confirm = Cascade._confirm

    def watched(self, found, clean, its_labels):
        sure = confirm(self, found, clean, its_labels)
        counted.extend(zip(found[sure], clean[sure], its_labels[sure], strict=True))
        return sure

    monkeypatch.setattr(Cascade, "_confirm", watched)
    final = run(model, images, labels, threat, version=version, attacks=attacks)
    broken = (model(images).argmax(1) == labels).sum() - final.robust.sum()
    assert len(counted) == broken > 3
    for found, clean, label in counted:
        moved = (found.double() - clean.double()).flatten()
        assert (moved.abs().max() if threat.norm == "linf" else moved.norm()) <= threat.eps + 1e-6
        assert found.min() >= -1e-6
        assert found.max() <= 1 + 1e-6
        assert model(found[None]).argmax() != label


def test_an_image_outside_breaks_nothing(trained):
    model, images, _ = trained(10)
    cascade = Cascade(model, Threat(norm="linf", eps=0.1), AutoAttackSettings(), 0)
    clean, wrong = images[:3], (model(images[:3]).argmax(1) + 1) % 10
    assert cascade._confirm(clean, clean, wrong).all()
    assert not cascade._confirm((clean + 0.11).clamp(0, 1), clean, wrong).any()
    assert not cascade._confirm(clean - 0.05, clean, wrong).any(), "negative pixels"
    assert not cascade._confirm(clean, clean, model(clean).argmax(1)).any()


def test_a_part_of_the_cascade(trained):
    model, images, labels = trained(10)
    final = run(model, images, labels, Threat(norm="linf", eps=0.08), attacks=("apgd-ce", "square"))
    assert list(final.accuracy_after) == ["clean", "apgd-ce", "square"]


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["GPU", "CPU"],
)
def test_too_little_memory_halves_the_batch(trained, error):
    model, images, labels = trained(10)

    class Large(nn.Module):
        """Cannot be attacked with more than three images at a time."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            if len(x) > 3 and torch.is_grad_enabled():
                raise error
            return self.model(x)

    threat, places = Threat(norm="linf", eps=0.08), []
    final = run(Large(), images, labels, threat, commit=places.append, attacks=("apgd-ce",))
    assert final.batch_size == 2, "8, 4, 2"
    assert {place.batch_size for place in places} == {4, 2}
    whole = run(model, images, labels, threat, attacks=("apgd-ce",))
    assert abs(int(final.robust.sum()) - int(whole.robust.sum())) <= 1


def test_another_error_is_not_mistaken_for_memory(trained):
    _, images, labels = trained(10)

    class Broken(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise RuntimeError("shapes do not match")
            return torch.nn.functional.one_hot(labels[: len(x)], 10).float()

    with pytest.raises(RuntimeError, match="shapes"):
        run(Broken(), images, labels, Threat(norm="linf", eps=0.1))


def test_labels_and_images_out_of_range_are_refused(trained):
    model, images, labels = trained(10)
    threat = Threat(norm="linf", eps=0.1)
    with pytest.raises(BenchError, match="labels from 0 to 10, but the network has 10 classes"):
        run(model, images, labels.clone().fill_(10).index_fill(0, torch.tensor([0]), 0), threat)
    with pytest.raises(BenchError, match=r"images from -0.1 to .*; they must be in \[0, 1\]"):
        run(model, images - 0.1, labels, threat)


def test_a_place_of_another_version_is_damage():
    with pytest.raises(DamagedFile, match="not the AutoAttack state"):
        CascadeState.from_record({"attack": 1, "batch": 0, "count": 3, "at_start": "4A==", "robust": "4A=="})


# --- doubts -----------------------------------------------------------------------------------------------------------


def doubts(model, images, labels, **settings):
    cascade = Cascade(model, Threat(norm="linf", eps=0.1), AutoAttackSettings(batch_size=BATCH, **settings), seed=0)
    return cascade.flags(images, cascade.run(images, labels, None, lambda _state: None, lambda *_place: None))


def test_a_sound_network_raises_none(trained):
    model, images, labels = trained(10)
    assert doubts(model, images[:8], labels[:8]) == []


@pytest.mark.slow
def test_flat_gradients_and_a_square_that_gains_are_doubts(trained):
    """Logits in steps have no gradient: the white-box attacks see nothing, and random search breaks the network."""
    model, images, labels = trained(10)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits = self.model(x)
            return (logits * 4).round() / 4 + 0 * logits

    found = doubts(Steps(), images[:12], labels[:12], attacks=("apgd-t", "square"))
    assert any(doubt.startswith("no gradient at ") for doubt in found)
    assert doubts(Steps(), images[:12], labels[:12], attacks=("apgd-ce", "apgd-t", "square"))[-1].startswith(
        "square broke"
    )


def test_noise_and_probabilities_are_doubts(trained):
    model, images, labels = trained(10)

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) + torch.randn(len(x), 10)

    noisy = doubts(Noisy(), images[:4], labels[:4], attacks=("apgd-ce",))
    assert "the network is not deterministic" in noisy
    soft = doubts(nn.Sequential(model, nn.Softmax(1)), images[:4], labels[:4], attacks=("apgd-ce",))
    assert soft == ["the network returns probabilities, not logits"]
