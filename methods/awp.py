"""AWP: adversarial weight perturbation, which flattens the loss around the weights as well as around the images.

Before each update the weights take one step up the adversarial loss, each tensor by a fixed share of its own norm; the
gradient is taken there, the update is made there, and the perturbation is then withdrawn (Wu, Xia, Wang, Adversarial
Weight Perturbation Helps Robust Generalization, NeurIPS 2020). On SVHN the released code starts after five epochs.
"""

import torch
from torch import Tensor

from bench import Batch, CanonicalValue, Method, MethodInfo, MethodParams, hyperparameter, running_statistics_kept


class Params(MethodParams):
    """How far the weights are moved."""

    gamma: float = hyperparameter(
        0.01, unit="share of the tensor's norm", provenance="code", gt=0, lt=1, note="size of the step"
    )
    warm_up: float = hyperparameter(
        0.0, unit="share of training", least_epochs=0, provenance="code", ge=0, le=1,
        note="plain PGD-AT at the beginning; on SVHN 5 of 200 epochs",
        by_dataset={"svhn": CanonicalValue(0.025, "code")},
    )  # fmt: skip


class AWP(Method[Params]):
    """PGD-AT whose gradient is taken at perturbed weights."""

    info = MethodInfo(
        name="awp",
        title="AWP",
        description="PGD-AT with an adversarial step on the weights before each update",
        paper="Wu, Xia, Wang, NeurIPS 2020",
        year=2020,
        version=2,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def begin_epoch(self, epoch: int) -> None:
        self.active = epoch >= self.whole_epochs("warm_up")

    def backward(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Move the weights up the loss, then take the gradient there; `after_step` moves them back."""
        if not self.active:
            return super().backward(batch, adversarial)
        self.moved: list[Tensor] = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        self.perturbation = self.weight_perturbation(batch, adversarial)
        with torch.no_grad():
            torch._foreach_add_(self.moved, self.perturbation)
        return super().backward(batch, adversarial)

    def weight_perturbation(self, batch: Batch, adversarial: Tensor) -> list[Tensor]:
        """Return what is added to each of the `moved` tensors; it leaves weights and batch statistics as they are."""
        with self.autocast(), running_statistics_kept(self.model):
            loss, _ = self.loss(batch, adversarial)
        gradients = self.context.group.all_reduce_mean(torch.autograd.grad(loss, self.moved))
        return [
            weight_step(weight.detach(), gradient, self.params.gamma)
            for weight, gradient in zip(self.moved, gradients, strict=True)
        ]

    def after_step(self) -> None:
        if self.active:
            with torch.no_grad():
                torch._foreach_sub_(self.moved, self.perturbation)


def weight_step(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """Return the step of one tensor: along its gradient, `gamma` times the tensor's norm long."""
    length = gamma * torch.linalg.vector_norm(weight)
    step: Tensor = gradient * (length / (torch.linalg.vector_norm(gradient) + 1e-20))
    return step
