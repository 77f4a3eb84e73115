"""Smooth activations, and the replacement of ReLU in any network.

Xie et al., Smooth Adversarial Training, 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.errors import BenchError


class SmoothReLU(nn.Module):
    """max(0, x - log(b|x| + 1) / b) for x > 0, else 0, with one learnable b = raw² (raw starts at 20).

    Continuously differentiable: the derivative is b x / (b x + 1) for x > 0, and 0 for x <= 0. Xie et al., 2020,
    released code.
    """

    def __init__(self, raw: float = 20.0) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(raw))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each value, of the shape of `x`."""
        sharpness = self.raw.square()
        positive = x.clamp(min=0)
        return positive - torch.log1p(sharpness * positive) / sharpness


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "elu": nn.ELU,
    "softplus": lambda: nn.Softplus(beta=10),
    "mish": nn.Mish,
    "smooth_relu": SmoothReLU,
}
"""Factories of the smooth activations of Xie et al., by name; a call returns a new module."""


def replace_relu(network: nn.Module, activation: Callable[[], nn.Module]) -> int:
    """Replace every `nn.ReLU` module of `network` by a new `activation`, and return their number.

    Each place gets an activation of its own, also where a network registers one module in several places. Calls of one
    module from several lines of a `forward`, as in torchvision's ResNets, share an activation.

    Raises:
        BenchError: the network has no ReLU module, so a smooth activation would change nothing.
    """
    places = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent._modules.items()  # named_children() lists a module only once
        if isinstance(child, nn.ReLU)
    ]
    for parent, name in places:
        setattr(parent, name, activation())
    if not places:
        raise BenchError(f"no ReLU to replace in {type(network).__name__}: smooth activations would change nothing")
    return len(places)
