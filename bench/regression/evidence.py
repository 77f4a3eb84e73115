"""The statistics of the gate: two samples of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr

from bench.attacks.outcome import Verdicts


def students_t(before: Sequence[float], now: Sequence[float], floor: float) -> float:
    """Return the two-sided p of Student's t-test of two samples with the pooled variance; three values or more.

    If nothing has changed, both samples are of one distribution, so their variance is one, and n + k - 2 degrees of
    freedom serve it. The pooled standard deviation is not let below `floor`, or values that agree by luck would make
    any difference certain. Source: Student, The probable error of a mean, Biometrika 1908.
    """
    a, b = np.asarray(before, np.float64), np.asarray(now, np.float64)
    freedom = len(a) + len(b) - 2
    pooled = math.sqrt((((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / freedom)
    t = (b.mean() - a.mean()) / (max(pooled, floor) * math.sqrt(1 / len(a) + 1 / len(b)))
    return 2 * float(stdtr(freedom, -abs(t)))


def least_spread(sides: Sequence[Verdicts]) -> float:
    """Return the standard deviation over seeds that an accuracy has at the least; `sides`: verdicts, bool, [n, m] each.

    If seeds flipped each image independently of the others, the variance of an accuracy would be the mean over images
    of the variance over seeds, divided by m; images that flip together only add to it. With hundreds of images this is
    known well from a few seeds, where their accuracies may agree by luck. Never less than one image, 1 / m.
    """
    images = int(sides[0].shape[1])
    freedom = sum(len(side) - 1 for side in sides)
    squares = sum(float(side.var(0).mean()) * len(side) for side in sides)
    return max(1 / images, math.sqrt(squares / max(freedom, 1) / images))
