"""Weight averages over training, and the batch statistics of averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in eval mode whose parameters need no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def move_towards(average: nn.Module, model: nn.Module, share: float, buffers: Literal["average", "copy"]) -> None:
    """Move every parameter of `average` by `share` of its distance to `model`'s: a <- (1 - share) a + share w.

    With share = 1 - decay this is a step of an exponential moving average. Buffers (batch statistics) move in the same
    way, or are copied; integers are always copied. Both networks have the same architecture and device.
    """
    moved: list[Tensor] = list(average.parameters())
    targets: list[Tensor] = list(model.parameters())
    copied: list[Tensor] = []
    copies: list[Tensor] = []
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        moves = buffers == "average" and buffer.is_floating_point()
        (moved if moves else copied).append(buffer)
        (targets if moves else copies).append(current)
    # One kernel on a GPU for many tensors.
    if moved:
        torch._foreach_lerp_(moved, targets, share)
    if copied:
        torch._foreach_copy_(copied, copies)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Make forward passes in train mode use batch statistics without updating the running ones."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the running batch statistics of `model` by the average over the batches `images`, weighted by size.

    Averaged weights have no statistics of their own (Izmailov et al., Averaging weights leads to wider optima, 2018).
    A batch is [n, channels, height, width], in [0, 1], on the device of the network.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    training = [layer.training for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.training = True
    seen = 0
    for batch in images:
        seen += len(batch)
        for layer in layers:
            layer.momentum = len(batch) / seen
        model(batch)
    for layer, momentum, mode in zip(layers, momenta, training, strict=True):
        layer.momentum, layer.training = momentum, mode
