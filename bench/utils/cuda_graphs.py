"""CUDA graphs: a computation on a GPU is captured once and replayed for other inputs.

A training step or an attack launches thousands of small kernels. Launched one by one they keep the host busy while the
GPU waits; a graph launches all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Capture(Protocol):
    """Capture a computation with the generators it draws from; return its result tensors, and what replays it."""

    def __call__(
        self, compute: Callable[[], Result], generators: list[torch.Generator]
    ) -> tuple[Result, Callable[[], None]]: ...


def make_replay(
    capture: Capture,
    compute: Callable[..., Result],
    inputs: tuple[Tensor | None, ...],
    generators: list[torch.Generator],
) -> Callable[..., Result]:
    """Capture `compute(*inputs)` and return a function that replays it on other inputs of the same shapes.

    Every call returns the same tensors with new content. An input that is None stays None.

    Raises:
        RuntimeError: an operation cannot be captured.
    """
    static = tuple(tensor if tensor is None else tensor.clone() for tensor in inputs)
    result, run = capture(lambda: compute(*static), generators)

    def replay(*inputs: Tensor | None) -> Result:
        for captured, tensor in zip(static, inputs, strict=True):
            if captured is not None and tensor is not None:
                captured.copy_(tensor)
        run()
        return result

    return replay


def capture_graph(
    compute: Callable[[], Result], generators: list[torch.Generator], pool: Any = None
) -> tuple[Result, Callable[[], None]]:
    """Capture `compute` as a CUDA graph on the current stream, which must not be the default stream.

    `pool`: torch's handle of the memory for the graph, by default memory of its own.

    Raises:
        RuntimeError: an operation cannot be captured. Nothing was computed, and eager code may go on.
    """
    device = torch.cuda.current_device()
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    if torch.__version__ < "2.14":  # a TorchVersion; later ones register a generator when it is first drawn from
        for generator in generators:
            graph.register_generator_state(generator)
    drawn = [*generators, torch.cuda.default_generators[device]]
    states = [generator.get_state() for generator in drawn]
    try:
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            result = compute()
    except BaseException:
        # Up to torch 2.11 at least, a failed capture leaves the generators and the allocator in capture.
        for generator, state in zip(drawn, states, strict=True):
            fresh = torch.Generator(generator.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
        with suppress(RuntimeError):  # the capture has given the pool back
            torch._C._cuda_endAllocateToPool(device, pool)
        raise
    return result, graph.replay


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[str]]:
    """Yield a list that holds, after the block, the messages of operations in it that waited for the GPU.

    Such an operation cannot be captured. Empty on a CPU.
    """
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchroniz" in str(warning.message):
            found.append(f"{warning.filename}:{warning.lineno}: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def capture_on(device: torch.device) -> Capture | None:
    """Return the capture for `device`, or None on a CPU. Leaves the default stream, which cannot be captured."""
    if device.type != "cuda":
        return None
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(stream)
    return capture_graph


def capture_in_one_pool(device: torch.device) -> Capture | None:
    """Return `capture_on(device)` for graphs that share memory: a replay overwrites the results of all others."""
    capture = capture_on(device)
    return partial(capture_graph, pool=torch.cuda.graph_pool_handle()) if capture else None
