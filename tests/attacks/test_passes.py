"""Captured passes of AutoAttack: the bits of eager passes on padded batches, whoever else is in the batch."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import evaluate as evaluation
from bench.attacks.apgd import cross_entropy, targeted_dlr
from bench.attacks.autoattack import Cascade
from bench.attacks.passes import MULTIPLE, Passes, margin_to_target
from bench.config.attacks import AutoAttack, Threat
from bench.data.dataset import ImageSet
from bench.testing.recorded_graph import record
from bench.utils.rng import generator


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(128, 10)).eval().requires_grad_(False)


def images_of(model, count):
    images = torch.rand(count, 1, 8, 8, generator=generator(0, "images"))
    return images, model(images).argmax(1)


def eager(compute, _generators):
    """Stand for a capture by computing again."""
    results = compute()

    def replay():
        for result, value in zip(results, compute(), strict=True):
            result.copy_(value)

    return results, replay


class Counting:
    def __init__(self, capture):
        self.capture, self.sizes = capture, []

    def __call__(self, compute, generators):
        results, replay = self.capture(compute, generators)
        self.sizes.append(len(results[0]))
        return results, replay


def every_pass(passes, images, labels):
    """The results of each kind of pass, three times: eager, captured, replayed."""
    targets = (labels + 1) % 10
    for _ in range(3):
        yield passes.logits(images)
        for values in (cross_entropy, targeted_dlr, margin_to_target):
            with torch.no_grad():  # as the package calls
                results = passes.gradients(values, images, labels, targets)
            yield from results


def test_replayed_passes_have_the_bits_of_eager_ones(model):
    for count in (1, MULTIPLE, MULTIPLE + 3):
        images, labels = images_of(model, count)
        padded = [nn.functional.pad(t, [0, 0] * (t.dim() - 1) + [0, -count % MULTIPLE]) for t in (images, labels)]
        captured, plain = every_pass(Passes(model, record), images, labels), every_pass(Passes(model), *padded)
        for ours, theirs in zip(captured, plain, strict=True):
            assert torch.equal(ours, theirs[:count])


def test_an_image_has_the_same_results_beside_others(model):
    passes, (images, labels) = Passes(model, record), images_of(model, 20)
    for _ in range(3):
        whole = passes.gradients(cross_entropy, images, labels, labels)
        part = passes.gradients(cross_entropy, images[3:9], labels[3:9], labels[3:9])
    assert all(torch.equal(a[3:9], b) for a, b in zip(whole, part, strict=True))


def test_a_few_graphs_serve_all_sizes(model):
    capture = Counting(record)
    passes, beats = Passes(model, capture, lambda: beats.append(1)), []
    for count in (70, 65, 64, 40, 33, 32, 5, 1, 70):
        passes.logits(images_of(model, count)[0])
    assert capture.sizes == [96, 64, 32]
    assert len(beats) == 9


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize("attacks", [("apgd-ce",), pytest.param(("apgd-t", "fab-t", "square"), marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_a_captured_cascade_has_the_results_of_an_eager_one_on_padded_batches(model, monkeypatch, attacks, norm):
    images, labels = images_of(model, 14)
    threat = Threat(norm=norm, eps={"linf": 0.04, "l2": 0.2}[norm])
    found, confirm = [], Cascade._confirm

    def watched(self, adversarial, *rest):
        found[-1].append(adversarial)
        return confirm(self, adversarial, *rest)

    monkeypatch.setattr(Cascade, "_confirm", watched)
    finals = []
    for capture in (record, eager, None):
        found.append([])
        cascade = Cascade(model, threat, AutoAttack(batch_size=10, attacks=attacks), 0, capture)
        finals.append(cascade.run(images, labels, None, lambda _state: None, lambda *_place: None))
    assert 0 < finals[0].robust.sum() < 14
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    for other in finals[1:]:
        np.testing.assert_array_equal(finals[0].robust, other.robust)


def test_a_refused_capture_goes_on_eagerly_with_one_warning(model, caplog):
    def refuse(_compute, _generators):
        raise RuntimeError("not permitted when stream is capturing")

    images, labels = images_of(model, 7)
    with caplog.at_level(logging.WARNING):
        refused = list(every_pass(Passes(model, refuse), images, labels))
    assert [r.message for r in caplog.records] == [
        "CUDA graph capture of AutoAttack failed, running eagerly: not permitted when stream is capturing"
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(refused, every_pass(Passes(model, record), images, labels), strict=True)
    )


def test_exhausted_memory_is_no_refused_capture(model):
    """The cascade halves its batch, whose passes are captured."""
    capture, sizes = Counting(record), []

    def small(compute, generators):
        sizes.append(1)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(compute, generators)

    passes, (images, _) = Passes(model, small), images_of(model, 40)
    passes.logits(images)
    with pytest.raises(torch.OutOfMemoryError):
        passes.logits(images)
    for _ in range(2):
        passes.logits(images[:20])
    assert capture.sizes == [32]


def test_an_evaluation_on_a_gpu_is_captured_and_sends_heartbeats(model, monkeypatch):
    images, labels = images_of(model, 6)
    threat, attack, beats = Threat(norm="linf", eps=0.015), AutoAttack(batch_size=4, attacks=("apgd-ce",)), []
    test, capture = ImageSet((images * 255).to(torch.uint8), labels), Counting(record)
    plain = evaluation.evaluate(model, "0" * 64, test, attack, threat)
    monkeypatch.setattr(evaluation, "capture_in_one_pool", lambda _device: capture)
    captured = evaluation.evaluate(model, "0" * 64, test, attack, threat, heartbeat=lambda: beats.append(1))
    np.testing.assert_array_equal(plain.correct, captured.correct)
    assert plain.attack == captured.attack
    assert capture.sizes == [32]
    assert len(beats) > 100
