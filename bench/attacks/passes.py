"""The passes of AutoAttack through a network; on a GPU, replays of CUDA graphs.

Images leave the batch as they fall, and a graph has one shape. Batches are therefore padded to a multiple of 32 images:
a few graphs serve all. In eval mode, images do not interact, so the padding changes nothing but the choice of kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.utils.cuda_graphs import Capture, make_replay
from bench.utils.device import out_of_memory

log = logging.getLogger(__name__)

MULTIPLE = 32

Values = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits [n, classes], labels and targets (int64, [n]) to the value of each image that its gradient is of, [n]."""


Pass = Callable[..., tuple[Tensor, ...]]
"""From the images of a batch, and perhaps labels and targets, to tensors with one row for each image."""


def margin_to_target(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return each image's target logit minus its true logit, [n]: what fab-t linearises."""
    each = torch.arange(len(labels), device=labels.device)
    return -(logits[each, labels] - logits[each, targets])


class Passes:
    """The passes through `model`, which is in eval mode with frozen parameters; with `capture`, captured and padded.

    The first pass of a kind and size is eager, the second is captured. If a capture fails, later passes are eager.
    `heartbeat` is called at every padded pass, since a replay does not run the hooks of the network.
    """

    def __init__(
        self, model: nn.Module, capture: Capture | None = None, heartbeat: Callable[[], None] = lambda: None
    ) -> None:
        self.model, self.capture, self._heartbeat = model, capture, heartbeat
        self._warm: set[tuple[object, int]] = set()
        self._replays: dict[tuple[object, int], Pass] = {}
        self._failed = False

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits [n, classes], without a graph for gradients."""
        return self._run("logits", self._logits, images)[0]

    def gradients(
        self, values: Values, images: Tensor, labels: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, the values of all images, and the gradient of each value with respect to its image."""

        def compute(images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            images = images.detach().requires_grad_()
            with torch.enable_grad():  # the package calls without
                logits = self.model(images)
                value = values(logits, labels, targets)
                (gradient,) = torch.autograd.grad(value.sum(), images)
            return logits.detach(), value.detach(), gradient

        logits, value, gradient = self._run(values, compute, images, labels, targets)
        return logits, value, gradient

    def _logits(self, images: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            return (self.model(images),)

    def _run(self, kind: object, compute: Pass, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        if not self.capture or not count:
            return compute(*inputs)
        self._heartbeat()
        size = -(-count // MULTIPLE) * MULTIPLE
        padded = tuple(_padded(tensor, size) for tensor in inputs)
        try:
            results = self._replay((kind, size), compute, padded)(*padded)
        except (MemoryError, RuntimeError):
            self._replays.clear()  # and with them their memory: the batch may be tried again with half its size
            raise
        return tuple(result[:count].clone() for result in results)  # a replay overwrites the results of all others

    def _replay(self, key: tuple[object, int], compute: Pass, padded: tuple[Tensor, ...]) -> Pass:
        """Return what computes a padded pass: its replay, or `compute`."""
        assert self.capture is not None
        if self._failed or key not in self._warm:
            self._warm.add(key)
            return compute
        if key not in self._replays:
            try:
                self._replays[key] = make_replay(self.capture, compute, padded, [])
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                log.warning("CUDA graph capture of AutoAttack failed, running eagerly: %s", error)
                self._failed = True
                return compute
        return self._replays[key]


def _padded(tensor: Tensor, size: int) -> Tensor:
    """Return `tensor`, [n, ...], with zeros up to `size` images."""
    padded = tensor.new_zeros((size, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded
