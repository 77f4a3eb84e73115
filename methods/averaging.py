"""Averaging of weights over training: EMA (exponential) and SWA (equal, by epochs).

The average of the weights along the way is flatter, and overfits less, than the weights themselves (Izmailov et al.,
Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018; for adversarial training: Rebuffi et al.,
Data Augmentation Can Improve Robustness, 2021; Wang et al., Balance, Imbalance, and Rebalance, NeurIPS 2023; Chen et
al., Robust Overfitting May Be Mitigated by Properly Learned Smoothening, ICLR 2021). Training itself is PGD-AT; only
the evaluated model differs.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from bench import (
    AverageParams,
    Method,
    MethodInfo,
    MethodParams,
    frozen_copy,
    hyperparameter,
    move_towards,
    recompute_statistics,
)


class EMAParams(AverageParams):
    """Which of two released recipes, and how long the average remembers."""

    memory: float | None = hyperparameter(
        1_000 / 76_400, unit="share of training", provenance="code", gt=0, le=1,
        note="decay 0.999 in 76,400 steps: decay = 1 - 1/(memory steps)",
    )  # fmt: skip
    recipe: Literal["rebat", "deepmind"] = hyperparameter(
        "rebat", unit="-", provenance="code",
        note="rebat: from start on, batch statistics averaged too; deepmind: step t (from 0) keeps "
        "min((1 + t) / (10 + t), decay), batch statistics copied; released with decay 0.995",
    )  # fmt: skip
    start: float = hyperparameter(
        0.025, unit="share of training after the first drop", least_epochs=0, provenance="code", ge=0, le=1,
        note="of rebat: epoch 105 of 200; before it the average is a copy",
    )  # fmt: skip


class EMA(Method[EMAParams]):
    """PGD-AT, evaluated at the exponential moving average of its weights."""

    info = MethodInfo(
        name="ema",
        title="EMA",
        description="PGD-AT, evaluated at the moving average of its weights",
        paper="Rebuffi et al., 2021; Wang et al., NeurIPS 2023",
        year=2021,
        version=2,
    )
    Params = EMAParams
    data_parallel = True
    accepts_soft_labels = True

    def begin_training(self) -> None:
        self.average, self.steps = frozen_copy(self.model), 0
        self.decay = self.params.decay_in(self.training_steps)

    def begin_epoch(self, epoch: int) -> None:
        self.started = epoch >= first_averaged(self)

    def after_step(self) -> None:
        if self.params.recipe == "deepmind":
            decay = min((1 + self.steps) / (10 + self.steps), self.decay)
            move_towards(self.average, self.model, 1 - decay, buffers="copy")
        else:
            move_towards(self.average, self.model, 1 - self.decay if self.started else 1.0, buffers="average")
        self.steps += 1

    def evaluated_model(self) -> nn.Module:
        return self.average

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.steps = state["steps"]


class SWAParams(MethodParams):
    """When averaging starts."""

    start: float = hyperparameter(
        0.025, unit="share of training after the first drop", least_epochs=0, provenance="code", ge=0, le=1,
        note="first epoch averaged: 5 of 200 after the drop",
    )  # fmt: skip


class SWA(Method[SWAParams]):
    """PGD-AT, evaluated at the equal average of the weights after each epoch, batch statistics recomputed."""

    info = MethodInfo(
        name="swa",
        title="SWA",
        description="PGD-AT, evaluated at the equal average of its epochs",
        paper="Izmailov et al., UAI 2018; Chen et al., ICLR 2021",
        year=2018,
        version=2,
    )
    Params = SWAParams
    data_parallel = True
    accepts_soft_labels = True

    def begin_training(self) -> None:
        self.average, self.averaged = frozen_copy(self.model), 0

    def end_epoch(self, epoch: int) -> None:
        """Take the epoch into the average, and give the average statistics of its own from clean training images."""
        if epoch >= first_averaged(self):
            self.averaged += 1
            move_towards(self.average, self.model, 1 / self.averaged, buffers="copy")
            with self.autocast():
                recompute_statistics(self.average, (batch.images for batch in self.context.batches))

    def evaluated_model(self) -> nn.Module:
        return self.average if self.averaged else self.model

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "averaged": self.averaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.averaged = state["averaged"]


def first_averaged(method: Method[Any]) -> int:
    """Return the first epoch of averaging: `start` of training after the first rate drop, never without one."""
    return method.lr_schedule.first_drop + method.whole_epochs("start")
