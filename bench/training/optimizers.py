"""The optimisers of a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bench.config.optimization import LAMB, OptimizerSettings

FUSED: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

LARGEST_NORM = 10.0
"""The largest norm of a tensor that LAMB's step follows, in the released code of Zhang et al. (2022)."""


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: OptimizerSettings,
    no_weight_decay: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return the protocol's optimiser over `parameters`; its weight decay leaves out `no_weight_decay`."""
    options, excluded = settings.model_dump(exclude={"name", "weight_decay_on"}), set(no_weight_decay)
    parameters = list(parameters)
    if settings.weight_decay_on == "weights":
        excluded |= {parameter for parameter in parameters if parameter.dim() < 2}
    groups: list[dict[str, Any]] = [{"params": [parameter for parameter in parameters if parameter not in excluded]}]
    if excluded:
        groups.append({"params": [parameter for parameter in parameters if parameter in excluded], "weight_decay": 0.0})
    if isinstance(settings, LAMB):
        return Lamb(groups, **options)
    optimizer: torch.optim.Optimizer = FUSED[settings.name](groups, **options, fused=True)
    return optimizer


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., Large Batch Optimization for Deep Learning, ICLR 2020), as Zhang et al. (2022) run it.

    u = m / (√v + eps) + weight decay · w, without bias correction; the step of each tensor is lr · min(‖w‖, 10) / ‖u‖,
    or lr where one of the norms is 0. Nothing waits for the device.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is for the interface alone and not called."""
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {name: torch.zeros_like(weight) for name in ("mean", "square")}
            gradients: list[Tensor] = [weight.grad for weight in weights]
            means, squares = ([self.state[weight][name] for weight in weights] for name in ("mean", "square"))
            first, second = group["betas"]
            torch._foreach_lerp_(means, gradients, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            updates = torch._foreach_div(means, roots)
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            norms = zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True)
            shares = [
                torch.where((w > 0) & (u > 0), w.clamp(max=LARGEST_NORM) / u, torch.ones_like(w)) for w, u in norms
            ]
            torch._foreach_mul_(updates, shares)
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
