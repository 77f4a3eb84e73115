"""The hot path: one training step.

Nothing here waits for the device: losses and counts accumulate in tensors and are read once an epoch. Parameters are
frozen while images are crafted, so the attack computes input gradients only; images and weights are channels_last;
forward passes run in the protocol's precision; SGD is torch's fused one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.pgd import frozen
from bench.data.batches import Batch
from bench.method import Method
from bench.protocol import Optimizer


def sgd(model: nn.Module, settings: Optimizer) -> torch.optim.SGD:
    """Return SGD over every parameter of `model`, weight decay included for all of them."""
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
        fused=True,
    )


class Totals:
    """Sums over the steps of an epoch, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self._images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add one batch's mean loss, weighted by its size, and its number of right predictions."""
        right = (logits.detach().argmax(1) == labels).sum()
        self._sums += torch.stack((loss.detach() * len(labels), right))
        self._images += len(labels)

    def read(self) -> tuple[float, float]:
        """Return (mean loss, accuracy on adversarial images). Waits for the device."""
        loss, right = (self._sums / max(self._images, 1)).tolist()
        return loss, right


def train_step(method: Method[Any], batch: Batch, optimizer: torch.optim.Optimizer, totals: Totals) -> None:
    """Train on one batch: transform, perturb, descend."""
    with method.autocast(), frozen(method.model):
        with torch.no_grad():
            batch = method.transform(batch)
        adversarial = method.perturb(batch)
    loss, logits = method.backward(batch, adversarial)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step()
    totals.add(loss, logits, batch.labels)
