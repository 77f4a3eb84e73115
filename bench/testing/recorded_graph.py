"""A stand-in for a CUDA graph that runs on a CPU: the operations of a computation, recorded and run again.

A CUDA graph repeats kernels, which read and write fixed memory; no Python code of the method runs again, and nothing
waits for a value. `record` does the same with ATen operations: a replay runs each of them on the tensors of the
recording and writes its results into the tensors of the recording. So Python code that decides or counts from step to
step gives other results than eager steps do, as it would on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bench.testing.simulated_device import crosses_devices, host_of
from bench.utils.cuda_graphs import Capture

Result = TypeVar("Result")

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
}
"""Operations that wait for the device: the host needs a value, or the size of the result depends on one."""

MASKED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
"""Operations that wait if an index is a mask, whose elements they count."""


def record(compute: Callable[[], Result], generators: list[torch.Generator]) -> tuple[Result, Callable[[], None]]:
    """Record `compute` as `bench.utils.cuda_graphs.capture_graph` captures it; return its result and the replay.

    As in a capture, nothing is computed, not even if it fails: tensors and generators are set back, and the results
    hold NaN until a replay. Compiled code is not recorded; the operations are those of eager code.

    Raises:
        RuntimeError: an operation would wait for the device.
    """
    del generators  # those of the operations are seen in their arguments
    global_state = torch.get_rng_state()
    recording = _Recording()
    try:
        with torch.compiler.set_stance("force_eager"), _AsOnAGPU(), recording:
            result = compute()
    finally:
        recording.set_back()
        torch.set_rng_state(global_state)
    return result, recording.replay


class CountedCapture:
    """A capture that counts: the `seconds` of each capture, `replays`, and the `refusals` of torch."""

    def __init__(self, capture: Capture = record) -> None:
        self._capture = capture
        self.seconds: list[float] = []
        self.replays = 0
        self.refusals: list[str] = []

    def __call__(
        self, compute: Callable[[], Result], generators: list[torch.Generator]
    ) -> tuple[Result, Callable[[], None]]:
        started = time.perf_counter()
        try:
            result, run = self._capture(compute, generators)
        except RuntimeError as error:
            self.refusals.append(str(error))
            raise
        self.seconds.append(time.perf_counter() - started)

        def replay() -> None:
            self.replays += 1
            run()

        return result, replay


class _AsOnAGPU(TorchFunctionMode):
    """Gives the CPU the `one_hot` of a GPU, which does not read the labels on the host to check them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int) -> Tensor:
    return tensor.new_zeros((*tensor.shape, num_classes)).scatter_(-1, tensor[..., None], 1)


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        """Operation, arguments, keywords, and its results; None for one that shares the memory of an argument."""
        self._made: dict[int, torch.UntypedStorage] = {}  # by address; kept, so that no address is used twice
        self._outside: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # and their former content
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}  # and their former state

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        if func in WAITING or (func in MASKED and any(i is not None and i.dtype == torch.bool for i in args[1])):
            raise RuntimeError(f"{func} waits for the device and cannot be captured")
        if crosses_devices(func, args, kwargs or {}):
            raise RuntimeError(f"{func} copies between host and device and cannot be captured")
        inputs = {_memory(leaf).data_ptr(): _memory(leaf) for leaf in leaves if _is_tensor(leaf)}
        for address in inputs.keys() - self._made.keys() - self._outside.keys():
            self._outside[address] = inputs[address], inputs[address].clone()
        for leaf in leaves:
            if isinstance(leaf, torch._C.Generator):
                self._generators.setdefault(id(leaf), (leaf, leaf.get_state()))
        result = func(*args, **(kwargs or {}))
        fresh = [
            leaf if _is_tensor(leaf) and _memory(leaf).data_ptr() not in inputs else None
            for leaf in tree_leaves(result)
        ]
        self._made |= {_memory(leaf).data_ptr(): _memory(leaf) for leaf in fresh if leaf is not None}
        # The memory counts, as in a graph: the caller may give a parameter other memory later.
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        self._calls.append((func, args, kwargs, fresh))
        return result

    @torch.no_grad()
    def set_back(self) -> None:
        """Undo what the recording computed."""
        for *_, fresh in self._calls:
            for tensor in fresh:
                if tensor is not None and tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        for storage, content in self._outside.values():
            storage.copy_(content)
        for generator, state in self._generators.values():
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again, into the same memory."""
        for func, args, kwargs, fresh in self._calls:
            for target, value in zip(fresh, tree_leaves(func(*args, **kwargs)), strict=True):
                if target is not None:
                    target.copy_(value)


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.numel() > 0


def _memory(tensor: Tensor) -> Any:
    return host_of(tensor).untyped_storage()
