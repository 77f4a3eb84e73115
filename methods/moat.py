"""Declared, from the abstract alone: MOAT, training that cycles through clean, single-step and multi-step images.

Stages of benign, single-step and multi-step adversarial images alternate, which costs less than multi-step images
throughout and keeps single-step training from collapsing (Wang, Song, Wang, He, Multi-stage Optimization Based
Adversarial Training, 2021).

Uncertain: length, order and schedule of the stages. All parameters are declared here.
"""

from typing import Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, hyperparameter
from methods.single_step import single_step


class Params(MethodParams):
    """The stages of a cycle."""

    cycle: float = hyperparameter(
        0.1, unit="share of training", least_epochs=3, provenance="declared", gt=0, le=1,
        note="three epochs at least: 20 of 200",
    )  # fmt: skip
    benign: float = hyperparameter(
        0.2, unit="share of a cycle", provenance="declared", ge=0, le=1, note="first stage: no attack"
    )
    single: float = hyperparameter(
        0.4, unit="share of a cycle", provenance="declared", ge=0, le=1,
        note="second stage: one step from a random start; the rest of a cycle has the protocol's attack",
    )  # fmt: skip
    step: float = hyperparameter(1.25, unit="eps", provenance="declared", gt=0, le=2, note="length of that one step")

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.benign + self.single > 1:
            raise PydanticCustomError(
                "stages", "the protocol's attack has what 'benign' and 'single' leave of a cycle; lower one of them"
            )
        return self


class MOAT(Method[Params]):
    """Cross-entropy on images that are clean, single-step or multi-step adversarial, by epoch."""

    info = MethodInfo(
        name="moat",
        title="MOAT",
        description="Clean, single-step and multi-step images in turn",
        paper="Wang et al., 2021",
        year=2021,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def begin_epoch(self, epoch: int) -> None:
        cycle = self.whole_epochs("cycle")
        benign, single = (round(share * cycle) for share in (self.params.benign, self.params.single))
        self.stage = (epoch % cycle >= benign) + (epoch % cycle >= benign + single)

    def perturb(self, batch: Batch) -> Tensor:
        if self.stage == 0:
            return batch.images
        if self.stage == 1:
            return single_step(self, batch, self.params.step)
        return super().perturb(batch)
