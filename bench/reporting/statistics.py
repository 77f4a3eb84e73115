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

from bench.outcome import Verdicts

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

CONFIDENCE = 0.95

RESAMPLES = 1000
"""Bootstrap resamples. They serve a standard error, which they give to 2 %, not the tail of a distribution."""

NO_ERROR = 1e-9  # a standard error below this is rounding

Covers = Literal["seeds", "images", "images and seeds"]
"""Which kinds of chance an interval allows for."""

Interval = tuple[float, float]


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


def estimate(values: Sequence[float], over_images: Interval) -> Estimate:
    """Return the estimate from one value a seed; `over_images` is the interval to state if there is one seed only."""
    mean, sd = math.fsum(values) / len(values), standard_deviation(values)
    if sd is None:
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
class Sample:
    """One row: its seeds' verdicts on the test images (bool, [n, m]), and its seeds' accuracies on resampled images.

    `resampled`: [n, resamples]. Rows that are compared have the same images and come from one call of `samples`.
    """

    verdicts: Verdicts
    resampled: Floats


def samples(rows: Sequence[Verdicts], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Sample]:
    """Resample the images, the same ones for all rows, and return each row's accuracies on them.

    Args:
        rows: bool, [n, m] each; n seeds may differ between rows, the m images are the same.
        resamples: how often m images are drawn with replacement.
        seed: of the draws.

    Raises:
        ValueError: the rows were not judged on equally many images.
    """
    if not rows:
        return []
    if len({row.shape[1] for row in rows}) > 1:
        raise ValueError("rows that were judged on different images cannot be compared")
    images, random = rows[0].shape[1], np.random.default_rng(seed)
    drawn = np.empty((resamples, images), np.float32)
    for resample in drawn:
        resample[:] = np.bincount(random.integers(images, size=images), minlength=images)
    # Sums of small whole numbers, which float32 holds exactly up to 2^24 images.
    accuracies = (np.concatenate(rows).astype(np.float32) @ drawn.T).astype(np.float64) / images
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return [Sample(row, resampled) for row, resampled in zip(rows, np.split(accuracies, ends), strict=True)]


def compare(a: Sample, b: Sample, *, seed: int = 0) -> Difference:
    """Return the difference a - b of two rows' mean accuracies and how sure it is.

    With one seed each, McNemar's exact test and the paired interval: both cover images only, and say nothing about
    what another seed would give.

    Otherwise a paired hierarchical bootstrap. Each resample draws images, shared by all seeds of both rows, and for
    each row seeds. With as few seeds as are trained, plain resampling makes the spread of a mean of n seeds too small
    by sqrt((n - 1) / n), and normal quantiles make it look too sure. So deviations of seeds from their row's mean
    are scaled by sqrt(n / (n - 1)), and the bootstrap's standard error s is used with Student's t. Its degrees of
    freedom are s^4 / sum(v_i^2 / (n_i - 1)), where v_i = sd_i^2 / n_i is the part of s^2 that a row's seeds cause.
    A row with a single seed is taken to vary over seeds as the other row does. What is peculiar to one seed on one
    image counts as chance of both kinds, so the test errs towards not telling apart.

    Sources: McNemar, Psychometrika 1947; Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007 (two crossed
    factors); Rao and Wu, Resampling inference with complex survey data, JASA 1988 (scaling); Satterthwaite, Biometrics
    Bulletin 1946, and Welch, Biometrika 1947 (degrees of freedom).
    """
    mean = float(a.verdicts.mean() - b.verdicts.mean())
    if len(a.verdicts) == len(b.verdicts) == 1:
        (first,), (second,) = a.verdicts, b.verdicts
        return Difference(mean, paired_interval(first, second), mcnemar(first, second), "images")
    random = np.random.default_rng(seed)
    differences = a.resampled.mean(0) - b.resampled.mean(0) + _seed_noise(a, b, random) - _seed_noise(b, a, random)
    error = float(differences.std(ddof=1))
    if error < NO_ERROR:  # all seeds agree on all images, or all disagree on all
        return Difference(mean, (mean, mean), float(abs(mean) < NO_ERROR), "images and seeds")
    freedom = error**4 / max(_seed_variance(a, b), NO_ERROR**4)
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Difference(
        mean, (mean - reach, mean + reach), 2 * float(stdtr(freedom, -abs(mean) / error)), "images and seeds"
    )


def mcnemar(a: Verdicts, b: Verdicts) -> float:
    """Return the two-sided p of McNemar's exact test for two networks on the same images; both bool, [m].

    Of the images that only one of them has right, each has half of them but for chance. Source: McNemar, Psychometrika
    1947.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a == only_b:
        return 1.0
    return float(min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _seed_noise(row: Sample, other: Sample, random: np.random.Generator) -> Floats:
    """Return, for each resample, how far the mean over resampled seeds of `row` strays from its mean: [resamples]."""
    source = row.resampled if len(row.resampled) > 1 else other.resampled
    seeds, resamples = source.shape
    deviations = (source - source.mean(0)) * math.sqrt(seeds / (seeds - 1))
    picks = random.integers(seeds, size=(len(row.resampled), resamples))
    noise: Floats = np.take_along_axis(deviations, picks, 0).mean(0)
    return noise


def _seed_variance(a: Sample, b: Sample) -> float:
    """Return the denominator of the degrees of freedom: the sum of v_i^2 / (n_i - 1)."""
    several = [row.verdicts for row in (a, b) if len(row.verdicts) > 1]
    variances = [float(verdicts.mean(1).var(ddof=1)) for verdicts in several]
    if len(several) == 1:  # both parts rest on one estimate: v is that of n seeds plus that of one
        seeds = len(several[0])
        return (variances[0] / seeds + variances[0]) ** 2 / (seeds - 1)
    return sum((variance / len(row)) ** 2 / (len(row) - 1) for variance, row in zip(variances, several, strict=True))
