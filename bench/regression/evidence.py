"""Statistics of the regression gate: two samples of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from bench.attacks.outcome import Correct


def students_t(before: Sequence[float], now: Sequence[float], floor: float) -> float:
    """Return the two-sided p of Student's t-test of two samples with the pooled variance; three values or more.

    If nothing changed, both samples have one distribution and hence one variance, with n + k - 2 degrees of freedom.
    The pooled standard deviation is at least `floor`: values that agree by chance would make any difference certain.
    Source: Student, The probable error of a mean, Biometrika 1908.
    """
    means = [float(np.mean(sample)) for sample in (before, now)]
    deviations = [value - mean for sample, mean in zip((before, now), means, strict=True) for value in sample]
    sd = max(float(np.std(deviations, ddof=2)), floor)
    return float(stats.ttest_ind_from_stats(means[0], sd, len(before), means[1], sd, len(now)).pvalue)


def least_spread(sides: Sequence[Correct]) -> float:
    """Return a lower bound of an accuracy's standard deviation over seeds; `sides`: correct, bool, [n, m] each.

    If seeds flipped each image independently of the others, the variance of an accuracy would be the mean over images
    of the variance over seeds, divided by m; images that flip together only add to it. With hundreds of images a few
    seeds estimate this well, even if their accuracies agree by chance. Never less than one image, 1 / m.
    """
    images = int(sides[0].shape[1])
    freedom = sum(len(side) - 1 for side in sides)
    squares = sum(float(side.var(0).mean()) * len(side) for side in sides)
    return max(1 / images, math.sqrt(squares / max(freedom, 1) / images))
