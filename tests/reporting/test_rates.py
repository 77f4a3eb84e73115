"""How often the test finds a difference, by simulation: 2,000 comparisons for each line of docs/statistics.md.

Each image has a difficulty; a method shifts it for each image, a seed of the method again; and each seed has an
expected accuracy of its own. Two seeds of a method then disagree on about 18 % of the images.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri

from bench.reporting.reproduced import ASSUMED
from bench.reporting.statistics import compare, distance, image_noise_of, pairwise, rank_intervals

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
TRIALS = 2000
PARTS = np.sqrt(np.float32([0.80, 0.05, 0.15]))  # of the variance: image, image and method, image and seed


def simulate(random, images, seeds, accuracies, noise):
    """Return verdicts of rows with these numbers of seeds; a seed's expected accuracy strays by `noise`."""
    shared = PARTS[0] * random.standard_normal(images, np.float32)
    found = []
    for count, accuracy in zip(seeds, accuracies, strict=True):
        own = shared + PARTS[1] * random.standard_normal(images, np.float32)
        limits = ndtri(accuracy + noise * random.standard_normal(count)).astype(np.float32)
        found.append(own + PARTS[2] * random.standard_normal((count, images), np.float32) < limits[:, None])
    return found


def rate(seeds, images, noise, difference=0.0, trials=TRIALS):
    """Return how often, in percent, two rows whose expected accuracies differ by `difference` are told apart."""
    random = np.random.default_rng(0)
    found = 0
    for _ in range(trials):
        pair = simulate(random, images, seeds, (0.5 + difference, 0.5), noise)
        found += compare(*pair).significant
    return 100 * found / trials


def documented():
    """Return (seeds, images, noise, difference, rate in percent) of each line of the page's table."""
    lines = re.findall(
        r"^\| (\d) and (\d) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \|$",
        PAGE.read_text(encoding="utf-8"),
        re.M,
    )
    return [
        ((int(a), int(b)), int(images.replace(",", "")), float(noise) / 100, float(difference) / 100, float(share))
        for a, b, images, noise, difference, share in lines
    ]


def test_the_page_has_the_lines_that_matter():
    lines = documented()
    assert len(lines) >= 12
    for images in (1000, 10_000):
        for noise in (0.003, 0.012):
            assert ((3, 3), images, noise, 0) in [line[:4] for line in lines]


@pytest.mark.parametrize(("seeds", "images", "noise", "difference", "share"), documented())
def test_rates_are_as_documented(seeds, images, noise, difference, share):
    trials = TRIALS if seeds == (3, 3) and not difference else TRIALS // 5  # the page rests on 2,000 of each line
    error = 100 * math.sqrt(max(share, 2) / 100 * (1 - min(share, 98) / 100) / trials)
    measured = rate(seeds, images, noise, difference, trials)
    assert measured == pytest.approx(share, abs=3 * error)
    if seeds == (3, 3) and not difference:
        assert 3 <= measured <= 7, "nominally 5 %"


def test_ignoring_seeds_would_tell_equal_methods_apart():
    """What the test guards against: with one seed each, the test covers images only, and says so."""
    assert rate((1, 1), 10_000, 0.012, trials=200) > 20


def test_rank_intervals_hold_the_true_ranks():
    """Six methods, of which pairs are equal; three seeds each. The 95 % are for each row."""
    random, accuracies = np.random.default_rng(0), (0.52, 0.52, 0.50, 0.50, 0.47, 0.47)
    held = np.zeros(6)
    for _ in range(400):
        found = rank_intervals(pairwise(simulate(random, 1000, (3,) * 6, accuracies, 0.003)))
        for row, (low, high) in enumerate(found):
            place = 2 * (row // 2) + 1
            held[row] += low <= place and high >= place + 1  # equal methods have both ranks
    assert (held / 400 >= 0.92).all()
    assert held.min() < 400, "intervals that always hold the rank say nothing"


def false_alarms(seeds, images, noise, trials=TRIALS):
    """Return how often, in percent, a published figure of one more seed of the same method is told apart from ours."""
    random = np.random.default_rng(0)
    found = 0
    for _ in range(trials):
        ours, theirs = np.split(simulate(random, images, (seeds + 1,), (0.5,), noise)[0], [seeds])
        shares = [float(share) for share in ours.mean(1)]
        found += distance(shares, image_noise_of(ours), float(theirs.mean()), 1, ASSUMED["best"]).p < 0.05
    return 100 * found / trials


def documented_alarms():
    """Return (seeds, images, noise, rate in percent) of each line of the page's table of published figures."""
    text = PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"^\| (\d) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) % \|$", text, re.M)
    return [
        (int(seeds), int(images.replace(",", "")), float(noise) / 100, float(share))
        for seeds, images, noise, share in lines
    ]


@pytest.mark.parametrize(("seeds", "images", "noise", "share"), documented_alarms())
def test_false_alarms_beside_a_published_figure(seeds, images, noise, share):
    trials = TRIALS // 4
    error = 100 * math.sqrt(max(share, 2) / 100 * (1 - share / 100) / trials)
    measured = false_alarms(seeds, images, noise, trials)
    assert measured == pytest.approx(share, abs=3 * error)
    if noise <= ASSUMED["best"]:
        assert measured <= 5 + 3 * error, "nominally 5 %"
