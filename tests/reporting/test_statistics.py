import math

import numpy as np
import pytest
from scipy import stats

from bench.reporting import statistics
from bench.reporting.statistics import (
    binomial_error,
    compare,
    estimate,
    mcnemar,
    paired_interval,
    samples,
    standard_deviation,
    t_interval,
    wilson_interval,
)


def verdicts(right: int, count: int = 10) -> np.ndarray:
    return np.arange(count) < right


# --- one figure ------------------------------------------------------------------------------------------------------


def test_an_estimate_over_seeds():
    figure = estimate([0.50, 0.52, 0.57], over_images=(0, 1))
    assert figure.values == (0.50, 0.52, 0.57)
    assert figure.mean == pytest.approx(0.53)
    assert figure.sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert figure.interval == pytest.approx(stats.t.interval(0.95, 2, 0.53, stats.sem([0.50, 0.52, 0.57])))
    assert figure.covers == "seeds"


def test_an_estimate_from_one_seed():
    figure = estimate([0.5], over_images=(0.4, 0.6))
    assert (figure.mean, figure.sd, figure.interval, figure.covers) == (0.5, None, (0.4, 0.6), "images")


def test_standard_deviation():
    assert standard_deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert standard_deviation([1.0]) is None


@pytest.mark.parametrize("values", [(0.1, 0.2), (0.5, 0.5, 0.5), (0.3, 0.1, 0.4, 0.15)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_t_interval(values, confidence):
    expected = np.mean(values) + stats.sem(values) * stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.r_[-1, 1]
    assert t_interval(values, confidence) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("right", "count"), [(0, 50), (3, 50), (5000, 10_000), (50, 50)])
def test_wilson_interval(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_binomial_error():
    assert binomial_error(0.5, 1000) == pytest.approx(0.0158, abs=1e-4)
    assert binomial_error(0.0, 10) == 0


def test_paired_interval():
    a, b = np.array([1, 1, 1, 0, 1, 0, 0, 1] * 25, bool), np.array([1, 0, 0, 0, 1, 1, 0, 1] * 25, bool)
    difference = a.astype(float) - b
    reach = stats.norm.ppf(0.975) * difference.std() / math.sqrt(len(a))
    assert paired_interval(a, b) == pytest.approx((difference.mean() - reach, difference.mean() + reach))
    assert paired_interval(a, a) == (0, 0)


# --- two rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 5), (1, 7), (9, 2), (40, 60), (0, 6)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    a = np.r_[np.ones(only_a, bool), np.zeros(only_b, bool), np.ones(30, bool), np.zeros(20, bool)]
    b = np.r_[np.zeros(only_a, bool), np.ones(only_b, bool), np.ones(30, bool), np.zeros(20, bool)]
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)


def test_one_seed_each_is_mcnemar_and_covers_images():
    first, second = samples([verdicts(9)[None], verdicts(2)[None]])
    difference = compare(first, second)
    assert difference.mean == pytest.approx(0.7)
    assert difference.p == mcnemar(verdicts(9), verdicts(2)) == pytest.approx(2 / 2**7)
    assert difference.interval == paired_interval(verdicts(9), verdicts(2))
    assert difference.covers == "images"
    assert difference.significant


def test_samples_resample_the_same_images_for_all_rows():
    rows = [np.array([verdicts(5), verdicts(2)]), verdicts(5)[None], ~verdicts(5)[None]]
    first, second, third = samples(rows, resamples=50)
    assert first.resampled.shape == (2, 50)
    assert first.resampled[0].tolist() == second.resampled[0].tolist()
    assert (second.resampled + third.resampled).tolist() == [[1.0] * 50]
    assert second.resampled.mean() == pytest.approx(0.5, abs=0.1)
    assert second.resampled.std() == pytest.approx(math.sqrt(0.25 / 10), rel=0.25)
    assert samples(rows, resamples=50)[0].resampled.tolist() == first.resampled.tolist()
    assert samples(rows, resamples=50, seed=1)[0].resampled.tolist() != first.resampled.tolist()
    assert samples([]) == []


def test_rows_on_different_images_are_not_compared():
    with pytest.raises(ValueError, match="different images"):
        samples([verdicts(5)[None], verdicts(5, 11)[None]])


def rows(random: np.random.Generator, shares: list[list[float]], images: int) -> list[np.ndarray]:
    """Return rows of seeds with these expected accuracies on shared images, some of them hard, some easy."""
    luck = random.random(images)
    return [
        np.stack([np.where(random.random(images) < 0.8, luck, random.random(images)) < share for share in row])
        for row in shares
    ]


def test_the_standard_error_is_that_of_the_formula():
    """With many images and seeds nothing is peculiar to, the three parts of the variance add up."""
    random = np.random.default_rng(0)
    luck = random.random(4000)
    first = np.stack([luck < share for share in (0.48, 0.50, 0.55)])
    second = np.stack([luck < share for share in (0.40, 0.44)])
    difference = compare(*samples([first, second], resamples=4000))
    seeds = first.mean(1).var(ddof=1) / 3, second.mean(1).var(ddof=1) / 2
    images = (first.mean(0) - second.mean(0)).var() / 4000
    error = math.sqrt(sum(seeds) + images)
    freedom = error**4 / (seeds[0] ** 2 / 2 + seeds[1] ** 2 / 1)
    assert difference.mean == pytest.approx(first.mean() - second.mean())
    reach = stats.t.ppf(0.975, freedom) * error
    assert difference.interval == pytest.approx((difference.mean - reach, difference.mean + reach), abs=0.06 * reach)
    assert difference.p == pytest.approx(2 * stats.t.sf(difference.mean / error, freedom), rel=0.15)
    assert difference.covers == "images and seeds"


def test_a_single_seed_borrows_the_spread_of_the_other_row():
    luck = np.random.default_rng(0).random(4000)
    several, single = np.stack([luck < share for share in (0.48, 0.50, 0.55)]), (luck < 0.40)[None]
    seeds = several.mean(1).var(ddof=1)
    images = (several.mean(0) - single[0]).var() / 4000
    error = math.sqrt(seeds / 3 + seeds + images)
    freedom = error**4 / ((seeds / 3 + seeds) ** 2 / 2)
    for first, second in ((several, single), (single, several)):
        difference = compare(*samples([first, second], resamples=4000))
        assert difference.p == pytest.approx(2 * stats.t.sf((several.mean() - 0.40) / error, freedom), rel=0.15)
        assert difference.mean == pytest.approx(first.mean() - second.mean())


def test_rows_without_any_chance_in_them():
    all_right, none_right = np.ones((2, 20), bool), np.zeros((3, 20), bool)
    ones, zeros, same = samples([all_right, none_right, np.ones((3, 20), bool)])
    assert (compare(ones, zeros).p, compare(ones, zeros).interval) == (0, (1, 1))
    assert compare(ones, same).p == 1


def test_a_clear_difference_is_found_and_its_sign_kept():
    random = np.random.default_rng(0)
    better, worse = samples(rows(random, [[0.56, 0.57, 0.55], [0.50, 0.51, 0.49]], 2000))
    assert compare(better, worse).significant
    assert compare(better, worse).interval[0] > 0
    assert compare(worse, better).interval[1] < 0
    assert compare(better, worse) == compare(better, worse)


@pytest.mark.parametrize(("seeds", "spread"), [((3, 3), 0.02), ((3, 3), 0.0), ((2, 2), 0.02), ((1, 3), 0.02)])
def test_equal_methods_are_seldom_told_apart(seeds, spread):
    """At the 5 % level at most about 5 % of pairs of equal methods differ: 2.6 standard errors above that is 9 %."""
    random, trials = np.random.default_rng(1), 200
    found = 0
    for trial in range(trials):
        shares = [list(0.5 + spread * random.standard_normal(count)) for count in seeds]
        pair = samples(rows(random, shares, 300), resamples=200, seed=trial)
        found += compare(*pair, seed=trial).significant
    assert found <= 0.09 * trials


def test_ignoring_seeds_would_tell_equal_methods_apart():
    """What the test above guards against: with one seed each, the test covers images only, and says so."""
    random, trials = np.random.default_rng(1), 100
    found = 0
    for _ in range(trials):
        pair = samples(rows(random, [list(0.5 + 0.05 * random.standard_normal(1)) for _ in range(2)], 300), resamples=2)
        found += compare(*pair).significant
    assert found > 0.2 * trials


def test_documented_number_of_resamples():
    assert samples([verdicts(5)[None]])[0].resampled.shape == (1, statistics.RESAMPLES) == (1, 1000)
