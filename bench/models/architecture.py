"""The contracts of an architecture and of a family, and the network that a run trains, which normalises images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.data.dataset import Dataset

Shape = tuple[int, int, int]
"""Of one image: (channels, height, width)."""


@dataclass(frozen=True)
class Architecture:
    """An entry of the group `bench.models`.

    `build(classes, shape)`, with `shape` = (channels, height, width), returns a network from normalised images
    [n, channels, height, width] to logits [n, classes], with parameters drawn from torch's global generator. It raises
    BenchError for an image shape that the architecture does not support, and works on torch's device `meta`, so that
    its size can be computed without storage. `typical` is the (classes, channels, height, width) for which listings
    state its size.
    """

    name: str
    title: str
    reference: str
    build: Callable[[int, Shape], nn.Module]
    typical: tuple[int, int, int, int] = (10, 3, 32, 32)


@dataclass(frozen=True)
class Family:
    """Architectures named `<family>/<variant>`; also an entry of `bench.models`.

    `member(variant)` returns the architecture with the `name` `<family>/<variant>`, or raises BenchError, which names
    the nearest variant. A network must have one spelling only, because its name is part of a cell's identity. `written`
    is the form of a variant, such as `<depth>-<width>`. `listed` are the variants that listings show; if it is empty,
    listings show the family as one line.
    """

    name: str
    title: str
    written: str
    member: Callable[[str], Architecture]
    listed: tuple[str, ...] = ()


class Network(nn.Module):
    """An architecture with its input normalisation inside, so that attacks work on pixels in [0, 1].

    Forward: float [n, channels, height, width] in [0, 1] -> logits [n, classes]. Mean and standard deviation are
    buffers, so they are saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body((images - self.mean) / self.std)
        return logits


def build_network(architecture: Architecture, dataset: Dataset, seed: int) -> Network:
    """Return the network of a run, with parameters drawn from `seed`; the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = architecture.build(dataset.classes, dataset.shape)
    return Network(body, dataset.mean, dataset.std)


def size_of(architecture: Architecture, shape: tuple[int, int, int, int] | None = None) -> tuple[int, int]:
    """Return (parameters, forward FLOPs per image); a multiply-add counts as two.

    torch counts convolutions and matrix products, attention included, on tensors without storage. `shape` is (classes,
    channels, height, width), the architecture's typical one if None.

    Raises:
        BenchError: the architecture does not support such images.
        NotImplementedError: building or running it needs the values of tensors, so it cannot be counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which takes a third of a second

    classes, channels, height, width = shape or architecture.typical
    with torch.device("meta"), _RealLinspace():
        # Frozen, because the counter of some versions of torch fails on views of parameters.
        body = architecture.build(classes, (channels, height, width)).eval().requires_grad_(False)
        images = torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(images)
    return sum(parameter.numel() for parameter in body.parameters()), counter.get_total_flops()


class _RealLinspace(TorchFunctionMode):
    """Gives `torch.linspace` storage, although other tensors have none.

    Rates of stochastic depth are usually written as `torch.linspace(0, rate, depth).tolist()`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{"device": "cpu", **kwargs} if func is torch.linspace else kwargs)
