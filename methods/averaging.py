"""Averaging of weights over training: EMA (exponential) and SWA (equal, by epochs).

The average of the weights along the way is flatter, and overfits less, than the weights themselves (Izmailov et al.,
Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018; for adversarial training: Rebuffi et al.,
Data Augmentation Can Improve Robustness, 2021, and Chen et al., Robust Overfitting May Be Mitigated by Properly Learned
Smoothening, ICLR 2021). Training itself is PGD-AT; only the evaluated model differs.

Uncertain: EMA's first steps keep less, as in Rebuffi's released code, whose decay is 0.995; with 0.999 that is our
choice.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from bench import Method, MethodInfo, MethodParams, frozen_copy, hyperparameter, move_towards, recompute_statistics


class EMAParams(MethodParams):
    """How long the average remembers."""

    decay: float = hyperparameter(
        0.999, unit="1", provenance="code", ge=0, lt=1,
        note="share of the average that step t (from 0) keeps: min((1 + t) / (10 + t), decay)",
    )  # fmt: skip


class EMA(Method[EMAParams]):
    """PGD-AT, evaluated at the exponential moving average of its weights and batch statistics."""

    info = MethodInfo(
        name="ema",
        title="EMA",
        description="PGD-AT, evaluated at the moving average of its weights",
        paper="Rebuffi et al., 2021",
        year=2021,
    )
    Params = EMAParams
    data_parallel = True
    accepts_soft_labels = True

    def begin_training(self) -> None:
        self.average, self.steps = frozen_copy(self.model), 0

    def after_step(self) -> None:
        """Average; the first steps keep less, or the average would hold the initial weights for a thousand steps."""
        decay = min((1 + self.steps) / (10 + self.steps), self.params.decay)
        move_towards(self.average, self.model, 1 - decay, buffers="average")
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
        0.275, unit="share of training", provenance="code", ge=0, lt=1, note="first epoch averaged: 55 of 200"
    )


class SWA(Method[SWAParams]):
    """PGD-AT, evaluated at the equal average of the weights after each epoch, batch statistics recomputed."""

    info = MethodInfo(
        name="swa",
        title="SWA",
        description="PGD-AT, evaluated at the equal average of its epochs",
        paper="Izmailov et al., UAI 2018; Chen et al., ICLR 2021",
        year=2018,
    )
    Params = SWAParams
    data_parallel = True
    accepts_soft_labels = True

    def begin_training(self) -> None:
        self.average, self.averaged = frozen_copy(self.model), 0

    def end_epoch(self, epoch: int) -> None:
        """Take the epoch into the average, and give the average statistics of its own from clean training images."""
        if epoch >= round(self.params.start * self.lr_schedule.epochs):
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
