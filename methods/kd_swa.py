"""KD-SWA: labels softened by two teachers, and weights averaged over the epochs.

A naturally trained and a robust network of the same architecture, both on the adversarial images, soften the labels;
the equal average of the weights, as in SWA, is evaluated (Chen, Zhang, Liu, Chang, Wang, Robust Overfitting May Be
Mitigated by Properly Learned Smoothening, ICLR 2021). The teachers are cells of their own, trained first, and count in
the cost.
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from bench import Batch, MethodInfo, Schedule, Teacher, hyperparameter
from methods.averaging import SWA, SWAParams


class Params(SWAParams):
    """The teachers, their weights and the rate drops."""

    natural: Teacher = hyperparameter(
        Teacher(method="natural", checkpoint="last"), unit="-", provenance="declared",
        note="naturally trained teacher; the code takes the epoch of its best clean accuracy",
    )  # fmt: skip
    robust: Teacher = hyperparameter(
        Teacher(method="pgd_at", checkpoint="best"), unit="-", provenance="code",
        note="robust teacher, best on validation images",
    )  # fmt: skip
    natural_weight: float = hyperparameter(
        0.1, unit="share of the loss", provenance="code", ge=0, le=1, note="of the natural teacher"
    )
    robust_weight: float = hyperparameter(
        0.6, unit="share of the loss", provenance="code", ge=0, le=1, note="of the robust teacher; labels have the rest"
    )
    temperature: float = hyperparameter(2.0, unit="1", provenance="code", gt=0, note="of both teachers")
    first_drop: float = hyperparameter(
        0.25, unit="share of training", provenance="code", gt=0, lt=1, note="rate times 0.1: epoch 50 of 200"
    )
    second_drop: float = hyperparameter(
        0.75, unit="share of training", provenance="code", gt=0, lt=1, note="rate times 0.1: epoch 150 of 200"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first_drop >= self.second_drop:
            raise PydanticCustomError("drops", "'second_drop' must be more than 'first_drop'")
        if self.natural_weight + self.robust_weight > 1:
            raise PydanticCustomError(
                "weights", "the labels have what 'natural_weight' and 'robust_weight' leave of 1; lower one of them"
            )
        return self


class KDSWA(SWA):
    """SWA whose loss has two teachers beside the labels."""

    info = MethodInfo(
        name="kd_swa",
        title="KD-SWA",
        description="Labels softened by two teachers, and the average of the epochs",
        paper="Chen, Zhang, Liu, Chang, Wang, ICLR 2021",
        year=2021,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True
    params: Any

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        return self.piecewise_schedule((self.params.first_drop, self.params.second_drop), 0.1)

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - a - b) CE + a D(natural) + b D(robust), D = temperature² times the soft cross-entropy."""
        params, logits = self.params, self.model(adversarial)
        loss = (1 - params.natural_weight - params.robust_weight) * F.cross_entropy(logits, batch.targets)
        soft = logits.float() / params.temperature
        for name, weight in (("natural", params.natural_weight), ("robust", params.robust_weight)):
            with torch.no_grad():
                teacher = self.context.teachers[name](adversarial).float() / params.temperature
            loss = loss + weight * params.temperature**2 * F.cross_entropy(soft, teacher.softmax(1))
        return loss, logits
