"""TE: temporal ensembling, which keeps the network close to the average of its own past predictions.

From shortly before the first rate drop on, each sample's clean predictions are averaged over the epochs, and the
network is held to that average by a squared error that grows, in the loss and in the attack alike; one-hot labels alone
would have to be memorised (Dong, Xu, Yang, Pang, Deng, Su, Zhu, Exploring Memorization in Adversarial Training, ICLR
2022).

The released code counts epochs from 1: its epoch 90 is epoch 89 here.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, cross_entropy, hyperparameter, train_mode


class Params(MethodParams):
    """The ensemble and its weight."""

    momentum: float = hyperparameter(
        0.9, unit="1", provenance="code", ge=0, lt=1, note="share of the average that an epoch keeps"
    )
    weight: float = hyperparameter(300.0, unit="1", provenance="code", ge=0, note="largest weight of the squared error")
    start: float = hyperparameter(
        0.45, unit="share of training", least_epochs=0, provenance="code", ge=0, lt=1,
        note="first epoch: the 90th of 200",
    )  # fmt: skip
    ramp: float = hyperparameter(
        0.3, unit="share of training", least_epochs=1, provenance="code", gt=0, le=1,
        note="rise of the weight: 60 of 200",
    )  # fmt: skip


class TE(Method[Params]):
    """PGD-AT with a memory of every sample's predictions; crafting in eval mode."""

    info = MethodInfo(
        name="te",
        title="PGD-AT+TE",
        description="PGD-AT held to the average of its own past predictions",
        paper="Dong et al., ICLR 2022",
        year=2022,
        version=2,
    )
    Params = Params
    data_parallel = True

    def begin_training(self) -> None:
        count, classes = len(self.context.batches.images), self.context.classes
        self.ensemble = torch.zeros(count, classes, device=self.context.device)

    def begin_epoch(self, epoch: int) -> None:
        since = epoch + 1 - self.whole_epochs("start")  # the released code counts epochs from 1
        self.active = since >= 0
        self.weight = self.params.weight * math.exp(-5 * max(0.0, 1 - since / self.whole_epochs("ramp")) ** 2)

    def perturb(self, batch: Batch) -> Tensor:
        """Take the clean predictions into the ensemble, then attack cross-entropy and squared error together."""
        if self.active:
            with torch.no_grad(), train_mode(self.model, enabled=False):
                predicted = self.model(batch.images).float().softmax(1)
            momentum = self.params.momentum
            mixed = momentum * self.ensemble[batch.index] + (1 - momentum) * predicted
            group = self.context.group
            self.ensemble[group.all_gather(batch.index)] = group.all_gather(mixed)
            self.target = mixed / mixed.sum(1, keepdim=True)
        natural = cross_entropy(batch.labels)
        return self.attack(batch, lambda logits: natural(logits) + self.distance(logits).sum(), batch_norm="eval")

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch, adversarial)
        return loss + self.distance(logits).mean(), logits

    def distance(self, logits: Tensor) -> Tensor:
        """Return weight · mean over the classes of (softmax - ensemble)², [n]; zero before the ensemble starts."""
        if not self.active:
            return torch.zeros(len(logits), device=logits.device)
        squares: Tensor = (logits.float().softmax(1) - self.target).square()
        return squares.mean(1) * self.weight

    def state_dict(self) -> dict[str, Any]:
        return {"ensemble": self.ensemble}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ensemble.copy_(state["ensemble"])
