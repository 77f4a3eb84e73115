"""One training step.

Nothing here waits for the device: losses and counts accumulate in tensors and are read once per epoch. Parameters are
frozen while adversarial images are computed, so the attack computes input gradients only. Images and weights are
channels_last, forward passes run in the protocol's precision, and the optimisers are fused. On an NVIDIA GPU the
transform, the attack and both gradients are captured as one CUDA graph at the start of every epoch, and replayed.

PreActResNet-18, batches of 64, PGD-10, two cores of an AMD EPYC: 1.9 times the speed of public code in fp32, 3.3 times
in bf16 (`bench speed`, medians of five rounds; docs/performance.md). Not yet measured on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.attacks.pgd import frozen_parameters
from bench.data.batches import Batch
from bench.models.batch_counters import BatchCounters
from bench.training.compiled import Compiled
from bench.training.method import Method
from bench.utils.cuda_graphs import Capture, host_waits, make_replay
from bench.utils.device import timed_convolutions
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import HostRandomness

log = logging.getLogger(__name__)

WARM_UP = 3
"""Eager steps of an epoch before the capture: torch chooses kernels and creates the optimiser's buffers in them."""

Losses = tuple[Tensor, Tensor, Tensor]
"""Loss, logits [n, classes] and labels [n] of a batch, as the method's `transform` returned it."""


class EpochMetrics:
    """Sums over the steps of an epoch, kept on the device until they are read."""

    def __init__(self, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._group = group
        self._sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self._images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the mean loss of a batch, weighted by its size, and its number of correct predictions."""
        correct = (logits.detach().argmax(1) == labels).sum()
        self._sums += torch.stack((loss.detach() * len(labels), correct))
        self._images += len(labels)

    def read(self) -> tuple[float, float]:
        """Return (mean loss, accuracy on adversarial images) over all processes. Waits for the device."""
        sums = self._sums.clone()
        self._group.all_reduce(sums)
        loss, accuracy = (sums / max(self._group.size * self._images, 1)).tolist()
        return loss, accuracy


def train_step(
    method: Method[Any],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    metrics: EpochMetrics,
    compute: Callable[[], Losses] | None = None,
) -> None:
    """Train on one batch: transform, perturb, descend, and the protocol's clean pass.

    `compute` replaces the first two and computes the gradients, which then stay in `parameter.grad` after the step.
    """
    if compute:
        losses = compute()
    else:
        losses = compute_gradients(method, transform(method, batch))
    optimizer.step()
    if not compute:
        optimizer.zero_grad(set_to_none=True)
    method.after_step()
    if method.context.protocol.training.clean_pass is not None:
        with torch.no_grad(), method.autocast():
            method.model(batch.images)
    metrics.add(*losses)


@torch.no_grad()
def transform(method: Method[Any], batch: Batch) -> Batch:
    """Return the batch to train on."""
    with method.autocast(), frozen_parameters(method.model):
        return method.transform(batch)


def compute_gradients(method: Method[Any], batch: Batch) -> Losses:
    """Compute the gradients of one whole transformed batch into `parameter.grad`: perturb, backward."""
    with method.autocast(), frozen_parameters(method.model):
        adversarial = method.perturb(batch)
    loss, logits = method.backward(batch, adversarial)
    average_gradients(method)
    return loss.detach(), logits.detach(), batch.labels


def average_gradients(method: Method[Any]) -> None:
    """Replace every gradient by its mean over the processes that share the batch."""
    if method.context.group.size > 1:
        gradients = [parameter.grad for parameter in method.model.parameters() if parameter.grad is not None]
        for gradient, mean in zip(gradients, method.context.group.all_reduce_mean(gradients), strict=True):
            gradient.copy_(mean)


class Steps:
    """The steps of one epoch: with `capture`, a few eager ones and then replays of a captured one.

    Captured once per epoch, because methods and generators change with the epoch. A step runs eagerly if the method
    decides on the host (`Method.captured`), if it waits for the device, and if its capture fails.

    With `compile`, the network is compiled, except in the first step, in which operations are counted, and for the
    last, smaller batch.
    """

    def __init__(
        self, method: Method[Any], metrics: EpochMetrics, capture: Capture | None = None, *, compile: bool = False
    ) -> None:
        self._method, self._metrics, self._capture = method, metrics, capture
        self._until_capture = WARM_UP if capture and method.captured else -1
        self._replay: Callable[..., Losses] | None = None
        self._compiled = Compiled(method.model) if compile and method.compiled else None
        # A compiled pass counts by itself: what it was compiled with does not change with the layers' attributes.
        self._counted = nullcontext if self._compiled else BatchCounters(method.model).counted_once
        self._passes: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, batch: Batch) -> None:
        """Train on one batch."""
        smaller = len(batch) < self._method.context.protocol.training.batch_size
        with timed_convolutions(batch.images.device), nullcontext() if smaller else self._passes():
            self._step(batch, smaller=smaller)
        if self._compiled:
            self._passes = self._compiled.used

    def _step(self, batch: Batch, *, smaller: bool) -> None:
        if smaller and self._capture:
            self.end()
            self._until_capture = -1
        if self._until_capture < 0 and not self._replay:
            train_step(self._method, batch, self._method.optimizer, self._metrics)
            return
        part = batch if self._method.captured_transform else transform(self._method, batch)
        if self._until_capture == 0:
            self._capture_step(part)
        compute = self._replay or (self._watched_part if self._until_capture == 1 else self._captured_part)
        self._until_capture -= 1
        train_step(
            self._method, batch, self._method.optimizer, self._metrics,
            lambda: compute(*part.tensors),
        )  # fmt: skip
        if not self._replay:
            self._method.optimizer.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Drop the gradients, whose memory belongs to the CUDA graph."""
        self._replay = None
        self._method.optimizer.zero_grad(set_to_none=True)

    def _captured_part(self, *tensors: Any) -> Losses:
        batch = Batch(*tensors)
        with self._counted():
            if self._method.captured_transform:
                batch = transform(self._method, batch)
            return compute_gradients(self._method, batch)

    def _watched_part(self, *tensors: Any) -> Losses:
        """Compute eagerly what is to be captured; not if it waits for the device."""
        with host_waits(tensors[0].device) as waits:
            losses = self._captured_part(*tensors)
        if waits:
            self._until_capture = -1
            log.warning("a step waits for the GPU, so it is not captured: %s", waits[0])
        return losses

    def _capture_step(self, batch: Batch) -> None:
        assert self._capture is not None
        random = self._method.context.random
        try:
            with random.no_host_decisions(), torch.compiler.set_stance("fail_on_recompile"):
                self._replay = make_replay(self._capture, self._captured_part, batch.tensors, random.on_device())
        except (HostRandomness, RuntimeError) as error:
            self._replay = None
            log.warning("CUDA graph capture failed, running eagerly: %s", error)
            self._method.optimizer.zero_grad(set_to_none=True)
