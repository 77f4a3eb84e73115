"""The FLOPs of a training step, counted from the operations that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class CountedFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds the work of each convolution and matrix product to `flops`; a multiply-add counts as two.

    Uses torch's formula of each operation; the backward of a convolution counts only the requested gradients. Every
    operation passes through Python, so do not use it for every step.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports Triton, which takes a third of a second

        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self._formulas = 0, flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
