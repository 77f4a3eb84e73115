"""GAIRAT: images near the decision boundary count more.

An image that the attack needs few steps to turn lies near the boundary; the number of iterates that are still
classified correctly gives its weight in the loss (Zhang, Zhu, Niu, Han, Sugiyama, Kankanhalli, Geometry-aware
Instance-reweighted Adversarial Training, ICLR 2021). The authors concede that AutoAttack finds little of the gain.

The released code's own recipe (eps 0.031, step 0.007, weight decay 2e-4, 120 epochs) is not part of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, cross_entropy, hyperparameter


class Params(MethodParams):
    """The weights."""

    shift: float = hyperparameter(
        -1.0, unit="1", provenance="code", ge=-30, note="lambda: the larger, the more equal the weights"
    )
    start: float = hyperparameter(
        0.5, unit="share of training", least_epochs=0, provenance="code", ge=0, lt=1,
        note="first epoch with weights: the 60th of 120",
    )  # fmt: skip


class GAIRAT(Method[Params]):
    """PGD-AT with a weight for each image; crafting in eval mode."""

    info = MethodInfo(
        name="gairat",
        title="GAIRAT",
        description="PGD-AT with larger weights near the decision boundary",
        paper="Zhang et al., ICLR 2021",
        year=2021,
    )
    Params = Params
    data_parallel = True

    def begin_epoch(self, epoch: int) -> None:
        self.active = epoch + 1 >= self.whole_epochs("start")  # the code counts from 1

    def perturb(self, batch: Batch) -> Tensor:
        """Count the iterates, start included and result left out, that are classified correctly."""
        natural = cross_entropy(batch.labels)
        correct = torch.zeros(len(batch), device=batch.images.device)

        def objective(logits: Tensor) -> Tensor:
            correct.add_(logits.detach().argmax(1) == batch.labels)
            return natural(logits)

        adversarial = self.attack(batch, objective, batch_norm="eval")
        self.weights = self.weigh(correct)
        return adversarial

    def weigh(self, correct: Tensor) -> Tensor:
        """Return (tanh(shift + 5 (1 - 2 correct / steps)) + 1) / 2, divided by its mean over the batch: [n]."""
        steps = self.context.protocol.training.attack.steps
        weights = torch.sigmoid(2 * (self.params.shift + 5 * (1 - 2 * correct / steps)))
        (mean,) = self.context.group.all_reduce_mean([weights.mean()])
        return weights / mean

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        if not self.active:
            return super().loss(batch, adversarial)
        logits = self.model(adversarial)
        return (self.weights * F.cross_entropy(logits, batch.labels, reduction="none")).mean(), logits
