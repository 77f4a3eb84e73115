"""The counters of batch normalisation, one operation for each step instead of one for each layer and forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NAME = "num_batches_tracked"


class BatchCounters:
    """Counts the batches of equal computations: the layers do so in the first, this class does it for them afterwards.

    Only checkpoints hold the counters, unless a layer has no momentum; such a layer counts by itself.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._layers = [
            layer for layer in layers if layer.momentum is not None and layer.num_batches_tracked is not None
        ]
        self._increments: list[torch.Tensor] | None = None

    @contextmanager
    def counted_once(self) -> Iterator[None]:
        """Advance the counters at the end of the block by as much as in the first block, and not within it."""
        counters = [layer.get_buffer(NAME) for layer in self._layers]
        if not counters:
            yield
        elif self._increments is None:
            before = [counter.clone() for counter in counters]
            yield
            self._increments = list(torch._foreach_sub(counters, before))
        else:
            for layer in self._layers:
                layer.__dict__[NAME] = None  # hides the buffer from `forward`, and stays out of the state dict
            try:
                yield
            finally:
                for layer in self._layers:
                    del layer.__dict__[NAME]
            torch._foreach_add_(counters, self._increments)
