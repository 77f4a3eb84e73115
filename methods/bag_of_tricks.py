"""Bag of Tricks: PGD-AT with the settings that most code leaves to chance.

The network is in eval mode while images are crafted, and the learning rate drops twice close to the end of training;
label smoothing is optional (Pang, Yang, Dong, Su, Zhu, Bag of Tricks for Adversarial Training, ICLR 2021). Weight
decay, batch size and the network are the protocol's.

Differs from the released code in one point: there, two clean forward passes in train mode surround every step, so that
running statistics mix adversarial and clean batches.
"""

from typing import Literal, Self

import torch.nn.functional as F
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, Schedule, cross_entropy, hyperparameter


class Params(MethodParams):
    """The tricks."""

    smoothing: float = hyperparameter(
        0.0, unit="share of the label", provenance="code", ge=0, le=0.5,
        note="spread over the K - 1 other classes; 0.1 to 0.2 is useful",
    )  # fmt: skip
    batch_norm: Literal["train", "eval"] = hyperparameter(
        "eval", unit="-", provenance="paper", note="mode of the network while crafting; the script's default is train"
    )
    first_drop: float = hyperparameter(
        100 / 110, unit="share of training", provenance="code", gt=0, lt=1, note="rate times 0.1: epoch 100 of 110"
    )
    second_drop: float = hyperparameter(
        105 / 110, unit="share of training", provenance="code", gt=0, lt=1, note="rate times 0.1: epoch 105 of 110"
    )

    @model_validator(mode="after")
    def _drops_rise(self) -> Self:
        if self.first_drop >= self.second_drop:
            raise PydanticCustomError("drops", "'second_drop' must be more than 'first_drop'")
        return self


class BagOfTricks(Method[Params]):
    """PGD-AT with late rate drops, crafting in eval mode, perhaps smoothing."""

    info = MethodInfo(
        name="bag_of_tricks",
        title="Bag of Tricks",
        description="PGD-AT with late rate drops and crafting in eval mode",
        paper="Pang, Yang, Dong, Su, Zhu, ICLR 2021",
        year=2021,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        return self.piecewise_schedule((self.params.first_drop, self.params.second_drop), 0.1)

    def perturb(self, batch: Batch) -> Tensor:
        return self.attack(batch, cross_entropy(batch.targets), batch_norm=self.params.batch_norm)

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        logits, classes = self.model(adversarial), self.context.classes
        # s/(K-1) on each other class is a smoothing of sK/(K-1) over all K classes.
        smoothing = self.params.smoothing * classes / (classes - 1)
        return F.cross_entropy(logits, batch.targets, label_smoothing=smoothing), logits
