"""Recording what a GPU is told to do, once, and replaying it: CUDA graphs.

A training step or an attack tells the GPU of a thousand small things; told one by one, they keep the host busy and let
the GPU wait. Recorded, they are one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Recorder(Protocol):
    """From a computation and the generators it draws from to the tensors that its results are in, and what runs it."""

    def __call__(
        self, compute: Callable[[], Result], generators: list[torch.Generator]
    ) -> tuple[Result, Callable[[], None]]: ...


def replayed(
    recorder: Recorder, compute: Callable[..., Result], inputs: tuple[Tensor, ...], generators: list[torch.Generator]
) -> Callable[..., Result]:
    """Record `compute(*inputs)` and return what computes it for other inputs of the same shapes, by replaying.

    The results are in the same tensors every time.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    own = tuple(tensor.clone() for tensor in inputs)
    result, run = recorder(lambda: compute(*own), generators)

    def replay(*inputs: Tensor) -> Result:
        for place, tensor in zip(own, inputs, strict=True):
            place.copy_(tensor)
        run()
        return result

    return replay


def record_on_gpu(
    compute: Callable[[], Result], generators: list[torch.Generator]
) -> tuple[Result, Callable[[], None]]:
    """Record `compute` as a CUDA graph, on the current stream, which must not be the default one."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        result = compute()
    return result, graph.replay


def recorder_of(device: torch.device) -> Recorder | None:
    """Return what records on `device`, having left the default stream, which cannot be; None on a CPU."""
    if device.type != "cuda":
        return None
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(stream)
    return record_on_gpu
