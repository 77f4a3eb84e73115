"""ReBAT: a milder drop of the learning rate, and a pull towards the average of the weights after it.

After the drop the network can fit training images that it should not; it is given less of a drop, and held to the
predictions of its own weight average, which is also what is evaluated. ReBAT++ trains in a larger ball from the drop on
(Wang, Li, Yang, Lin, Wang, Balance, Imbalance, and Rebalance: Understanding Robust Overfitting from a Minimax Game
Perspective, NeurIPS 2023).

Differs from the released code in two points: the average is in eval mode throughout, where there it is in train mode
during the first epoch of the pull; and no clean forward pass follows a step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, MethodInfo, Schedule, cross_entropy, hyperparameter
from methods.averaging import EMA, EMAParams

PAPER = "Wang et al., NeurIPS 2023"


class Params(EMAParams):
    """The drop, the pull, and the average."""

    drop: float = hyperparameter(
        1.5, unit="1", provenance="code", gt=1, note="divisor of the rate at each drop; 4 for WRN-34-10 with CutMix"
    )
    beta: float = hyperparameter(1.0, unit="1", provenance="code", ge=0, note="weight of the divergence")


class ReBAT(EMA):
    """PGD-AT with small drops, held to the weight average after the first."""

    info = MethodInfo("rebat", "ReBAT", "Small rate drops, and a pull towards the weight average", PAPER, 2023)
    Params = Params
    data_parallel = True
    accepts_soft_labels = True
    params: Any

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        """Drop at the protocol's milestones, or at 0.5 and 0.75 of training."""
        milestones = getattr(self.context.protocol.training.schedule, "milestones", ()) or (0.5, 0.75)
        return self.piecewise_schedule(milestones, 1 / self.params.drop)

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return CE + beta KL(average ‖ network) on the adversarial images; the average gets no gradient."""
        loss, logits = super().loss(batch, adversarial)
        if not self.started:
            return loss, logits
        with torch.no_grad():
            target = self.average(adversarial).float().log_softmax(1)
        divergence = F.kl_div(logits.float().log_softmax(1), target, reduction="batchmean", log_target=True)
        return loss + self.params.beta * divergence, logits


class PlusParams(Params):
    """Those of ReBAT, and the larger ball."""

    drop: float = hyperparameter(1.7, unit="1", provenance="code", gt=1, note="divisor of the rate at each drop")
    radius: float = hyperparameter(
        1.25, unit="eps", provenance="code", ge=1, le=7, note="of the attack from the first drop on: 10/255"
    )
    steps: float = hyperparameter(
        1.2, unit="share of the protocol's steps", provenance="code", gt=0, le=7,
        note="from the first drop on: 12 for 10",
    )  # fmt: skip

    @property
    def training_radius(self) -> float:
        return self.radius


class ReBATPlus(ReBAT):
    """ReBAT with a stronger attack after the first drop."""

    info = MethodInfo("rebat_pp", "ReBAT++", "ReBAT in a larger ball from the first drop on", PAPER, 2023)
    Params = PlusParams
    data_parallel = True
    accepts_soft_labels = True

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.stronger = epoch >= self.lr_schedule.first_drop

    def perturb(self, batch: Batch) -> Tensor:
        if not self.stronger:
            return super().perturb(batch)
        steps = max(1, round(self.params.steps * self.context.protocol.training.attack.steps))
        return self.attack(batch, cross_entropy(batch.targets), radius=self.params.radius, steps=steps)
