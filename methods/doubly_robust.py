"""Declared, from the abstract alone: doubly robust training, which gives images with a larger loss a larger weight.

The weights of the images are those of the worst distribution close to the batch's, so training is robust to
perturbations of the images and of their weights (Sow, Lin, Wang, Liang, Doubly Robust Instance-Reweighted Adversarial
Training, ICLR 2024). With a KL divergence as penalty of strength r, the worst weights are proportional to
exp(loss / r), a known result of distributionally robust optimisation.

Uncertain: the paper solves a bi-level problem that we could not read; r is declared here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, hyperparameter


class Params(MethodParams):
    """The penalty on unequal weights."""

    penalty: float = hyperparameter(
        1.0, unit="nats", provenance="declared", gt=0, note="r: the larger, the more equal the weights"
    )


class DoublyRobust(Method[Params]):
    """PGD-AT with weights that grow with the loss."""

    info = MethodInfo(
        name="doubly_robust",
        title="Doubly robust",
        description="PGD-AT with weights that grow exponentially with the loss",
        paper="Sow, Lin, Wang, Liang, ICLR 2024",
        year=2024,
    )
    Params = Params
    data_parallel = True

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of w · CE over the batch, w = softmax(CE / penalty) over the batch, without gradient."""
        logits, group = self.model(adversarial), self.context.group
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        weights = torch.softmax(group.all_gather(losses.detach()) / self.params.penalty, 0)
        return group.size * (group.shard(weights) * losses).sum(), logits
