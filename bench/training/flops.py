"""How much a training step computes, counted from the operations it really runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountedFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, `flops` grows by the work of each convolution and matrix product; a multiply-add counts as two.

    torch's own formulas, operation by operation; a convolution's backward counts only the gradients it is asked for.
    Every operation passes through Python meanwhile, so this is for single steps.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
