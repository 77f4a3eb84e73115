"""MEAT: evaluation at the median of the weights of past epochs.

A mean of weights, as in SWA, keeps a share of every outlier; the coordinate-wise median does not (Hu et al., MEAT:
Median-Ensemble Adversarial Training for Improving Robustness and Generalization, 2024). Training itself is PGD-AT; only
the evaluated model differs.

Uncertain: only the abstract could be read. Which epochs are taken is declared here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench import Method, MethodInfo, MethodParams, frozen_copy, hyperparameter, recompute_statistics


class Params(MethodParams):
    """Which epochs the median is of."""

    window: float = hyperparameter(
        0.05, unit="share of training", least_epochs=3, provenance="declared", gt=0, le=1,
        note="last epochs that count, three at least: 10 of 200; each is kept in memory and in the resume checkpoint",
    )  # fmt: skip


class MEAT(Method[Params]):
    """PGD-AT, evaluated at the median of its last epochs, batch statistics recomputed."""

    info = MethodInfo(
        name="meat",
        title="MEAT",
        description="PGD-AT, evaluated at the median of its last epochs",
        paper="Hu et al., 2024",
        year=2024,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def begin_training(self) -> None:
        self.median = frozen_copy(self.model)
        self.kept: list[list[Tensor]] = []

    def end_epoch(self, epoch: int) -> None:
        """Keep the epoch's weights; set the median, with statistics of its own from clean training images."""
        self.kept.append([weight.detach().clone() for weight in self.model.parameters()])
        del self.kept[: -self.whole_epochs("window")]
        with torch.no_grad():
            for median, *weights in zip(self.median.parameters(), *self.kept, strict=True):
                ordered = torch.stack(weights).sort(0).values
                median.copy_((ordered[(len(weights) - 1) // 2] + ordered[len(weights) // 2]) / 2)
        with self.autocast():
            recompute_statistics(self.median, (batch.images for batch in self.context.batches))

    def evaluated_model(self) -> nn.Module:
        return self.median

    def state_dict(self) -> dict[str, Any]:
        kept = {str(age): dict(enumerate(weights)) for age, weights in enumerate(self.kept)}
        return {"median": self.median.state_dict(), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.median.load_state_dict(state["median"])
        device = self.context.device
        self.kept = [[weight.to(device) for weight in weights.values()] for weights in state["kept"].values()]
