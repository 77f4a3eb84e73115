"""CUDA graphs: a computation on a GPU is captured once and replayed for other inputs.

A training step or an attack launches thousands of small kernels. Launched one by one they keep the host busy while the
GPU waits; a graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Capture(Protocol):
    """Capture a computation with the generators it draws from; return its result tensors, and what replays it."""

    def __call__(
        self, compute: Callable[[], Result], generators: list[torch.Generator]
    ) -> tuple[Result, Callable[[], None]]: ...


def make_replay(
    capture: Capture, compute: Callable[..., Result], inputs: tuple[Tensor, ...], generators: list[torch.Generator]
) -> Callable[..., Result]:
    """Capture `compute(*inputs)` and return a function that replays it on other inputs of the same shapes.

    Every call returns the same tensors with new content.

    Raises:
        RuntimeError: an operation cannot be captured.
    """
    static = tuple(tensor.clone() for tensor in inputs)
    result, run = capture(lambda: compute(*static), generators)

    def replay(*inputs: Tensor) -> Result:
        for captured, tensor in zip(static, inputs, strict=True):
            captured.copy_(tensor)
        run()
        return result

    return replay


def capture_graph(
    compute: Callable[[], Result], generators: list[torch.Generator]
) -> tuple[Result, Callable[[], None]]:
    """Capture `compute` as a CUDA graph on the current stream, which must not be the default stream."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        result = compute()
    return result, graph.replay


def capture_on(device: torch.device) -> Capture | None:
    """Return the capture for `device`, or None on a CPU. Leaves the default stream, which cannot be captured."""
    if device.type != "cuda":
        return None
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(stream)
    return capture_graph
