"""mixup and CutMix: batches whose images and labels are those of two images each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config.augmentation import Mix
from bench.data.augmentation import inside
from bench.utils.distributed import ProcessGroup


def mix(
    step: Mix,
    images: Tensor,
    labels: Tensor,
    classes: int,
    random: torch.Generator,
    group: ProcessGroup,
    soft_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix images (float, [n, channels, height, width]) with those of a random permutation of the whole batch.

    Every image draws its own share, and for CutMix its own rectangle: its sides are those of the image times
    √(1 - share), its middle is uniform, and the share that counts is what the rectangle leaves, as in Yun et al.'s
    code. `soft_labels` ([n, classes]) are mixed in the place of `labels`.

    Returns:
        The mixed images, the labels with the larger share (int64, [n]), and the shares (float32, [n, classes]).
    """
    count, device = group.size * len(images), random.device
    alpha = torch.full((count, 2), step.alpha, device=device)
    kept = torch._sample_dirichlet(alpha, generator=random)[:, 0]  # Beta(alpha, alpha); its class takes no generator
    partner = torch.randperm(count, generator=random, device=device)
    chosen, down, right = torch.rand((3, count), generator=random, device=device)
    kept, partner, down, right = (
        group.shard(drawn) for drawn in (torch.where(chosen < step.probability, kept, 1.0), partner, down, right)
    )
    others = group.all_gather(images)[partner]
    if step.name == "mixup":
        images = torch.lerp(others, images, kept[:, None, None, None])
    else:
        mask = _rectangle(images, kept, down, right)
        images, kept = torch.where(mask, others, images), 1 - mask.float().mean((1, 2, 3))
    first, second = labels, group.all_gather(labels)[partner]
    own = F.one_hot(labels, classes).float() if soft_labels is None else soft_labels
    soft = torch.lerp(group.all_gather(own)[partner], own, kept[:, None])
    return images.contiguous(memory_format=torch.channels_last), torch.where(kept >= 0.5, first, second), soft


def _rectangle(images: Tensor, kept: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return where each image shows the other one, [n, 1, height, width]."""
    edges = []
    for place, side in ((down, images.shape[2]), (right, images.shape[3])):
        half = (side * (1 - kept).sqrt()).long() // 2
        middle = (place * side).long()
        edges.append((middle - half, middle + half))
    (top, bottom), (left, rightmost) = edges
    return inside(images, top, left, bottom, rightmost)
