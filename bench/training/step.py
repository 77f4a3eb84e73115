"""The hot path: one training step.

Nothing here waits for the device: losses and counts accumulate in tensors and are read once an epoch. Parameters are
frozen while images are crafted, so the attack computes input gradients only; images and weights are channels_last;
forward passes run in the protocol's precision; SGD is torch's fused one. On an NVIDIA GPU transform, attack and both
gradients are recorded as one CUDA graph at the beginning of every epoch, and replayed.

PreActResNet-18, batches of 64, PGD-10, two cores of an AMD EPYC: 1.9 times the loop of public code in fp32, 3.3 times
in bf16 (`bench speed`, medians of five turns; docs/performance.md). Not yet measured on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.pgd import frozen_parameters
from bench.config.protocol import Optimizer
from bench.data.batches import Batch
from bench.training.method import Method
from bench.utils.cuda_graphs import Recorder, replayed
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import HostRandomness

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps of an epoch before one is recorded: torch chooses kernels and makes the optimiser's buffers meanwhile."""

Losses = tuple[Tensor, Tensor]
"""Loss and logits [n, classes] of a batch."""


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

    def __init__(self, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._group = group
        self._sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self._images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add one batch's mean loss, weighted by its size, and its number of right predictions."""
        right = (logits.detach().argmax(1) == labels).sum()
        self._sums += torch.stack((loss.detach() * len(labels), right))
        self._images += len(labels)

    def read(self) -> tuple[float, float]:
        """Return (mean loss, accuracy on adversarial images) of all processes. Waits for the device."""
        sums = self._sums.clone()
        self._group.all_reduce(sums)
        loss, right = (sums / max(self._group.size * self._images, 1)).tolist()
        return loss, right


def train_step(
    method: Method[Any],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    totals: Totals,
    replay: Callable[..., Losses] | None = None,
) -> None:
    """Train on one batch: transform, perturb, descend. `replay` computes the gradients, where it did before."""
    loss, logits = replay(batch.images, batch.labels, batch.index) if replay else compute_gradients(method, batch)
    optimizer.step()
    if not replay:
        optimizer.zero_grad(set_to_none=True)
    method.after_step()
    totals.add(loss, logits, batch.labels)


def compute_gradients(method: Method[Any], batch: Batch) -> Losses:
    """Leave the gradients of one whole batch in the parameters: transform, perturb, backward."""
    with method.autocast(), frozen_parameters(method.model):
        with torch.no_grad():
            batch = method.transform(batch)
        adversarial = method.perturb(batch)
    loss, logits = method.backward(batch, adversarial)
    average_gradients(method)
    return loss.detach(), logits.detach()


def average_gradients(method: Method[Any]) -> None:
    """Give every parameter the mean of its gradients over the processes that share the batch."""
    if method.context.group.size > 1:
        own = [parameter.grad for parameter in method.model.parameters() if parameter.grad is not None]
        for gradient, mean in zip(own, method.context.group.all_reduce_mean(own), strict=True):
            gradient.copy_(mean)


# --- on a GPU --------------------------------------------------------------------------------------------------------


class Steps:
    """The steps of one epoch: with a recorder a few as they are, then replays of one that is recorded.

    Recorded anew in every epoch, since methods change with epochs, and so do the generators. Steps of a method that
    decides on the host (`Method.captured`), or turns out to, stay as they are.
    """

    def __init__(self, method: Method[Any], totals: Totals, recorder: Recorder | None = None) -> None:
        self._method, self._totals, self._recorder = method, totals, recorder
        self._until_recorded = WARM_UP if recorder and method.captured else -1
        self._replay: Callable[..., Losses] | None = None

    def __call__(self, batch: Batch) -> None:
        """Train on one batch."""
        if self._until_recorded == 0:
            self._record(batch)
        self._until_recorded -= 1
        train_step(self._method, batch, self._method.optimizer, self._totals, self._replay)

    def end(self) -> None:
        """Leave no gradient behind, whose memory would belong to the recording."""
        self._replay = None
        self._method.optimizer.zero_grad(set_to_none=True)

    def _record(self, batch: Batch) -> None:
        assert self._recorder is not None
        random, inputs = self._method.context.random, (batch.images, batch.labels, batch.index)
        try:
            with random.no_host_decisions():
                self._replay = replayed(
                    self._recorder,
                    lambda *parts: compute_gradients(self._method, Batch(*parts)),
                    inputs,
                    random.on_device(),
                )
        except (HostRandomness, RuntimeError) as error:
            log.warning("steps are not recorded: %s", error)
            self._method.optimizer.zero_grad(set_to_none=True)
