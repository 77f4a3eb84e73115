"""Process groups: processes that train one network, each on its shard of every batch.

The only communication is a sum over all processes. Every process draws the random numbers of the whole batch and takes
its shard, so the result does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _no_reduction(tensor: Tensor) -> None:
    """Leave a sum over one process as it is."""


@dataclass(frozen=True)
class ProcessGroup:
    """The `size` processes of one training, of which this is number `rank`.

    `all_reduce` replaces a contiguous tensor, of one shape in all processes, by the sum over the processes. All of them
    must make the same calls in the same order.
    """

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], None] = _no_reduction

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def shard(self, whole: Tensor, dim: int = 0) -> Tensor:
        """Return this process's shard of a whole batch; `size` divides its length along `dim`."""
        return whole if self.size == 1 else whole.chunk(self.size, dim)[self.rank]

    def draw_like(self, part: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return random numbers of the shape and layout of `part`, [n, ...], a tensor of this process's shard.

        `draw` fills a tensor of the whole batch, [size · n, ...], and returns it.
        """
        if self.size == 1:
            return draw(torch.empty_like(part))
        shape = (self.size * len(part), *part.shape[1:])
        return self.shard(draw(torch.empty_strided(shape, part.stride(), dtype=part.dtype, device=part.device)))

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the shards of all processes, [n, ...] each, concatenated: [size · n, ...]. No gradient flows."""
        if self.size == 1:
            return part
        whole = part.new_zeros((self.size, *part.shape))
        whole[self.rank] = part.detach()
        self.all_reduce(whole)  # exact: each element is nonzero in one process only
        return whole.flatten(0, 1)

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean over the processes of each of `tensors`, with a single sum."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors]) / self.size
        self.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that trains alone."""
