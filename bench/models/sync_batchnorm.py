"""Batch normalisation over a batch that several processes share.

torch's `SyncBatchNorm` works on GPUs only, and replaces the network's layers. Here the layers stay, so weights, copies
and checkpoints equal those of one process; only the function that they call changes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from bench.utils.distributed import ProcessGroup


def shared_statistics(group: ProcessGroup) -> AbstractContextManager[object]:
    """Return a context in which batch statistics are those of the whole batch, in forward and backward passes.

    It affects every layer that calls `torch.nn.functional.batch_norm`, as torch's and timm's do, in train mode.
    """
    return nullcontext() if group.size == 1 else _Shared(group)


class _Shared(TorchFunctionMode):
    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return self._batch_norm(*args, **kwargs) if func is F.batch_norm else func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Replace `F.batch_norm`, with its arguments."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        normalised, mean, variance, count = _Normalise.apply(input, weight, bias, eps, self._group)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        return normalised  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """Normalise a shard of a batch, [n, channels, ...], by the mean and the variance of the whole batch.

    Returns the result, both statistics, [channels], and the number of values per statistic. The losses of all processes
    depend on the statistics: the gradient with respect to the images is that of the sum of all losses. The gradients
    with respect to weight and bias are those of the process's own shard, as for every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        over = [0, *range(2, images.dim())]
        own = torch.stack(torch.var_mean(_precise(images), over, correction=0))
        variances, means = group.all_gather(own[None]).unbind(1)  # [processes, channels]
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)  # all shards have equal sizes
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt())
        ctx.group, ctx.over, ctx.count = group, over, group.size * images.numel() // len(mean)
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(images, mean, variance, weight, bias, False, 0.0, eps), mean, variance, ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale = ctx.saved_tensors

        def per_channel(values: Tensor) -> Tensor:
            return values.view(1, -1, *(1,) * (images.dim() - 2))

        centred, raised = _precise(images) - per_channel(mean), _precise(gradient)
        sums = torch.stack((raised.sum(ctx.over), (raised * centred).sum(ctx.over)))
        to_weight = sums[1] * scale if ctx.needs_input_grad[1] else None
        to_bias = sums[0].clone() if ctx.needs_input_grad[2] else None
        ctx.group.all_reduce(sums)
        shift, slope = sums / ctx.count
        factor = scale if weight is None else scale * weight
        passed = (raised - per_channel(shift) - centred * per_channel(slope * scale.square())) * per_channel(factor)
        return passed.to(images.dtype), to_weight, to_bias, None, None


def _precise(values: Tensor) -> Tensor:
    """Return `values` in fp32; fp64 stays fp64."""
    return values if values.dtype == torch.float64 else values.float()
