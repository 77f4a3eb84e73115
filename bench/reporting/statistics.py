"""Confidence intervals, tests between two rows, and rank intervals. docs/statistics.md explains the choices.

A measured accuracy is random in two ways: through the images of the test set and through the training seeds. Rows that
were evaluated on the same images are compared image by image, which removes the variance that they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import special  # not scipy.stats, whose import takes half a second

from bench.attacks.outcome import Correct

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

CONFIDENCE = 0.95

Z = float(special.ndtri((1 + CONFIDENCE) / 2))
"""Half the width of an interval in standard errors, of the normal distribution."""

FLOOR = 0.5
"""Lower bound of the variance of a difference, as a share of its variance over images. Our choice: the true share is 1
or more, but with 1 the test would have too little power; docs/statistics.md has the error rates with 0.5."""

NO_ERROR = 1e-7  # a standard error below this is rounding
MOST_FREEDOM = 1e9  # degrees of freedom beyond which Student's t is the normal distribution
EXACT_FLOAT32 = 2**24  # whole numbers up to here

Covers = Literal["seeds", "images", "images and seeds"]
"""The sources of variance that an interval covers."""

Interval = tuple[float, float]

Gaps: TypeAlias = np.ndarray[Any, np.dtype[np.int8]]
"""-1, 0 or 1, [n, m]: for each seed and image, correct at best minus correct at last."""


# --- one figure ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure over one or several seeds, as shares from 0 to 1.

    `values` has one value per seed. `sd` is their sample standard deviation (n - 1 in the denominator), None for one
    seed. `interval` is the 95 % interval: over seeds, for these test images; with one seed, over images, for that seed.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: Interval
    covers: Covers


def estimate(values: Sequence[float], over_images: Interval | None = None) -> Estimate:
    """Return the estimate from one value per seed; `over_images` is the interval to state if there is only one seed."""
    mean, sd = math.fsum(values) / len(values), standard_deviation(values)
    if sd is None:
        if over_images is None:
            raise ValueError("one seed needs an interval over images")
        return Estimate(tuple(values), mean, None, over_images, "images")
    return Estimate(tuple(values), mean, sd, t_interval(values), "seeds")


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, with n - 1 in the denominator; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> Interval:
    """Return Student's interval for the mean of two values or more: mean +- t(n - 1) sd / sqrt(n).

    Source: Student, The probable error of a mean, Biometrika 1908.
    """
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    return mean - reach, mean + reach


def binomial_error(share: float, count: int) -> float:
    """Return the standard error of an accuracy on `count` images: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)


def wilson_interval(right: int, count: int) -> Interval:
    """Return the score interval of an accuracy, which stays inside 0 to 1 and holds near its ends.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    share = right / count
    centre, reach = share + Z**2 / (2 * count), Z * math.hypot(binomial_error(share, count), Z / (2 * count))
    return (max(0.0, (centre - reach) / (1 + Z**2 / count)), min(1.0, (centre + reach) / (1 + Z**2 / count)))


def mean_interval(values: Correct | Floats) -> Interval:
    """Return the interval of the mean of one value for each image, [m]: mean +- z sd / sqrt(m)."""
    mean = float(values.mean())
    reach = Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - reach, mean + reach


def paired_interval(a: Correct | Floats, b: Correct | Floats) -> Interval:
    """Return the interval of the difference of two accuracies on the same images, a - b; both bool, [m].

    If only `a` is correct on n10 images and only `b` on n01, the difference is d = (n10 - n01) / m and its variance
    (n10 + n01 - (n10 - n01)^2 / m) / m^2. Source: Agresti, Categorical data analysis, section on the comparison of
    dependent proportions. Of shares of an image's versions, it is the interval of the mean of their differences.
    """
    if a.dtype != bool:
        return mean_interval(np.subtract(a, b))
    only_a, only_b, count = int((a > b).sum()), int((b > a).sum()), len(a)
    difference = (only_a - only_b) / count
    variance = (only_a + only_b - (only_a - only_b) ** 2 / count) / count**2
    reach = Z * math.sqrt(variance)
    return difference - reach, difference + reach


# --- two rows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another, in shares; `p` is two-sided, the interval is at 95 %."""

    mean: float
    interval: Interval
    p: float
    covers: Covers

    @property
    def significant(self) -> bool:
        return self.p < 1 - CONFIDENCE


@dataclass(frozen=True)
class Pairs:
    """Every row compared with every other: [k, k] each, of the first index minus the second.

    `mean`: difference of the mean accuracies. `error`: its standard error, `freedom`: of Student's t; both are
    meaningless where two rows have one seed each. `p`: two-sided, 1 on the diagonal.
    """

    mean: Floats
    error: Floats
    freedom: Floats
    p: Floats


def compare(a: Correct | Floats, b: Correct | Floats) -> Difference:
    """Return the difference a - b of two rows' mean accuracies; bool, [n, m] each.

    With one seed each: McNemar's exact test and the paired interval. Both cover images only, not what another seed
    would give. Otherwise Student's t over images and seeds; see `pairwise`.

    Values may also be shares from 0 to 1, of each image's versions under corruptions. An image is then one unit, with
    the normal distribution instead of McNemar's test for one seed each.
    """
    pairs = pairwise([a, b])
    if len(a) == len(b) == 1:
        return Difference(float(pairs.mean[0, 1]), paired_interval(a[0], b[0]), float(pairs.p[0, 1]), "images")
    return _difference(pairs, "images and seeds")


def compare_gaps(a: Gaps | Floats, b: Gaps | Floats) -> Difference:
    """Return the difference a - b of two rows' mean gaps, by Student's t over images and seeds.

    The variance is that of `pairwise` without the subtraction of E, so the test is conservative. With one seed each it
    is D / m, with the normal distribution, and covers images only.
    """
    return _difference(_student([a, b], interaction=False), "images" if len(a) == len(b) == 1 else "images and seeds")


def _difference(pairs: Pairs, covers: Covers) -> Difference:
    """Return the first row minus the second, with Student's interval."""
    mean, error, freedom, p = (float(part[0, 1]) for part in (pairs.mean, pairs.error, pairs.freedom, pairs.p))
    reach = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error if error >= NO_ERROR else 0.0
    return Difference(mean, (mean - reach, mean + reach), p, covers)


@dataclass(frozen=True)
class Distance:
    """How far our mean is above a published figure, as shares; `p` is two-sided.

    `seed_noise`: standard deviation of one run over seeds; `assumed`: it is not of our seeds. `image_noise`: of one run
    over images. `error`: the standard error of `mean`.
    """

    mean: float
    error: float
    p: float
    seed_noise: float
    image_noise: float
    assumed: bool


def distance(
    ours: Sequence[float], image_noise: float, published: float, published_seeds: int, assumed: float
) -> Distance:
    """Return the distance of our seeds' mean from a published mean of the same test images.

    Both are means over seeds of one procedure under the null hypothesis, so the difference has the variance
    sigma^2 (1 / n + 1 / n'). With two seeds of ours or more, sigma is their standard deviation, which contains the
    image noise, and Student's t has n - 1 degrees of freedom; if all seeds are equal, sigma is the image noise. With
    one seed, sigma^2 is the sum of the squares of `assumed` and the image noise, with the normal distribution.

    Args:
        ours: one value per seed, as shares.
        image_noise: standard deviation of one run over images, see `image_noise_of`.
        published: the published figure, as a share.
        published_seeds: how many seeds it is a mean of.
        assumed: standard deviation over seeds if we have only one.
    """
    spread = standard_deviation(ours)
    sigma = math.hypot(assumed, image_noise) if spread is None else spread or image_noise
    error = max(sigma * math.sqrt(1 / len(ours) + 1 / published_seeds), NO_ERROR)
    mean = math.fsum(ours) / len(ours) - published
    freedom = MOST_FREEDOM if spread is None else len(ours) - 1
    p = float(2 * special.stdtr(freedom, -abs(mean) / error))
    return Distance(mean, error, p, assumed if spread is None else spread, image_noise, spread is None)


def image_noise_of(runs: Correct | Gaps) -> float:
    """Return the standard deviation over images of one run's mean; bool, or -1 to 1, [n, m].

    With two seeds or more it is that of images on which seeds disagree: the root of the mean over images of the
    variance over seeds, divided by m. With one seed it is the binomial one, an upper bound, because how often a second
    seed would agree is not known.
    """
    seeds, images = runs.shape
    variance = runs.var(axis=0, ddof=1).mean() if seeds > 1 else runs.var()
    return math.sqrt(float(variance) / images)


def mcnemar(a: Correct, b: Correct) -> float:
    """Return the two-sided p of McNemar's exact test for two networks on the same images; both bool, [m].

    Under the null hypothesis, of the images that only one of them classifies correctly, each has half. Source:
    McNemar, Psychometrika 1947.
    """
    return float(_mcnemar(np.array((a & ~b).sum()), np.array((b & ~a).sum())))


def _mcnemar(only_a: Floats, only_b: Floats) -> Floats:
    differing = (only_a + only_b).astype(np.int64)
    p: Floats = np.minimum(1.0, 2 * special.bdtr(np.minimum(only_a, only_b), differing, 0.5))
    return p


def pairwise(rows: Sequence[Correct | Floats]) -> Pairs:
    """Compare every row with every other one: bool, [n, m] each; n may differ between rows, the m images are the same.

    Two rows with one seed each: McNemar's exact test. Otherwise images and seeds are two crossed random factors: every
    image meets every seed, each seed belongs to one row. The difference d of two means over n and n' seeds and m images
    has the variance

        S + S' + D / m - E - E'

    with S = sd^2 / n, the variance over the row's seeds of their accuracies; D the variance over images of the
    difference between the shares of seeds that are correct on an image; and E = MS / (n m), where MS is the mean square
    of the interaction of seed and image. S and D / m both contain E, hence it is subtracted once. Student's t has
    variance^2 / (S^2 / (n - 1) + S'^2 / (n' - 1)) degrees of freedom, and at least those of the smaller row: rows whose
    seeds share initialisation and batches may be so alike that the variance is below S. A row with one seed is assumed
    to vary over seeds, and over seeds and images, as the other row does.

    The variance is at least `FLOOR` times D / m. Otherwise seeds that agree by chance would make it certain.

    Sources: Searle, Casella and McCulloch, Variance components, 1992 (two crossed random factors, by analysis of
    variance); Gallas, One-shot estimate of MRMC variance, Academic Radiology 2006 (the same for readers and cases
    instead of seeds and images); Satterthwaite, Biometrics Bulletin 1946, and Welch, Biometrika 1947 (degrees of
    freedom); McNemar, Psychometrika 1947. docs/statistics.md has measured rates of false positives.

    Raises:
        ValueError: the rows were evaluated on different numbers of images.
    """
    pairs = _student(rows, interaction=True)
    single = [index for index, row in enumerate(rows) if len(row) == 1 and row.dtype == bool]
    if single:
        only = np.concatenate([rows[index] for index in single]).astype(np.float64)
        only = only @ (1 - only).T  # [k, k]: images on which the first is correct and the second is not
        pairs.p[np.ix_(single, single)] = _mcnemar(only, only.T)
    return pairs


def _student(rows: Sequence[Correct | Gaps | Floats], *, interaction: bool) -> Pairs:
    """Return the pairs of `pairwise` by Student's t; without `interaction`, E is taken to be 0.

    Values are from -1 to 1.
    """
    if len({row.shape[1] for row in rows}) > 1:
        raise ValueError("rows that were evaluated on different images cannot be compared")
    if not rows:
        return Pairs(*(np.zeros((0, 0)) for _ in range(4)))
    seeds = np.array([len(row) for row in rows])
    images = rows[0].shape[1]
    whole = all(row.dtype.kind in "bi" for row in rows)
    exact = np.float32 if whole and images * int(seeds.max()) ** 2 <= EXACT_FLOAT32 else np.float64
    counts = np.stack([row.sum(0, dtype=exact) for row in rows])  # over seeds, of each image
    both = (counts @ counts.T).astype(np.float64)
    total = counts.sum(1, dtype=np.float64)
    a, b = np.triu_indices(len(rows), 1)  # every pair once

    means = total / (seeds * images)
    mean = means[a] - means[b]
    own = both.diagonal() / seeds**2
    squares = own[a] + own[b] - 2 * both[a, b] / (seeds[a] * seeds[b]) - images * mean**2
    over_images = np.maximum(squares, 0.0) / max(images - 1, 1) / images

    spread, peculiar = _over_seeds(rows, np.array([float((row * row).sum()) for row in rows]) - seeds * own)
    if not interaction:
        peculiar[:] = 0
    single = seeds == 1
    like_a, like_b = (
        np.where(single[a], b, a),
        np.where(single[b], a, b),
    )  # the row whose seeds estimate the variance of a, and of b
    of_a, of_b = spread[like_a] / seeds[a], spread[like_b] / seeds[b]
    twice = peculiar[like_a] / seeds[a] + peculiar[like_b] / seeds[b]
    error = np.sqrt(np.maximum(of_a + of_b + over_images - twice, FLOOR * over_images))
    degrees = np.maximum(seeds - 1, 1)
    one_estimate, two = (of_a + of_b) ** 2 / degrees[like_a], of_a**2 / degrees[a] + of_b**2 / degrees[b]
    uncertain = np.where(single[a] | single[b], one_estimate, two)
    least = np.minimum(degrees[like_a], degrees[like_b])
    freedom = np.clip(error**4 / np.maximum(uncertain, NO_ERROR**4 / MOST_FREEDOM), least, MOST_FREEDOM)

    p = np.where(np.abs(mean) < NO_ERROR, 1.0, 0.0)  # all seeds agree on all images, or all disagree on all
    random = error >= NO_ERROR
    p[random] = 2 * special.stdtr(freedom[random], -np.abs(mean[random]) / error[random])
    return Pairs(_square(mean, -mean), _square(error, error), _square(freedom, freedom), _square(p, p, diagonal=1.0))


def _over_seeds(rows: Sequence[Correct | Gaps | Floats], within: Floats) -> tuple[Floats, Floats]:
    """Return, for each row, the variance over seeds of their means, and MS / m of `pairwise`: [k] each.

    `within`: [k], the sum over images of the squared deviations of a row's values from their mean over seeds. Rows with
    one seed have 0.
    """
    spread, peculiar = np.zeros(len(rows)), np.zeros(len(rows))
    for index, row in enumerate(rows):
        seeds, images = row.shape
        if seeds > 1:
            spread[index] = row.mean(1).var(ddof=1)
            rest = within[index] - images * (seeds - 1) * spread[index]
            peculiar[index] = max(0.0, rest) / ((seeds - 1) * max(images - 1, 1)) / images
    return spread, peculiar


def _square(above: Floats, below: Floats, diagonal: float = 0.0) -> Floats:
    """Return [k, k] from the values of pairs in the order of `triu_indices(k, 1)`, each way round."""
    rows = round((1 + math.sqrt(1 + 8 * len(above))) / 2)
    square = np.full((rows, rows), diagonal)
    first, second = np.triu_indices(rows, 1)
    square[first, second], square[second, first] = above, below
    return square


def holm(p: Floats) -> Floats:
    """Return p-values adjusted so that the chance of any false rejection among the last axis stays below the level.

    The smallest of m is multiplied by m, the next by m - 1, and so on, and none is smaller than one before it. Holds
    however the tests depend on each other. Source: Holm, A simple sequentially rejective multiple test procedure,
    Scandinavian Journal of Statistics 1979.
    """
    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.minimum(1.0, np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1))
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(stepped, axis=-1), -1)
    return adjusted


# --- many rows -------------------------------------------------------------------------------------------------------


def rank_intervals(pairs: Pairs) -> list[tuple[int, int]]:
    """Return for each row its best and worst rank at 95 %; 1 is the highest accuracy.

    A row's best rank is one more than the number of rows that are significantly better, its worst rank the number of
    rows minus those that are significantly worse. Holm's procedure adjusts a row's comparisons with all others, so with
    95 % probability none of them is a false positive and the interval contains the row's true rank. (Ranks counted over
    bootstrap resamples cover it too rarely where rows are nearly equal.)

    Sources: Mogstad, Romano, Shaikh and Wilhelm, Inference for ranks, Review of Economic Studies 2024; Holm,
    Scandinavian Journal of Statistics 1979; against resampled ranks: Xie, Singh and Zhang, JASA 2009.
    """
    rows = len(pairs.p)
    if rows < 2:
        return [(1, 1)] * rows
    others = ~np.eye(rows, dtype=bool)
    p, mean = pairs.p[others].reshape(rows, rows - 1), pairs.mean[others].reshape(rows, rows - 1)
    significant = holm(p) < 1 - CONFIDENCE
    better, worse = (significant & (mean < 0)).sum(1), (significant & (mean > 0)).sum(1)
    return [(1 + int(above), rows - int(below)) for above, below in zip(better, worse, strict=True)]
