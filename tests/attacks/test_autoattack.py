"""The cascade gives the package's verdicts, image by image, resumes anywhere, and leaves the process as it was."""

import sys

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from bench.attacks.autoattack import STANDARD, Cascade, CascadeState, check_classes
from bench.data.batches import to_float
from bench.data.digits import load
from bench.errors import BenchError
from bench.evaluation import balanced_subset
from bench.protocol import Threat
from bench.seeding import generator

IMAGES, BATCH = 24, 10  # three batches, the last one smaller


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


def run(model, images, labels, threat, state=None, commit=lambda _state: None):
    return Cascade(model, threat, BATCH, seed=0).run(images, labels, state, commit, lambda _done, _of: None)


def plain(model, images, labels, threat, targets):
    """What the package itself says, with the number of target classes set by hand."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    official = AutoAttack(model, norm=norm, eps=threat.eps, seed=0)
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = targets
    adversarial, _ = official.run_standard_evaluation(images, labels, batch_size=BATCH)
    return (model(adversarial).argmax(1) == labels).numpy()


@pytest.mark.parametrize(
    ("classes", "threat"),
    [(10, Threat(norm="linf", eps=0.08)), (4, Threat(norm="linf", eps=0.1))],
    ids=["10 classes", "4 classes"],
)
def test_verdicts_are_the_packages(trained, classes, threat):
    model, images, labels = trained(classes)
    tracer = sys.gettrace()
    expected = plain(model, images.contiguous(), labels, threat, min(9, classes - 1))
    sys.settrace(tracer)  # the package removes it
    final = run(model, images, labels, threat)
    assert 0 < expected.sum() < IMAGES, "an easy or a hopeless case would prove nothing"
    np.testing.assert_array_equal(final.robust, expected)
    assert list(final.accuracy_after) == ["clean", *STANDARD]
    accuracies = list(final.accuracy_after.values())
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == final.robust.mean()


def test_every_place_can_be_continued(trained):
    model, images, labels = (part if index == 0 else part[:14] for index, part in enumerate(trained(10)))
    threat, places = Threat(norm="linf", eps=0.08), []
    whole = run(model, images, labels, threat, commit=places.append)
    assert len(places) > len(STANDARD)
    early, between = places[0], next(place for place in places if (place.attack, place.batch) == (1, 0))
    for place in (early, between, places[-2]):
        kept = CascadeState.from_record(place.to_record())
        rest = run(model, images, labels, threat, state=kept)
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
        check_classes(3)
    model, images, labels = trained(4)

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)[:, :3]

    with pytest.raises(BenchError, match="not 3"):
        run(Three(), images, labels % 3, Threat(norm="linf", eps=0.1))
