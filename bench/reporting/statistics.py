"""How sure a figure is, and whether two rows can be told apart.

Two things make a measured accuracy a matter of chance: which images the test set holds, and which seeds were trained.
Rows that were judged on the same images are paired: they share the first kind of luck, and comparing them image by
image takes it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import bdtr, ndtri, stdtr, stdtrit

from bench.attacks.outcome import Verdicts

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

CONFIDENCE = 0.95

FLOOR = 0.5
"""Smallest variance of a difference, as a share of its variance over images alone. Declared: the true share is 1 or
more, but 1 here would make the test find too little; docs/statistics.md has the rates that were measured with both."""

NO_ERROR = 1e-7  # a standard error below this is rounding
MOST_FREEDOM = 1e9  # degrees of freedom beyond which Student's t is the normal distribution
EXACT_FLOAT32 = 2**24  # whole numbers up to here

Covers = Literal["seeds", "images", "images and seeds"]
"""Which kinds of chance an interval allows for."""

Interval = tuple[float, float]

Falls: TypeAlias = np.ndarray[Any, np.dtype[np.int8]]
"""-1, 0 or 1, [n, m]: for each seed and image, right at best minus right at last."""


# --- one figure ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure measured with one or several seeds, all in shares from 0 to 1.

    `values` has one value a seed; `sd` is their sample standard deviation (n - 1 in the denominator), None for one
    seed. `interval` is at 95 %: over seeds, for these test images; or for one seed, over images, for that seed.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: Interval
    covers: Covers


def estimate(values: Sequence[float], over_images: Interval | None = None) -> Estimate:
    """Return the estimate from one value a seed; `over_images` is the interval to state if there is one seed only."""
    mean, sd = math.fsum(values) / len(values), standard_deviation(values)
    if sd is None:
        if over_images is None:
            raise ValueError("one seed needs an interval over images")
        return Estimate(tuple(values), mean, None, over_images, "images")
    return Estimate(tuple(values), mean, sd, t_interval(values), "seeds")


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, with n - 1 in the denominator; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return Student's interval for the mean of two values or more: mean +- t(n - 1) sd / sqrt(n).

    Source: Student, The probable error of a mean, Biometrika 1908.
    """
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    return mean - reach, mean + reach


def binomial_error(share: float, count: int) -> float:
    """Return the standard error of an accuracy on `count` images: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)


def wilson_interval(right: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the score interval of an accuracy, which stays inside 0 to 1 and holds near its ends.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    centre = (right + z2 / 2) / (count + z2)
    reach = math.sqrt(z2 * (right * (count - right) / count + z2 / 4)) / (count + z2)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def paired_interval(a: Verdicts, b: Verdicts, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the difference of two accuracies on the same images, a - b; both bool, [m].

    With n10 images that only `a` has right and n01 that only `b` has, the difference is d = (n10 - n01) / m and its
    variance (n10 + n01 - (n10 - n01)^2 / m) / m^2. Source: Agresti, Categorical data analysis, section on the
    comparison of dependent proportions.
    """
    only_a, only_b, count = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    difference = (only_a - only_b) / count
    variance = (only_a + only_b - (only_a - only_b) ** 2 / count) / count**2
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance)
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


def compare(a: Verdicts, b: Verdicts) -> Difference:
    """Return the difference a - b of two rows' mean accuracies and how sure it is; bool, [n, m] each.

    With one seed each, McNemar's exact test and the paired interval: both cover images only, and say nothing about
    what another seed would give. Otherwise Student's t over images and seeds; see `pairwise`.
    """
    pairs = pairwise([a, b])
    mean, p = float(pairs.mean[0, 1]), float(pairs.p[0, 1])
    if len(a) == len(b) == 1:
        return Difference(mean, paired_interval(a[0], b[0]), p, "images")
    reach = float(stdtrit(pairs.freedom[0, 1], (1 + CONFIDENCE) / 2)) * float(pairs.error[0, 1])
    return Difference(mean, (mean - reach, mean + reach), p, "images and seeds")


def compare_gaps(a: Falls, b: Falls) -> Difference:
    """Return the difference of two gaps, a - b, by Student's t over images and seeds.

    As `pairwise`, for values of -1, 0 and 1: its variance S + S' + D / m, without taking out what both parts
    count, so that it errs towards not telling apart. With one seed each it is D / m with the normal distribution, and
    covers images only.
    """
    mean, images = float(a.mean() - b.mean()), a.shape[1]
    over_images = float((a.mean(0) - b.mean(0)).var(ddof=1)) / images if images > 1 else 0.0
    spread = [float(side.mean(1).var(ddof=1)) if len(side) > 1 else None for side in (a, b)]
    of_a, of_b = ((own if own is not None else other or 0.0) for own, other in (spread, spread[::-1]))
    of_a, of_b, degrees = of_a / len(a), of_b / len(b), (len(a) - 1, len(b) - 1)
    uncertain = of_a**2 / max(degrees[0], 1) + of_b**2 / max(degrees[1], 1)
    if 0 in degrees:  # both parts rest on one estimate
        uncertain = (of_a + of_b) ** 2 / max(*degrees, 1)
    variance = of_a + of_b + over_images
    covers: Covers = "images" if degrees == (0, 0) else "images and seeds"
    error = math.sqrt(variance)
    if error < NO_ERROR:
        return Difference(mean, (mean, mean), float(abs(mean) < NO_ERROR), covers)
    freedom = min(variance**2 / uncertain, MOST_FREEDOM) if uncertain > 0 else MOST_FREEDOM
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Difference(mean, (mean - reach, mean + reach), 2 * float(stdtr(freedom, -abs(mean) / error)), covers)


def mcnemar(a: Verdicts, b: Verdicts) -> float:
    """Return the two-sided p of McNemar's exact test for two networks on the same images; both bool, [m].

    Of the images that only one of them has right, each has half of them but for chance. Source: McNemar, Psychometrika
    1947.
    """
    return float(_mcnemar(np.array((a & ~b).sum()), np.array((b & ~a).sum())))


def _mcnemar(only_a: Floats, only_b: Floats) -> Floats:
    p: Floats = np.minimum(1.0, 2 * bdtr(np.minimum(only_a, only_b), (only_a + only_b).astype(np.int64), 0.5))
    return p


def pairwise(rows: Sequence[Verdicts]) -> Pairs:
    """Compare every row with every other one: bool, [n, m] each; n may differ between rows, the m images are the same.

    Two rows with one seed each: McNemar's exact test. Otherwise images and seeds are both taken as drawn at random:
    every image meets every seed, each seed belongs to one row. The difference d of two means over n and n' seeds and
    m images then has the variance

        S + S' + D / m - E - E'

    with S = sd^2 / n, the variance over the row's seeds of their accuracies; D the variance over images of the
    difference of the shares of seeds that are right about an image; and E = MS / (n m), where MS is the mean square of
    what is peculiar to one seed on one image. S and D / m both hold E, hence it is taken out once. Student's t has
    variance^2 / (S^2 / (n - 1) + S'^2 / (n' - 1)) degrees of freedom. A row with one seed is taken to vary over seeds,
    and over seeds and images, as the other row does.

    The variance is not let below `FLOOR` times D / m, or seeds that agree by luck would make any difference certain.

    Sources: Searle, Casella and McCulloch, Variance components, 1992 (two crossed random factors, by analysis of
    variance); Gallas, One-shot estimate of MRMC variance, Academic Radiology 2006 (the same for readers and cases in
    the place of seeds and images); Satterthwaite, Biometrics Bulletin 1946, and Welch, Biometrika 1947 (degrees of
    freedom); McNemar, Psychometrika 1947. docs/statistics.md has measured rates of false positives.

    Raises:
        ValueError: the rows were not judged on equally many images.
    """
    if len({row.shape[1] for row in rows}) > 1:
        raise ValueError("rows that were judged on different images cannot be compared")
    if not rows:
        return Pairs(*(np.zeros((0, 0)) for _ in range(4)))
    seeds = np.array([len(row) for row in rows])
    images = rows[0].shape[1]
    exact = np.float32 if images * int(seeds.max()) ** 2 <= EXACT_FLOAT32 else np.float64
    counts = np.stack([row.sum(0, dtype=exact) for row in rows])  # seeds that are right about each image
    both = (counts @ counts.T).astype(np.float64)
    right = counts.sum(1, dtype=np.float64)
    a, b = np.triu_indices(len(rows), 1)  # every pair once

    means = right / (seeds * images)
    mean = means[a] - means[b]
    own = both.diagonal() / seeds**2
    squares = own[a] + own[b] - 2 * both[a, b] / (seeds[a] * seeds[b]) - images * mean**2
    over_images = np.maximum(squares, 0.0) / max(images - 1, 1) / images

    spread, peculiar = _over_seeds(rows, right - seeds * own)
    single = seeds == 1
    like_a, like_b = np.where(single[a], b, a), np.where(single[b], a, b)  # whose seeds say how a's, and b's, vary
    of_a, of_b = spread[like_a] / seeds[a], spread[like_b] / seeds[b]
    twice = peculiar[like_a] / seeds[a] + peculiar[like_b] / seeds[b]
    error = np.sqrt(np.maximum(of_a + of_b + over_images - twice, FLOOR * over_images))
    degrees = np.maximum(seeds - 1, 1)
    one_estimate, two = (of_a + of_b) ** 2 / degrees[like_a], of_a**2 / degrees[a] + of_b**2 / degrees[b]
    uncertain = np.where(single[a] | single[b], one_estimate, two)
    freedom = np.clip(error**4 / np.maximum(uncertain, NO_ERROR**4 / MOST_FREEDOM), NO_ERROR, MOST_FREEDOM)

    p = np.where(np.abs(mean) < NO_ERROR, 1.0, 0.0)  # all seeds agree on all images, or all disagree on all
    alone = single[a] & single[b]
    chance = (error >= NO_ERROR) & ~alone
    p[chance] = 2 * stdtr(freedom[chance], -np.abs(mean[chance]) / error[chance])
    agreed = both[a[alone], b[alone]]
    p[alone] = _mcnemar(right[a[alone]] - agreed, right[b[alone]] - agreed)
    return Pairs(_square(mean, -mean), _square(error, error), _square(freedom, freedom), _square(p, p, diagonal=1.0))


def _over_seeds(rows: Sequence[Verdicts], within: Floats) -> tuple[Floats, Floats]:
    """Return, for each row, the variance over seeds of their accuracies, and MS / m of `pairwise`: [k] each.

    `within`: [k], the sum over images of the squared deviations of a row's verdicts from their mean over seeds. Rows
    with one seed have 0.
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
    """Return for each row the ranks that it may have, from best to worst, at 95 %: 1 is the highest accuracy.

    A row's best rank is one more than the number of rows that are significantly better than it, its worst rank the
    number of rows less those that are significantly worse. Its comparisons with all others are tested together, by
    Holm's procedure, so that with 95 % probability none of them is wrong and the interval holds the row's true rank.
    (Ranks counted over bootstrap resamples hold it too seldom where rows are nearly equal.)

    Sources: Mogstad, Romano, Shaikh and Wilhelm, Inference for ranks, Review of Economic Studies 2024; Holm,
    Scandinavian Journal of Statistics 1979; against resampled ranks: Xie, Singh and Zhang, JASA 2009.
    """
    rows = len(pairs.p)
    if rows < 2:
        return [(1, 1)] * rows
    others = ~np.eye(rows, dtype=bool)
    p, mean = pairs.p[others].reshape(rows, rows - 1), pairs.mean[others].reshape(rows, rows - 1)
    found = holm(p) < 1 - CONFIDENCE
    better, worse = (found & (mean < 0)).sum(1), (found & (mean > 0)).sum(1)
    return [(1 + int(above), rows - int(below)) for above, below in zip(better, worse, strict=True)]
