"""Weights in low precision, converted once for many forward passes under autocast instead of in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def converted_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose weights autocast converts and nothing else reads: convolutions and linear layers.

    Not their subclasses, which may compute with the weights first.
    """
    return [module for module in model.modules() if type(module) in (nn.Conv2d, nn.Linear)]


@contextmanager
def weights_converted(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Convert the weights that autocast, if it is enabled on `device`, would convert in every forward pass.

    Logits and input gradients keep their bits. The parameters must not change or get gradients within the block.
    """
    enabled = torch.is_autocast_enabled(device.type)
    layers = converted_layers(model) if enabled else []
    values = {parameter: parameter.data for layer in layers for parameter in layer.parameters(recurse=False)}
    for parameter, value in values.items():
        if value.dtype == torch.float32:
            parameter.data = value.to(torch.get_autocast_dtype(device.type))
    try:
        yield
    finally:
        for parameter, value in values.items():
            parameter.data = value
