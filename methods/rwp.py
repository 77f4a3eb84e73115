"""RWP: adversarial weight perturbation that looks only at images which are fitted well.

Before each update the weights climb in several steps the adversarial loss of those images of the batch whose loss lies
below a threshold; the gradient is taken there, the update is made there, and the perturbation is withdrawn. Perturbing
them for the others too would cost accuracy without need (Yu, Han, Gong, Shen, Ge, Du, Liu, Robust Weight Perturbation
for Adversarial Training, IJCAI 2022). MLCAT with weight perturbation is the same algorithm with another threshold (Yu,
Han, Shen, Yu, Gong, Gong, Liu, Understanding Robust Overfitting of Adversarial Training and Beyond, ICML 2022).

If no image lies below the threshold, the perturbation is zero; a single one gives it its full length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, CanonicalValue, MethodInfo, hyperparameter, running_statistics_kept
from methods import awp


class RWPParams(awp.Params):
    """How far the weights are moved, for which images."""

    gamma: float = hyperparameter(
        0.01, unit="share of the weights' norm", provenance="code", gt=0, lt=1,
        note="length of the perturbation of all tensors together",
    )  # fmt: skip
    threshold: float = hyperparameter(
        1.7, unit="nats", provenance="declared", gt=0, note="adversarial loss below which an image counts",
        by_dataset={
            "cifar10": CanonicalValue(1.7, "code"),
            "cifar100": CanonicalValue(4.0, "code"),
            "svhn": CanonicalValue(1.7, "code"),
            "tiny_imagenet": CanonicalValue(4.0, "declared"),
        },
    )  # fmt: skip
    ascents: int = hyperparameter(10, unit="steps", provenance="code", ge=1, note="ascent steps of each perturbation")
    rate: float = hyperparameter(0.01, unit="learning rate", provenance="code", gt=0, note="of the ascent")


class RWP(awp.AWP):
    """PGD-AT whose gradient is taken at weights that are worse for well fitted images."""

    info = MethodInfo(
        name="rwp",
        title="RWP",
        description="PGD-AT with a weight perturbation for well fitted images",
        paper="Yu et al., IJCAI 2022",
        year=2022,
    )
    Params = RWPParams
    data_parallel = True
    params: Any

    def weight_perturbation(self, batch: Batch, adversarial: Tensor) -> list[Tensor]:
        """Climb from the weights; after each step the whole way is scaled to gamma times the norm of all weights."""
        params, group = self.params, self.context.group
        start = [weight.detach().clone() for weight in self.moved]
        way = [torch.zeros_like(weight) for weight in start]
        scaled: tuple[Tensor, ...] = tuple(way)
        length = params.gamma * norm(start)
        for _ in range(params.ascents):
            with self.autocast(), running_statistics_kept(self.model):
                losses = F.cross_entropy(self.model(adversarial), batch.labels, reduction="none")
                selected = losses * (losses.detach() < params.threshold)
            gradients = group.all_reduce_mean(torch.autograd.grad(selected.mean(), self.moved))
            with torch.no_grad():
                torch._foreach_add_(way, gradients, alpha=params.rate)
                scaled = torch._foreach_mul(way, length / (norm(way) + 1e-20))
                torch._foreach_copy_(self.moved, torch._foreach_add(start, scaled))
        with torch.no_grad():
            torch._foreach_copy_(self.moved, start)
        return list(scaled)


def norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the 2-norm of all tensors together."""
    whole: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return whole


class MLCATParams(RWPParams):
    """RWP's, with the threshold that was released for CIFAR-10."""

    threshold: float = hyperparameter(
        1.5, unit="nats", provenance="declared", gt=0, note="adversarial loss below which an image counts",
        by_dataset={"cifar10": CanonicalValue(1.5, "code")},
    )  # fmt: skip
    warm_up: float = hyperparameter(
        0.0, unit="share of training", least_epochs=0, provenance="code", ge=0, le=1,
        note="plain PGD-AT at the beginning",
    )  # fmt: skip


class MLCATWeightPerturbation(RWP):
    """RWP under its earlier name."""

    info = MethodInfo(
        name="mlcat_wp",
        title="MLCAT-WP",
        description="PGD-AT with a weight perturbation for small adversarial losses",
        paper="Yu et al., ICML 2022",
        year=2022,
    )
    Params = MLCATParams
    data_parallel = True
