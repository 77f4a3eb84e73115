"""Outcomes survive the way to disk and back."""

import json

import numpy as np
import pytest

from bench.attacks.outcome import Outcome, PackedBits


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10_000])
def test_bits_round_trip(count):
    correct = np.random.default_rng(count).random(count) < 0.5
    bits = PackedBits.pack(correct)
    assert len(bits.data) == -(-count // 8)
    assert bits.total() == correct.sum()
    np.testing.assert_array_equal(PackedBits.from_text(bits.text, count).unpack(), correct)


def test_the_first_image_is_the_highest_bit():
    assert PackedBits.pack(np.array([True, False, False])).data == b"\x80"


def test_data_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 bytes do not hold 9 bits"):
        PackedBits.from_text("gA==", 9)


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
