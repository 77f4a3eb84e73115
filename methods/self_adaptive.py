"""Self-adaptive training: TRADES towards labels that move with the network's own predictions.

From a given epoch on, the target of each image is a moving average of the predictions on it, and images whose target is
unsure count less; wrong or unlearnable labels lose their influence (Huang, Zhang, Zhang, Self-Adaptive Training: beyond
Empirical Risk Minimization, NeurIPS 2020). The released code's own recipe (eps 0.031, step 0.007, weight decay 2e-4,
drops at epochs 75 and 90) is not part of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, MethodInfo, hyperparameter
from methods import trades


class SelfAdaptiveParams(trades.Params):
    """The trade-off of TRADES, and the targets."""

    momentum: float = hyperparameter(
        0.9, unit="1", provenance="code", ge=0, lt=1, note="share of the target that an epoch keeps"
    )
    adaptation: float = hyperparameter(
        0.7, unit="share of training", least_epochs=0, provenance="code", ge=0, lt=1,
        note="first epoch that moves targets: 70th of 100",
    )  # fmt: skip


class SelfAdaptive(trades.TRADES):
    """TRADES with soft targets that every image keeps from epoch to epoch."""

    info = MethodInfo(
        name="self_adaptive",
        title="Self-adaptive",
        description="TRADES towards a moving average of the network's predictions",
        paper="Huang, Zhang, Zhang, NeurIPS 2020",
        year=2020,
        version=2,
    )
    Params = SelfAdaptiveParams
    data_parallel = True
    params: SelfAdaptiveParams

    def begin_training(self) -> None:
        labels = self.context.batches.images.labels
        self.targets = F.one_hot(labels, self.context.classes).to(self.context.device, torch.get_default_dtype())

    def begin_epoch(self, epoch: int) -> None:
        self.active = epoch + 1 >= self.whole_epochs("adaptation")  # the code counts from 1

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean(w · CE(clean, target)) + beta KL(clean ‖ adversarial), w the targets' largest probability.

        Before the adaptation, targets are labels and w is 1. Clean images pass through the network once, unlike in
        TRADES, as in the released code.
        """
        clean, logits = self.model(batch.images), self.model(adversarial)
        log_clean, log_robust = (outputs.to(self.targets.dtype).log_softmax(1) for outputs in (clean, logits))
        if self.active:
            targets = self.moved_targets(batch, log_clean.detach().exp())
            weights = targets.amax(1)
            (mean,) = self.context.group.all_reduce_mean([weights.mean()])
            natural = -(weights / mean * (targets * log_clean).sum(1)).mean()
        else:
            natural = F.nll_loss(log_clean, batch.labels)
        divergence = F.kl_div(log_robust, log_clean, reduction="batchmean", log_target=True)
        return natural + self.params.beta * divergence, logits

    def moved_targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        """Move the targets of the batch towards `predictions`, [n, classes], and return them."""
        group = self.context.group
        targets = self.targets[batch.index].lerp(predictions, 1 - self.params.momentum)
        self.targets[group.all_gather(batch.index)] = group.all_gather(targets)
        return targets

    def state_dict(self) -> dict[str, Any]:
        return {"targets": self.targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.targets.copy_(state["targets"])
