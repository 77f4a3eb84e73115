"""Learning-rate schedules: the rate of every step as a function of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.config.protocol import Constant, Cyclic, Training


@dataclass(frozen=True)
class Schedule:
    """The length of training and the learning rate of each step.

    `rate(t)` is the rate of the step that ends at time `t`, in epochs: step i (from 0) of n in epoch e has
    t = e + (i + 1) / n. `first_drop` is the first epoch (from 0) after the rate has started to fall, `epochs` if never;
    several methods start a phase there.
    """

    epochs: int
    rate: Callable[[float], float]
    first_drop: int


def protocol_schedule(training: Training) -> Schedule:
    """Return the schedule that a protocol states.

    A piecewise schedule compares with `<`, as the released code of Rice et al. (2020) does, so the rate drops on the
    last step before the milestone, whose t equals the milestone.
    """
    settings, epochs, full = training.schedule, training.epochs, training.optimizer.lr

    def first_epoch_from(share: float) -> int:
        return next(epoch for epoch in range(epochs + 1) if epoch / epochs >= share)

    if isinstance(settings, Constant):
        return Schedule(epochs, lambda _t: full, first_drop=epochs)
    if isinstance(settings, Cyclic):
        peak = settings.peak * epochs
        cyclic = lambda t: full * min(t / peak, (epochs - t) / (epochs - peak))  # noqa: E731
        return Schedule(epochs, cyclic, first_epoch_from(settings.peak))
    milestones, factor = settings.milestones, settings.factor

    def piecewise(t: float) -> float:
        # t / epochs and not share * epochs: 0.55 * 200 is a little more than 110, but 110 / 200 is 0.55.
        return full * factor ** sum(t / epochs >= share for share in milestones)

    return Schedule(epochs, piecewise, first_epoch_from(milestones[0]) if milestones else epochs)
