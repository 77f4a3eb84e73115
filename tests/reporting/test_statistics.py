import math

import numpy as np
import pytest
from scipy import stats

from bench.reporting import statistics
from bench.reporting.statistics import (
    FLOOR,
    binomial_error,
    compare,
    estimate,
    mcnemar,
    paired_interval,
    pairwise,
    rank_intervals,
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
    with pytest.raises(ValueError, match="needs an interval"):
        estimate([0.5])


def test_standard_deviation():
    assert standard_deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert standard_deviation([1.0]) is None


@pytest.mark.parametrize("values", [(0.1, 0.2), (0.5, 0.5, 0.5), (0.3, 0.1, 0.4, 0.15)])
def test_t_interval(values):
    expected = np.mean(values) + stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) * np.r_[-1, 1]
    assert t_interval(values) == pytest.approx(tuple(expected))


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
    first, second = verdicts(9)[None], verdicts(2)[None]
    difference = compare(first, second)
    assert difference.mean == pytest.approx(0.7)
    assert difference.p == mcnemar(verdicts(9), verdicts(2)) == pytest.approx(2 / 2**7)
    assert difference.interval == paired_interval(verdicts(9), verdicts(2))
    assert difference.covers == "images"
    assert difference.significant


def test_rows_on_different_images_are_not_compared():
    with pytest.raises(ValueError, match="different images"):
        pairwise([verdicts(5)[None], verdicts(5, 11)[None]])


def rows(random: np.random.Generator, shares: list[list[float]], images: int) -> list[np.ndarray]:
    """Return rows of seeds with these expected accuracies on shared images, some of them hard, some easy."""
    luck = random.random(images)
    return [
        np.stack([np.where(random.random(images) < 0.8, luck, random.random(images)) < share for share in row])
        for row in shares
    ]


def anova(row: np.ndarray) -> tuple[float, float]:
    """Return, the long way, the variance over seeds of the accuracies, and the mean square of what is left over."""
    row = row.astype(float)
    rest = row - row.mean(1, keepdims=True) - row.mean(0) + row.mean()
    return row.mean(1).var(ddof=1), (rest**2).sum() / ((row.shape[0] - 1) * (row.shape[1] - 1))


def test_the_variance_is_that_of_the_formula():
    random, images = np.random.default_rng(0), 400
    first, second = rows(random, [[0.48, 0.50, 0.75], [0.30, 0.44]], images)
    (spread_a, rest_a), (spread_b, rest_b) = anova(first), anova(second)
    of_a, of_b = spread_a / 3, spread_b / 2
    over_images = (first.mean(0) - second.mean(0)).var(ddof=1) / images
    error = math.sqrt(of_a + of_b + over_images - rest_a / (3 * images) - rest_b / (2 * images))
    freedom = error**4 / (of_a**2 / 2 + of_b**2 / 1)
    difference = compare(first, second)
    assert difference.mean == pytest.approx(first.mean() - second.mean())
    assert difference.interval == pytest.approx(stats.t.interval(0.95, freedom, difference.mean, error))
    assert difference.p == pytest.approx(2 * stats.t.sf(difference.mean / error, freedom))
    assert difference.covers == "images and seeds"


def test_by_hand():
    """Two seeds each on four images.

    a: 1110, 1000, accuracies 3/4 and 1/4; b: 1000, 0000, accuracies 1/4 and 0.
    S: 1/8 / 2 = 1/16 and 1/32 / 2 = 1/64. Shares of seeds: 1, 1/2, 1/2, 0 and 1/2, 0, 0, 0; their differences: 1/2
    three times and 0, variance 1/16, over 4 images 1/64. What is left of a: its squared deviations within images add
    up to 1/2 + 1/2, of which 4 * 1/8 is the seeds': 1/2, over 3 degrees of freedom 1/6, E = 1/6 / 8 = 1/48; of b: 1/2
    less 4 * 1/32, 3/8, E = 1/8 / 8 = 1/64. Variance: 1/16 + 1/64 + 1/64 - 1/48 - 1/64 = 11/192. Its square over
    (1/16)^2 + (1/64)^2 is 0.79, so that the degrees of freedom are those of either row: 1.
    """
    a, b = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool), np.array([[1, 0, 0, 0], [0, 0, 0, 0]], bool)
    pairs = pairwise([a, b])
    assert pairs.mean[0, 1] == -pairs.mean[1, 0] == 3 / 8
    assert pairs.error[0, 1] ** 2 == pytest.approx(11 / 192)
    assert pairs.freedom[0, 1] == 1


def test_rows_with_the_same_seeds_have_an_interval_of_shares():
    """As of two methods that are equal until the first rate drop. Their seeds vary as images do."""
    random, images = np.random.default_rng(0), 400
    (row,) = rows(random, [[0.5, 0.5, 0.5]], images)
    other = row.copy()
    other[:, :5] ^= random.random((3, 5)) < 0.5
    difference, freedom = compare(row, other), pairwise([row, other]).freedom[0, 1]
    assert freedom == 2
    assert -0.5 < difference.interval[0] < difference.mean < difference.interval[1] < 0.5


def test_a_single_seed_borrows_the_spread_of_the_other_row():
    random, images = np.random.default_rng(0), 400
    several, single = rows(random, [[0.48, 0.50, 0.75], [0.40]], images)
    spread, rest = anova(several)
    seeds = spread / 3 + spread
    over_images = (several.mean(0) - single[0]).var(ddof=1) / images
    error = math.sqrt(seeds + over_images - rest / (3 * images) - rest / images)
    freedom = max(error**4 / (seeds**2 / 2), 2)
    for first, second in ((several, single), (single, several)):
        difference = compare(first, second)
        assert difference.mean == pytest.approx(first.mean() - second.mean())
        assert difference.interval == pytest.approx(stats.t.interval(0.95, freedom, difference.mean, error))


def test_seeds_that_agree_by_luck_do_not_make_a_difference_certain():
    """Equal accuracies of all seeds, on other images each: the variance over seeds is 0."""
    first, second = np.array([verdicts(52, 100), ~verdicts(48, 100)]), np.array([verdicts(50, 100), ~verdicts(50, 100)])
    over_images = (first.mean(0) - second.mean(0)).var(ddof=1) / 100
    pairs = pairwise([first, second])
    assert pairs.error[0, 1] ** 2 == pytest.approx(FLOOR * over_images)
    assert compare(first, second).p > 0


def test_all_pairs_are_those_of_two():
    random = np.random.default_rng(3)
    found = rows(random, [[0.5, 0.52], [0.4], [0.45, 0.47, 0.48], [0.42], [0.5, 0.5]], 300)
    pairs = pairwise(found)
    for i, first in enumerate(found):
        for j, second in enumerate(found):
            if i != j:
                difference = compare(first, second)
                assert pairs.p[i, j] == pytest.approx(difference.p)
                assert pairs.mean[i, j] == pytest.approx(difference.mean)
    assert pairs.p[1, 3] == pytest.approx(mcnemar(found[1][0], found[3][0]))
    assert pairs.p.diagonal().tolist() == [1.0] * 5
    assert pairwise([]).p.shape == (0, 0)
    assert pairwise(found[:1]).p.tolist() == [[1.0]]


def test_many_seeds_are_counted_exactly():
    """Sums of squares beyond 2^24, which single precision would round."""
    random, images = np.random.default_rng(0), 8
    first, second = random.random((2999, images)) < 0.9, random.random((3, images)) < 0.5
    squares = int((first.sum(0) ** 2).sum())
    assert squares > 2 * statistics.EXACT_FLOAT32
    assert squares % 4
    (spread_a, rest_a), (spread_b, rest_b) = anova(first), anova(second)
    over_images = (first.mean(0) - second.mean(0)).var(ddof=1) / images
    variance = spread_a / 2999 + spread_b / 3 + over_images - rest_a / (2999 * images) - rest_b / (3 * images)
    error = pairwise([first, second]).error[0, 1]
    assert error**2 == pytest.approx(max(variance, FLOOR * over_images), rel=1e-10)


def test_rows_without_any_chance_in_them():
    all_right, none_right = np.ones((2, 20), bool), np.zeros((3, 20), bool)
    ones, zeros, same = all_right, none_right, np.ones((3, 20), bool)
    assert (compare(ones, zeros).p, compare(ones, zeros).interval) == (0, (1, 1))
    assert compare(ones, same).p == 1


def test_a_clear_difference_is_found_and_its_sign_kept():
    random = np.random.default_rng(0)
    better, worse = rows(random, [[0.56, 0.57, 0.55], [0.50, 0.51, 0.49]], 2000)
    assert compare(better, worse).significant
    assert compare(better, worse).interval[0] > 0
    assert compare(worse, better).interval[1] < 0
    assert compare(better, worse) == compare(better, worse)


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_rank_intervals_by_hand():
    """One seed each on 100 images, nested: McNemar's p for k images of difference is 2 / 2^k.

    Of four rows each is in three comparisons; by Holm p must be below 5/3 %, then 5/2 %, then 5 %.
    """
    found = rank_intervals(pairwise([verdicts(right, 100)[None] for right in (80, 75, 73, 50)]))
    # 80: 75 differs by 5 (6 %), 73 by 7 (1.6 %), 50 by 30. 75: 73 by 2, 80 by 5. 73: 80 by 7, 1.6 % is below 2.5 %.
    assert found == [(1, 2), (1, 3), (2, 3), (4, 4)]


def test_what_one_comparison_shows_eases_the_next():
    """80 and 74 differ by 6 images, 3.1 %: not below 5/2 %, but each differs from 40, which leaves one comparison."""
    rows = [verdicts(right, 100)[None] for right in (80, 74, 40)]
    assert rank_intervals(pairwise(rows)) == [(1, 1), (2, 2), (3, 3)]


def test_rank_intervals_allow_for_many_comparisons():
    """1.6 % is below 5/3 % but not below 5/4 %: one row more, and no two rows are told apart by 7 images."""
    assert rank_intervals(pairwise([verdicts(80, 100)[None], verdicts(73, 100)[None]])) == [(1, 1), (2, 2)]
    rows = [verdicts(right, 100)[None] for right in (80, 79, 78, 77, 73)]
    assert rank_intervals(pairwise(rows)) == [(1, 5)] * 5


def test_rank_intervals_go_by_accuracy_not_by_place():
    rows = [verdicts(right, 100)[None] for right in (20, 90, 50)]
    assert rank_intervals(pairwise(rows)) == [(3, 3), (1, 1), (2, 2)]
    assert rank_intervals(pairwise(rows[:1])) == [(1, 1)]
    assert rank_intervals(pairwise([])) == []


# --- shares of an image's versions ------------------------------------------------------------------------------------


def test_versions_of_an_image_are_one_unit():
    """Copies of every image, which agree, add no information; as independent images they would."""
    random = np.random.default_rng(0)
    once = [random.random((3, 400)) < share for share in (0.6, 0.55)]
    as_shares = [seeds.astype(float) for seeds in once]
    assert compare(*as_shares) == compare(*once)
    repeated = [np.repeat(seeds, 10, axis=1) for seeds in once]
    assert compare(*repeated).p < compare(*once).p
    pooled = [seeds.reshape(3, -1, 4).mean(2) for seeds in once]
    assert compare(*pooled).mean == pytest.approx(compare(*once).mean)


def test_one_seed_each_is_compared_by_the_mean_difference():
    random = np.random.default_rng(1)
    a, b = (random.integers(0, 5, (1, 300)) / 4 for _ in range(2))
    difference = compare(a, b)
    apart = (a - b)[0]
    error = apart.std(ddof=1) / 300**0.5
    assert difference.covers == "images"
    assert difference.interval == pytest.approx((apart.mean() - 1.959964 * error, apart.mean() + 1.959964 * error))
    assert difference.p == pytest.approx(2 * stats.norm.sf(abs(apart.mean()) / error), rel=1e-3)
