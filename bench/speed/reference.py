"""What the harness is measured against: adversarial training as the widely copied public loops do it.

Their structure, in words of our own: images come from a `DataLoader` with workers, one at a time; tensors are NCHW in
fp32; the attack calls `loss.backward()`, which computes every weight's gradient at each step and throws it away; the
loss of the finished attack is computed once more to choose among restarts, of which there is one; and after the update
a forward pass on the clean images gives the training accuracy, on the host, at every step.

Source of the structure: the released code of Rice, Wong and Kolter, Overfitting in adversarially robust deep learning,
2020, which most later papers started from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.config.attacks import Threat, TrainingAttack

WORKERS = 2
"""Of the loader, as in that code."""


class AugmentedImages(Dataset[tuple[Any, int]]):
    """Images that are cropped and flipped one by one, as loaders do: float32 in [0, 1], [channels, height, width].

    With arrays, which costs less than the usual transforms of image objects.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, padding: int = 4) -> None:
        """`pixels`: uint8, [n, channels, height, width]; `labels`: int64, [n]."""
        border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        self._padded = np.pad(pixels.numpy(), border, mode="reflect").astype(np.float32) / 255
        self._labels, self._padding, self._size = labels.tolist(), padding, pixels.shape[2:]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        height, width = self._size
        top, left = np.random.randint(0, 2 * self._padding + 1, size=2)
        image = self._padded[index, :, top : top + height, left : left + width]
        return (image[:, :, ::-1] if np.random.rand() < 0.5 else image).copy(), self._labels[index]


def batches(images: AugmentedImages, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches without end, from a loader with workers of its own."""
    pinned = torch.cuda.is_available()
    loader = DataLoader(
        images,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        pin_memory=pinned,
        persistent_workers=True,
    )
    while True:
        yield from loader


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    settings: TrainingAttack,
    start: Tensor | None = None,
    *,
    needless: bool = True,
) -> Tensor:
    """Return the perturbation of PGD on the cross-entropy, in the mode that the model is in.

    Linf only. From `start`, or from a random point of the ball. Shapes: images and perturbations [n, channels, height,
    width], labels [n]. Without `needless`, nothing is computed to choose among restarts.
    """
    largest = torch.zeros(len(images), device=images.device)
    best = torch.zeros_like(images)
    delta = torch.zeros_like(images).uniform_(-threat.eps, threat.eps) if start is None else start.clone()
    delta.data = torch.clamp(images + delta, 0, 1) - images
    delta.requires_grad = True
    for _ in range(settings.steps):
        F.cross_entropy(model(images + delta), labels).backward()  # type: ignore[no-untyped-call]
        assert delta.grad is not None
        moved = torch.clamp(delta.detach() + settings.step_size * delta.grad.sign(), -threat.eps, threat.eps)
        delta.data = torch.clamp(images + moved, 0, 1) - images
        delta.grad.zero_()
    if not needless:
        return delta.detach()
    losses = F.cross_entropy(model(images + delta), labels, reduction="none").detach()
    better = losses >= largest
    best[better] = delta.detach()[better]
    return best


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    perturbation: Tensor,
    *,
    needless: bool = True,
) -> tuple[float, int]:
    """Descend on the perturbed images; return the loss, and how many of the clean images are right afterwards.

    Without `needless`, that is not counted, and is 0.
    """
    logits = model(torch.clamp(images + perturbation, 0, 1))
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if not needless:
        return loss.item(), 0
    right = int((model(images).max(1)[1] == labels).sum().item())
    return loss.item(), right
