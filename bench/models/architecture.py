"""The contract of an architecture and of a family of them, and the network that a run trains: normalisation first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from bench.data.dataset import Dataset

Shape = tuple[int, int, int]
"""Of one image: (channels, height, width)."""


@dataclass(frozen=True)
class Architecture:
    """What an entry of the group `bench.models` is.

    `build(classes, shape)`, with `shape` = (channels, height, width), returns a network from normalised images
    [n, channels, height, width] to logits [n, classes], its parameters freshly drawn from torch's global generator. It
    raises BenchError for images that the architecture cannot take, and it works on torch's device `meta`, so that a
    network can be measured without being computed. `typical` is the (classes, channels, height, width) for which
    listings state its size.
    """

    name: str
    title: str
    reference: str
    build: Callable[[int, Shape], nn.Module]
    typical: tuple[int, int, int, int] = (10, 3, 32, 32)


@dataclass(frozen=True)
class Family:
    """Architectures that differ by what stands in their name, `<family>/<variant>`; also an entry of `bench.models`.

    `member(variant)` returns the architecture whose `name` is the whole `<family>/<variant>`; for a variant that there
    is not, it raises BenchError with the nearest. Two spellings must not mean the same network, since the name is what
    stands in a cell's identity. `written` says how a variant is written, such as `<depth>-<width>`. `listed` are the
    variants that listings show; where it is empty, the family is one line.
    """

    name: str
    title: str
    written: str
    member: Callable[[str], Architecture]
    listed: tuple[str, ...] = ()


class Network(nn.Module):
    """An architecture with its input normalisation inside, so that attacks work on pixels in [0, 1].

    Forward: float [n, channels, height, width] in [0, 1] -> logits [n, classes]. The mean and the standard deviation
    are buffers and travel with the weights.
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
    """Return the network of a run, its parameters drawn from `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = architecture.build(dataset.classes, dataset.shape)
    return Network(body, dataset.mean, dataset.std)


def size_of(architecture: Architecture, shape: tuple[int, int, int, int] | None = None) -> tuple[int, int]:
    """Return (parameters, forward FLOPs an image); a multiply-add counts as two.

    Counted by torch on tensors without storage, so nothing is computed: convolutions and products of matrices, those of
    attention among them. `shape` is (classes, channels, height, width), the architecture's typical one if None.

    Raises:
        BenchError: the architecture cannot take such images.
        NotImplementedError: it can be trained, but needs the values of tensors to be built or run, so is not counted.
    """
    classes, channels, height, width = shape or architecture.typical
    with torch.device("meta"), _SpacedNumbersKept():
        # frozen, since the counter of some versions of torch fails where a module is handed a view of a parameter
        body = architecture.build(classes, (channels, height, width)).eval().requires_grad_(False)
        images = torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(images)
    return sum(parameter.numel() for parameter in body.parameters()), counter.get_total_flops()


class _SpacedNumbersKept(TorchFunctionMode):
    """Within, `torch.linspace` gives numbers that can be read, although other tensors have no storage.

    Rates of stochastic depth are mostly written as `torch.linspace(0, rate, depth).tolist()`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{"device": "cpu", **kwargs} if func is torch.linspace else kwargs)
