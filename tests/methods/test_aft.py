import hashlib

import pytest
import torch
from safetensors.torch import save_file

from bench.data.datasets.digits import digits
from bench.errors import BenchError
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.training.step import EpochMetrics, train_step
from methods.aft import slow_start_fast_decay

SOON = 1e-9  # after the beginning of an epoch


def test_the_rate_at_its_corner_points(start):
    plan = start("aft", epochs=200, least_steps=0).lr_schedule
    assert (plan.epochs, plan.first_drop) == (110, 100)
    corners = {
        # natural training: the protocol's rate and drops, in half the time
        SOON: 0.1, 50 - 1e-3: 0.1, 50: 0.01, 75 - 1e-3: 0.01, 75: 0.001, 100: 0.001,
        # fine-tuning: up to the peak in the first 40 % of ten epochs, then down to a hundredth of it
        100 + SOON: 0.0, 102: 0.025, 104: 0.05, 107: 0.005, 110: 0.0005,
    }  # fmt: skip
    for t, expected in corners.items():
        assert plan.rate(t) == pytest.approx(expected, rel=1e-6, abs=1e-9), t


def test_the_lengths_follow_the_parameters(start):
    plan = start("aft", epochs=200, pretraining=0.1, finetuning=0.4, peak=0.2, rise=0.25, floor=0.5).lr_schedule
    assert (plan.epochs, plan.first_drop) == (100, 20)
    assert [plan.rate(t) for t in (30, 40, 70, 100)] == pytest.approx([0.1, 0.2, 0.2 * 0.5**0.5, 0.1])
    assert start("aft", epochs=2).lr_schedule.epochs == 2  # one epoch each at least


@pytest.mark.parametrize(
    ("epochs", "least_steps", "tuning"),
    [(200, 1000, 66), (30, 1000, 10), (200, 80, 20), (200, 81, 21), (200, 40, 10), (200, 0, 10)],
)
def test_fine_tuning_has_a_least_number_of_steps_up_to_a_third(start, epochs, least_steps, tuning):
    """Four batches an epoch: 80 steps are 20 epochs."""
    plan = start("aft", epochs=epochs, least_steps=least_steps).lr_schedule
    assert plan.epochs - plan.first_drop == tuning


def test_the_canonical_length_is_above_the_least(start):
    params = start("aft").params
    assert params.in_training(200, 76_400)["least_steps"] == "fine-tuning of 10 epochs, 3820 steps"
    assert params.in_training(30, 510)["least_steps"] == "fine-tuning of 10 epochs, 170 steps"


def test_slow_start_and_fast_decay():
    assert slow_start_fast_decay(0.0, 0.05, 0.4, 0.01) == 0
    assert slow_start_fast_decay(0.4, 0.05, 0.4, 0.01) == pytest.approx(0.05)
    assert slow_start_fast_decay(0.4 + SOON, 0.05, 0.4, 0.01) == pytest.approx(0.05)
    assert slow_start_fast_decay(1.0, 0.05, 0.4, 0.01) == pytest.approx(0.0005)


def test_natural_training_sees_clean_images_and_fine_tuning_does_not(start, first_batch):
    for epoch, clean in ((0, True), (2, True), (3, False)):
        method = start("aft", epoch=epoch)
        batch = first_batch(method)
        assert (method.perturb(batch) is batch.images) == clean


def test_fine_tuning_begins_with_a_fresh_momentum_once(start, first_batch):
    method = start("aft", epochs=40, least_steps=0)  # twenty natural epochs, two of fine-tuning
    for epoch, kept in ((0, False), (1, True), (19, True), (20, False), (21, True)):
        method.begin_epoch(epoch)
        assert bool(method.optimizer.state) == kept, epoch
        train_step(method, first_batch(method), method.optimizer, EpochMetrics(torch.device("cpu")))


@pytest.fixture
def weights(tmp_path):
    network = build_network(small_cnn, digits, 7)
    path = tmp_path / "natural.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def test_given_weights_replace_natural_training(start, first_batch, weights):
    network, path = weights
    method = start("aft", epochs=200, initial_weights=str(path), least_steps=0)
    assert (method.lr_schedule.epochs, method.lr_schedule.first_drop) == (10, 0)
    assert method.lr_schedule.rate(SOON) == pytest.approx(0, abs=1e-9)
    assert method.lr_schedule.rate(4) == pytest.approx(0.05)
    batch = first_batch(method)
    assert method.perturb(batch) is not batch.images
    for name, value in method.model.state_dict().items():
        if "running" not in name and "tracked" not in name:  # crafting has updated the statistics
            assert torch.equal(value, network.state_dict()[name]), name


def test_weights_that_have_changed_are_refused(start, weights):
    network, path = weights
    digest = start("aft", initial_weights=str(path)).params.initial_sha256
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    save_file(build_network(small_cnn, digits, 8).state_dict(), path)
    with pytest.raises(BenchError, match=r"natural\.safetensors: not the file that the cell states"):
        start("aft", initial_weights=str(path), initial_sha256=digest)
    save_file(network.state_dict(), path)
    start("aft", initial_weights=str(path), initial_sha256=digest)


def test_weights_that_do_not_fit_are_refused(start, weights):
    _, path = weights
    with pytest.raises(BenchError, match=r"natural\.safetensors: they do not fit.*missing: .*'layer1\.0\.bn1\.weight'"):
        start("aft", model="preact_resnet18", initial_weights=str(path))


def test_a_digest_needs_its_file(start):
    with pytest.raises(ValueError, match="'initial_weights', which is missing"):
        start("aft", initial_sha256="0" * 64)
