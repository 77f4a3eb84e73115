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
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bench.attacks.pgd import frozen
from bench.data.batches import Batch
from bench.method import Method
from bench.protocol import Optimizer
from bench.seeding import HostDecision

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps of an epoch before one is recorded: torch chooses kernels and makes the optimiser's buffers meanwhile."""

Losses = tuple[Tensor, Tensor]
"""Loss and logits [n, classes] of a batch."""

Recorder: TypeAlias = Callable[[Callable[[], Losses], list[torch.Generator]], tuple[Losses, Callable[[], None]]]
"""From a computation and the generators it draws from to the tensors that its results are in, and what runs it."""


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


def train_step(
    method: Method[Any],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    totals: Totals,
    replay: Callable[[Batch], Losses] | None = None,
) -> None:
    """Train on one batch: transform, perturb, descend. `replay` computes the gradients, where it did before."""
    loss, logits = replay(batch) if replay else compute_gradients(method, batch)
    optimizer.step()
    if not replay:
        optimizer.zero_grad(set_to_none=True)
    method.after_step()
    totals.add(loss, logits, batch.labels)


def compute_gradients(method: Method[Any], batch: Batch) -> Losses:
    """Leave the gradients of one batch in the parameters: transform, perturb, backward."""
    with method.autocast(), frozen(method.model):
        with torch.no_grad():
            batch = method.transform(batch)
        adversarial = method.perturb(batch)
    loss, logits = method.backward(batch, adversarial)
    return loss.detach(), logits.detach()


# --- on a GPU --------------------------------------------------------------------------------------------------------


class Steps:
    """The steps of one epoch: with a recorder a few as they are, then replays of one that is recorded.

    Recorded anew in every epoch, since methods change with epochs, and so do the generators. Steps of a method that
    decides on the host (`Method.captured`), or turns out to, stay as they are.
    """

    def __init__(self, method: Method[Any], totals: Totals, recorder: Recorder | None = None) -> None:
        self._method, self._totals, self._recorder = method, totals, recorder
        self._until_recorded = WARM_UP if recorder and method.captured else -1
        self._replay: Callable[[Batch], Losses] | None = None

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
        inputs = Batch(batch.images.clone(), batch.labels.clone(), batch.index.clone())
        random = self._method.context.random
        try:
            with random.no_host_decisions():
                losses, run = self._recorder(lambda: compute_gradients(self._method, inputs), random.on_device())
        except (HostDecision, RuntimeError) as error:
            log.warning("steps are not recorded: %s", error)
            self._method.optimizer.zero_grad(set_to_none=True)
            return

        def replay(batch: Batch) -> Losses:
            inputs.images.copy_(batch.images)
            inputs.labels.copy_(batch.labels)
            inputs.index.copy_(batch.index)
            run()
            return losses

        self._replay = replay


def record_on_gpu(
    compute: Callable[[], Losses], generators: list[torch.Generator]
) -> tuple[Losses, Callable[[], None]]:
    """Record `compute` as a CUDA graph, on the current stream, which must not be the default one."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        losses = compute()
    return losses, graph.replay


def recorder_of(device: torch.device) -> Recorder | None:
    """Return what records steps on `device`, having left the default stream, which cannot be; None on a CPU."""
    if device.type != "cuda":
        return None
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(stream)
    return record_on_gpu
