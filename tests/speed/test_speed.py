"""`bench speed`: the candidates do what they stand for, and the figures are what was measured."""

import json
import subprocess
import sys
from dataclasses import replace
from multiprocessing import resource_sharer
from operator import attrgetter
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from bench.attacks.pgd import random_start
from bench.cli.app import app
from bench.config.attacks import Threat, TrainingAttack
from bench.errors import BenchError
from bench.models.small_cnn import SmallCNN
from bench.speed import autoattack, measure, reference, training
from bench.speed.process import Candidate, Setup, peak


@pytest.fixture
def make_setup(load):
    def make_setup(changes=None, **settings):
        cell = load(changes or {}).cells[0]
        return Setup(
            **{"cell": cell, "device": "cpu", "threads": 1, "images": 4, "eps": None, "data": None, **settings}
        )

    return make_setup


# --- what it is measured against --------------------------------------------------------------------------------------


def test_the_reference_computes_what_public_loops_do(make_setup, convolutions):
    """Two steps and a third forward to attack; one to train, one on clean images; weight gradients each time."""
    step = training.public(make_setup())
    step(1)
    with convolutions() as work:
        step(1)
    assert work.forwards == (2 + 1 + 1 + 1) * 3
    assert len(work.backwards) == (2 + 1) * 3
    assert all(weights for _, weights, _ in work.backwards)


@pytest.mark.parametrize(
    ("count", "forwards", "weight_gradients"), [(1, 3, 3), (2, 3, 3), (3, 3, 1), (4, 3, 1), (5, 3, 1)]
)
def test_changes_take_work_away(make_setup, convolutions, count, forwards, weight_gradients):
    step = training.changed(make_setup(), training.CHANGES[:count])
    step(1)
    with convolutions() as work:
        step(1)
    assert work.forwards == forwards * 3
    assert sum(weights for _, weights, _ in work.backwards) == weight_gradients * 3


def test_the_reference_attack_is_pgd():
    torch.manual_seed(0)
    network, images, labels = SmallCNN(10, 1).eval(), torch.rand(20, 1, 8, 8), torch.randint(0, 10, (20,))
    threat, settings = Threat(norm="linf", eps=0.1), TrainingAttack(steps=3, step_size=0.05)
    start = random_start(images, threat, torch.Generator().manual_seed(0)) - images
    x = images + start
    for _ in range(3):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
        x = torch.min(torch.max(x + 0.05 * gradient.sign(), images - 0.1), images + 0.1).clamp(0, 1)
    for needless in (True, False):
        found = reference.attack(network, images, labels, threat, settings, start, needless=needless)
        torch.testing.assert_close(images + found, x.detach())


def test_images_of_the_loader_are_cut_and_mirrored_ones():
    pixels = torch.arange(2 * 36, dtype=torch.uint8).view(2, 1, 6, 6)
    images = reference.AugmentedImages(pixels, torch.tensor([3, 5]), padding=2)
    assert len(images) == 2
    padded = F.pad(pixels.float() / 255, (2, 2, 2, 2), mode="reflect")
    windows = [padded[1, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    allowed = [window.flip(2) for window in windows] + windows
    for _ in range(20):
        image, label = images[1]
        assert label == 5
        assert any(torch.allclose(torch.from_numpy(image), window) for window in allowed)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_fast_and_plain_weights_are_the_same(make_setup):
    weights, gradients = training.difference(make_setup())(20)
    assert weights < 1e-12
    assert gradients < 1e-6


def test_a_faster_wrong_loop_is_seen(make_setup, monkeypatch):
    attack = reference.attack
    monkeypatch.setattr(reference, "attack", lambda *args, **kwargs: 0.9 * attack(*args, **kwargs))
    assert training.difference(make_setup())(3)[0] > measure.SAME


def test_ratios_are_medians_of_turns():
    times = {"reference": [4.0, 6.0, 5.0], "bench": [2.0, 2.0, 5.0]}
    found = measure._measured("bench", "fp32", times, 7, 10**12, {"fp32": 2e12})
    assert (found.ratio, found.lowest, found.highest) == (2.5, 1.0, 3.0)
    assert (found.images_per_second, found.tflops, found.share_of_peak, found.peak_memory_bytes) == (0.5, 0.5, 0.25, 7)


def test_half_of_the_images_fall_at_the_chosen_radius(make_setup):
    what, eps, images, labels = autoattack.prepare(make_setup(images=40))(None)
    assert what == "test images of digits"
    assert 0 < eps < 1
    assert images.shape == (40, 1, 8, 8)
    network = autoattack._network(make_setup())
    assert torch.equal(network.eval()(images).argmax(1), labels), "what the network says is right"


def test_both_autoattacks_agree(make_setup):
    few = make_setup(images=3)
    _, eps, images, labels = autoattack.prepare(few)(None)
    order = (eps, images, labels)
    assert autoattack.cascade(few)(order) == autoattack.official(few)(order)


def test_the_row_with_tf32_leaves_torchs_default(make_setup, monkeypatch):
    """Only the row with TF32; the others compare in exact fp32."""
    seen = []

    class Package:
        def __init__(self, *_args, **_settings):
            pass

        def run_standard_evaluation(self, images, _labels, batch_size):
            seen.append(torch.backends.cudnn.allow_tf32)
            return images, None

    monkeypatch.setattr("pyautoattack.AutoAttack", Package)
    for exact in (True, False):
        autoattack.official(make_setup(), exact=exact)((0.1, torch.rand(2, 1, 8, 8), torch.zeros(2)))
    assert seen == [False, True]


def test_the_shipped_network_is_taken_for_resnet18(load, make_setup):
    small = make_setup({"dataset: {name: digits, validation: 200}": "dataset: cifar10", "small_cnn": "resnet18"})
    network = autoattack._network(small)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    what, images = autoattack._test_images(small)
    assert (what, images.shape) == ("random images", (4, 3, 32, 32))


# --- processes and the command ----------------------------------------------------------------------------------------


def test_a_failing_candidate_raises_its_message(make_setup):
    sound = make_setup()
    protocol = sound.cell.protocol.model_copy(update={"model": "nonsense"})
    with pytest.raises(BenchError, match="unknown model 'nonsense'"):
        Candidate(training.harness, replace(sound, cell=sound.cell.model_copy(update={"protocol": protocol})))


def test_a_candidate_works_and_reports_its_memory(make_setup):
    with Candidate(peak, make_setup()) as machine:
        seconds, work = machine.work("fp32")
        assert 1e8 < work / seconds < 1e15
        assert machine.peak_memory() > 2**26


@pytest.mark.slow
def test_the_command(make_setup, tmp_path):
    make_setup()  # writes the suite
    words = ["speed", str(tmp_path / "suite.yaml"), "--repetitions", "2", "--threads", "1", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    result = found["training"]
    ours = next(one for one in result["contenders"] if one["name"] == "bench")
    assert result["ratio"] == ours["ratio"] > 0.5
    assert len(ours["seconds_per_image"]) == result["repetitions"] == 2
    assert ours["lowest"] <= ours["highest"]
    assert 0 < ours["share_of_peak"] < 1
    assert result["same"]["same"]
    assert found["peak_tflops"]["fp32"] > 0.001
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--eps", "0"], "the radius must be above 0 and at most 1"),
        (["--eps", "8"], "the radius must be above 0 and at most 1"),
        (["--device", "cuda"], "sees no NVIDIA GPU here"),
        (["--threads", "4096"], "this machine has"),
        (["--model", "resnet"], "unknown"),
    ],
)
def test_bad_input(words, sentence):
    if torch.cuda.is_available() and "cuda" in words:
        pytest.skip("there is one")
    done = CliRunner().invoke(app, ["speed", "quickstart", *words])
    assert isinstance(done.exception, BenchError)
    assert sentence in str(done.exception)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"norm: linf, eps: 0.15": "norm: l2, eps: 0.5"}, "PGD under Linf only"),
        ({"batch_size: 64": "optimizer: adam"}, "SGD only"),
    ],
)
def test_a_recipe_without_a_reference_is_refused(make_setup, change, sentence):
    with pytest.raises(BenchError, match=sentence):
        next(measure.measure_training(make_setup(change), 1, {}, lambda _text: None))


FIGURES = {
    "ratio": 2.0,
    "repetitions": 3,
    "batch_size": 64,
    "steps": 1,
    "contenders": [measure._measured("bench", "fp32", {"reference": [4.0], "bench": [2.0]}, 7, None, {}).__dict__],
}


def test_tensors_travel_in_the_messages(make_setup, monkeypatch):
    """Multiprocessing would hand them over from a thread, which prints a traceback if a signal comes in between."""
    monkeypatch.setattr(resource_sharer, "DupFd", lambda _descriptor: pytest.fail("a descriptor is handed over"))
    with Candidate(attrgetter("device.__class__"), make_setup()) as candidate:  # its work is `str`
        assert candidate.work(torch.ones(2))[1] == "tensor([1., 1.])"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), BenchError("a measurement process has died")])
@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_measured_until_the_end_is_printed_as_partial(monkeypatch, ending, as_json):
    def measured(*_):
        yield FIGURES
        raise ending

    monkeypatch.setattr(measure, "measure_peak", lambda *_: {"fp32": 1e9, "bf16": 1e9})
    monkeypatch.setattr(measure, "measure_training", measured)
    done = CliRunner().invoke(app, ["speed", "quickstart", "--threads", "1", *(["--json"] if as_json else [])])
    if as_json:
        found = json.loads(done.stdout)
        assert (found["partial"], found["training"]) == (True, json.loads(json.dumps(FIGURES)))
    else:
        assert "partial: not all repetitions were made" in done.stdout
        assert "medians of 3 turns" in done.stdout
    if isinstance(ending, KeyboardInterrupt):
        assert done.exit_code == 130
        assert "interrupted; the figures are partial" in done.stderr


def test_nothing_is_printed_if_nothing_was_measured(monkeypatch):
    monkeypatch.setattr(measure, "measure_peak", mock.Mock(side_effect=KeyboardInterrupt))
    done = CliRunner().invoke(app, ["speed", "quickstart", "--threads", "1"])
    assert (done.exit_code, done.stdout) == (130, "")
    assert "nothing was measured" in done.stderr


@pytest.mark.slow
def test_termination(make_setup, tmp_path):
    make_setup()  # writes the suite
    words = [sys.executable, "-m", "bench", "speed", str(tmp_path / "suite.yaml"), "--repetitions", "1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.stderr.readline() != "training, 3 of 1000\n":
            assert process.poll() is None
        process.terminate()
        stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert "partial: not all repetitions were made" in stdout
    assert "training: medians of" in stdout
    assert "bench: interrupted; the figures are partial" in stderr
