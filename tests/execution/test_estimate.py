"""How much work a cell is, and how long this machine would take."""

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.data.dataset import Located, Split, missing
from bench.data.datasets.digits import digits, find
from bench.data.readers import ArrayReader
from bench.errors import BenchError
from bench.execution import estimate
from bench.execution.estimate import Machine, Work, measured_speed, work_of
from bench.models.architecture import size_of
from bench.models.small_cnn import small_cnn
from bench.registry import DATASETS

CPU = torch.device("cpu")


def test_work_is_counted_by_hand(load):
    steps = {"steps: 2, step_size: 0.1}\nevaluation": "steps: 4}\nevaluation"}
    protocol = load({"model: small_cnn": "model: preact_resnet18", **steps}).suite.protocol
    found = work_of(protocol, None)
    # On 8x8 images PreActResNet-18 needs a sixteenth of what it needs on 32x32, but for the classifier.
    forward = 1.111e9 / 16 / 1e15
    epochs, trained, tracked, test = 2, 1097, 700, 500
    expected = {
        "training": forward * epochs * trained * (2 * 4 + 3),
        "tracking": forward * epochs * tracked * (2 * 2 + 2),
        "final": forward * 3 * test * (1 + (2 * 3 + 1)),
    }
    for part, value in expected.items():
        assert abs(getattr(found, part) / value - 1) < 0.02, part
    assert found.total == found.training + found.tracking + found.final


def test_natural_training_has_no_attack_to_pay_for(load):
    natural = load({"attack: {name: pgd, steps: 2, step_size: 0.1}\nevaluation": "attack: none\nevaluation"})
    assert work_of(load().suite.protocol, None).training / work_of(natural.suite.protocol, None).training == 7 / 3


def test_autoattack_skips_the_images_that_are_broken_before_a_part(load):
    attacks = {"{name: pgd, steps: 3, step_size: 0.05}": "{name: autoattack, images: 100}"}
    one = {"{name: pgd, steps: 3, step_size: 0.05}": "{name: autoattack, attacks: [square], images: 100}"}
    clean = 500
    found, square = (work_of(load(change).suite.protocol, None).final for change in (attacks, one))
    every = 0.82 * 200 + 0.53 * 1800 + 0.44 * (3600 + 5000)
    assert found / square == pytest.approx((clean + 100 * every) / (clean + 100 * 0.82 * 5000))


def test_the_shares_are_those_of_the_published_figures():
    rows = pd.read_csv(Path(__file__).parents[2] / "results" / "published.csv")
    shares = rows.clean_best.median(), rows.pgd_best.median(), pd.concat([rows.aa_best, rows.aa_last]).median()
    assert pytest.approx([share / 100 for share in shares], abs=0.03) == estimate.ROBUST


def test_a_subset_is_less_work(load):
    half = load({"validation: 200": "validation: 200, subset: {train: 0-747, test: 0-249}"}).suite.protocol
    found, whole = work_of(half, None), work_of(load().suite.protocol, None)
    assert found.training / whole.training == pytest.approx((748 - 200) / 1097)
    assert found.final / whole.final == pytest.approx(1 / 2)


def test_images_are_counted_where_nothing_states_their_number(load, tmp_path):
    def found(root, _settings):
        if root is None:
            raise missing(unknown, [], root)
        part = find(root, _settings).train
        return Located(root, Split(ArrayReader(part.reader.pixels[:600]), part.labels[:600]), part)

    unknown = replace(digits, name="unknown", train_images=None, test_images=None, find=found)
    DATASETS.add("unknown", unknown)
    protocol = load({"name: digits": "name: unknown"}).suite.protocol
    assert work_of(protocol, None) is None
    assert work_of(protocol, tmp_path).training / work_of(load().suite.protocol, None).training == 400 / 1097


def test_speed_is_work_over_time(load, monkeypatch):
    """A network that always takes a tenth of a second for an image, however fast this machine is."""
    monkeypatch.setattr(estimate, "pgd", lambda network, images, *_args, **_settings: time.sleep(0.01 * len(images)))
    _, flops = size_of(small_cnn, (10, 1, 8, 8))
    speed = measured_speed(load().suite.protocol, "fp32", CPU, seconds=0.5)
    assert speed == pytest.approx(2 * flops / 1e15 / 0.01, rel=0.2)


def test_hours_are_work_over_speed(load, monkeypatch):
    asked = []

    def speed(protocol, precision, _device):
        asked.append(precision)
        return {"bf16": 4.0, "fp32": 1.0}[precision]

    monkeypatch.setattr(estimate, "measured_speed", speed)
    machine, protocol = Machine(CPU), load({"batch_size: 64": "batch_size: 64\n  precision: bf16"}).suite.protocol
    for _ in range(3):
        assert machine.hours(protocol, Work(training=4 * 3600, tracking=8 * 3600, final=5 * 3600)) == 1 + 2 + 5
    assert asked == ["bf16", "fp32"]  # each once


def test_a_real_measurement_is_of_the_right_order(load):
    hours = Machine(CPU).hours(load().suite.protocol, work_of(load().suite.protocol, None))
    assert 1e-6 < hours < 0.1


def test_a_batch_that_cannot_be_filled_is_refused_where_the_files_tell(load, tmp_path):
    DATASETS.add("unknown", replace(digits, name="unknown", train_images=None))
    loaded = load({"name: digits": "name: unknown", "batch_size: 64": "batch_size: 5000"})
    from bench.data.batches import TrainingBatches
    from bench.data.dataset import dataset_of
    from bench.utils.rng import RngStreams

    splits = dataset_of(loaded.suite.dataset).splits(None)
    with pytest.raises(BenchError, match="only 1097 images are left to train on"):
        TrainingBatches(splits.train, loaded.suite.training.batch_size, (), RngStreams(0))
