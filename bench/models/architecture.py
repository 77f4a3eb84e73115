"""The contract of an architecture, and the network that a run trains: normalisation, then the architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.data.dataset import Dataset


@dataclass(frozen=True)
class Architecture:
    """What an entry of the group `bench.models` is.

    `build(classes, channels)` returns a network from normalised images [n, channels, height, width] to logits
    [n, classes], with its parameters freshly drawn from torch's global generator. `typical` is the (classes, channels,
    height, width) for which listings state its size.
    """

    name: str
    title: str
    reference: str
    build: Callable[[int, int], nn.Module]
    typical: tuple[int, int, int, int] = (10, 3, 32, 32)


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
        body = architecture.build(dataset.classes, dataset.shape[0])
    return Network(body, dataset.mean, dataset.std)


def size_of(architecture: Architecture, shape: tuple[int, int, int, int] | None = None) -> tuple[int, int]:
    """Return (parameters, forward FLOPs an image); a multiply-add counts as two.

    Counted by torch on tensors without storage, so nothing is computed. `shape` is (classes, channels, height, width),
    the architecture's typical one if None.
    """
    classes, channels, height, width = shape or architecture.typical
    with torch.device("meta"):
        body = architecture.build(classes, channels).eval()
        images = torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(images)
    return sum(parameter.numel() for parameter in body.parameters()), counter.get_total_flops()
