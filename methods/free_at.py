"""Free adversarial training: one backward pass gives the gradients of the weights and of the images.

Each batch is trained on several times in a row. Every time its perturbation takes a step along the image gradient that
the update before has computed anyway, so an update costs as much as in natural training (Shafahi, Najibi, Ghiasi, Xu,
Dickerson, Studer, Davis, Taylor, Goldstein, Adversarial Training for Free, NeurIPS 2019). The perturbation goes on from
one batch to the next.

The number of updates is the protocol's, so an epoch trains on the first of every `replays` batches and skips the rest.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, hyperparameter


class Params(MethodParams):
    """The replays and the step."""

    replays: int = hyperparameter(8, unit="updates", provenance="code", ge=1, note="of each batch in a row: m")
    step: float = hyperparameter(1.0, unit="eps", provenance="code", gt=0, le=2, note="length of a step: 8/255")


class FreeAT(Method[Params]):
    """Replayed batches with a perturbation that one backward pass updates together with the weights."""

    info = MethodInfo(
        name="free_at",
        title="Free AT",
        description="Replayed batches, one backward pass for weights and images",
        paper="Shafahi et al., NeurIPS 2019",
        year=2019,
    )
    Params = Params
    delta: Tensor | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Take a fresh batch in the first step of every epoch."""
        self.kept: list[Tensor] = []
        self.updates = torch.zeros((), dtype=torch.int64, device=self.context.device)

    def transform(self, batch: Batch) -> Batch:
        """Return the batch that is replayed, or this one; decided on the device, so that a graph may repeat it."""
        given, n = (batch.images, batch.labels, batch.index), len(batch)
        if not self.kept:
            self.kept = [value.clone() for value in given]
        if self.delta is None:
            self.delta = torch.zeros_like(batch.images)
        fresh = self.updates % self.params.replays == 0
        for kept, value in zip(self.kept, given, strict=True):
            kept[:n].copy_(torch.where(fresh, value, kept[:n]))
        self.updates += 1
        images, labels, index = (kept[:n].clone() for kept in self.kept)
        return replace(batch, images=images, labels=labels, index=index)

    def perturb(self, batch: Batch) -> Tensor:
        assert self.delta is not None
        return (batch.images + self.delta[: len(batch)]).clamp(0, 1)

    def backward(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both gradients, and move the perturbation along that of the images."""
        assert self.delta is not None
        adversarial = adversarial.detach().requires_grad_()
        losses = super().backward(batch, adversarial)
        assert adversarial.grad is not None
        step_size = self.params.step * self.ball().eps
        moved = self.ascend(batch.images, adversarial, adversarial.grad, step_size)
        self.delta[: len(batch)].copy_(moved - batch.images)
        return losses

    def state_dict(self) -> dict[str, Any]:
        return {} if self.delta is None else {"delta": self.delta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "delta" in state:
            self.delta = state["delta"].to(self.context.device, memory_format=torch.channels_last)
