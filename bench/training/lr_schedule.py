"""Learning-rate schedules: the rate of every step as a function of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.config.optimization import Cosine, Cyclic, OneCycle, Piecewise
from bench.config.protocol import Track, Training

AROUND = 2
"""Epochs before and after a drop that are tracked by default: robust overfitting sets in there; our choice."""

COSINE_DROP = 0.5
"""The share of training at which a cosine counts as fallen: declared, since it falls from its first step on."""


@dataclass(frozen=True)
class Schedule:
    """The length of training and the learning rate of each step.

    `rate(t)` is the rate of the step that ends at time `t`, in epochs: step i (from 0) of n in epoch e has
    t = e + (i + 1) / n. `first_drop` is the first epoch (from 0) after the rate has started to fall, `epochs` if never;
    several methods start a phase there. For `cosine` it is at `COSINE_DROP`.
    """

    epochs: int
    rate: Callable[[float], float]
    first_drop: int

    def drops(self) -> list[int]:
        """Return the epochs (from 0) that follow a drop: `first_drop`, and where the rate has halved after a plateau.

        A piecewise rate drops on the last step before its milestone.
        """
        ends = [self.rate(float(t)) for t in range(1, self.epochs + 1)]  # the rate at the end of each epoch
        halved = {
            epoch + 1
            for epoch in range(1, self.epochs)
            if ends[epoch] <= ends[epoch - 1] / 2 and (epoch < 2 or ends[epoch - 1] == ends[epoch - 2])
        }
        return sorted({self.first_drop, *halved})


def tracked_epochs(schedule: Schedule, track: Track) -> frozenset[int]:
    """Return the epochs (from 0) after which accuracies are tracked; see `Track`."""
    if track.every is None:
        return frozenset(range(schedule.epochs))
    around = AROUND if track.around is None else track.around
    near = {epoch for drop in schedule.drops() for epoch in range(drop - around, drop + around)}
    regular = range(track.every - 1, schedule.epochs, track.every)
    return frozenset({*regular, *near, schedule.epochs - 1} & {*range(schedule.epochs)})


def protocol_schedule(training: Training) -> Schedule:
    """Return the schedule that a protocol states.

    A piecewise schedule compares with `<`, as the released code of Rice et al. (2020) does, so the rate drops on the
    last step before the milestone, whose t equals the milestone. The warm-up multiplies the rate by t / warmup, as in
    the released code of Zhang et al. (2022).
    """
    settings, epochs, full = training.schedule, training.epochs, training.optimizer.lr
    warmup: float = getattr(settings, "warmup", None) or 0.0
    share, first_drop = _shares(settings, epochs, warmup)

    def rate(t: float) -> float:
        return full * share(t) * (t / warmup if t < warmup else 1)

    first = next(epoch for epoch in range(epochs + 1) if epoch / epochs >= first_drop)
    return Schedule(epochs, rate, first)


def _shares(settings: object, epochs: int, warmup: float) -> tuple[Callable[[float], float], float]:
    """Return the share of the full rate at time t, and the share of training at which it first falls."""
    if isinstance(settings, Cyclic):
        peak = settings.peak * epochs
        return lambda t: min(t / peak, (epochs - t) / (epochs - peak)), settings.peak
    if isinstance(settings, OneCycle):
        top, start, end = settings.peak * epochs, settings.start, settings.end

        def one_cycle(t: float) -> float:
            return (
                start + (1 - start) * _rise(t / top) if t < top else 1 - (1 - end) * _rise((t - top) / (epochs - top))
            )

        return one_cycle, settings.peak
    if isinstance(settings, Cosine):
        return lambda t: 1 - _rise(max(0.0, t - warmup) / (epochs - warmup)), COSINE_DROP
    if isinstance(settings, Piecewise) and settings.milestones:
        milestones, factor = settings.milestones, settings.factor
        # t / epochs and not share * epochs: 0.55 * 200 is a little more than 110, but 110 / 200 is 0.55.
        return lambda t: factor ** sum(t / epochs >= share for share in milestones), milestones[0]
    return lambda _t: 1.0, 1.0


def _rise(x: float) -> float:
    """Return half a cosine from 0 at x = 0 to 1 at x = 1."""
    return (1 - math.cos(math.pi * x)) / 2
