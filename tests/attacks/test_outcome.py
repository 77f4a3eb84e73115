"""Outcomes survive the way to disk and back."""

import json

import numpy as np
import pytest

from bench.attacks.outcome import Outcome, pack, unpack


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10_000])
def test_bits_round_trip(count):
    verdicts = np.random.default_rng(count).random(count) < 0.5
    bits = pack(verdicts)
    assert len(bits) == -(-count // 8)
    np.testing.assert_array_equal(unpack(bits, count), verdicts)


def test_the_first_image_is_the_highest_bit():
    assert pack(np.array([True, False, False])) == b"\x80"


def test_record_round_trips_as_json():
    outcome = Outcome({"name": "clean"}, "Clean", "00", np.array([True, True, False]), 1.5, {"note": 1})
    record = json.loads(json.dumps(outcome.to_record()))
    assert (record["count"], record["right"]) == (3, 2)
    back = Outcome.from_record(record)
    np.testing.assert_array_equal(back.correct, outcome.correct)
    assert back.accuracy == pytest.approx(2 / 3)
    assert (back.attack, back.title, back.weights_sha256, back.seconds, back.detail) == (
        {"name": "clean"}, "Clean", "00", 1.5, {"note": 1},
    )  # fmt: skip
