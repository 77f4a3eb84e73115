"""Projected gradient ascent inside a ball around each image: the attack of training, tracking and evaluation.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.attacks import Threat
from bench.models.low_precision import weights_converted
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup

Objective = Callable[[Tensor], Tensor]
"""From logits [n, classes] to the scalar that the attack maximises: a sum over the batch, so images do not interact."""


def cross_entropy(targets: Tensor) -> Objective:
    """Return the objective of the cross-entropy, summed over the batch.

    Args:
        targets: labels (int64, [n]), or the share of each class (float, [n, classes]).
    """
    return lambda logits: F.cross_entropy(logits, targets, reduction="sum")


def margin(labels: Tensor) -> Objective:
    """Return the objective of the margins against `labels` (int64, [n]), summed over the batch."""
    return lambda logits: margins(logits, labels).sum()


def probability_margin(labels: Tensor) -> Objective:
    """Return the objective of the margins of the softmax probabilities, summed over the batch.

    Xie et al., Towards million-scale adversarial robustness evaluation with stronger individual attacks, 2024.
    """
    return lambda logits: margins(logits.softmax(1), labels).sum()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each image's largest wrong logit minus its true logit, [n]."""
    right = labels[:, None]  # indices: a mask would wait for the device to count its elements
    return logits.scatter(1, right, -torch.inf).amax(1) - logits.gather(1, right).squeeze(1)


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Compute no gradients of parameters; this saves a third of a convolution's work."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def train_mode(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Set train mode (batch statistics) or eval mode inside the block; afterwards restore each module's own mode."""
    changed = [module for module in model.modules() if module.training != enabled]
    for module in changed:
        module.training = enabled
    try:
        yield
    finally:
        for module in changed:
            module.training = not enabled


def project(perturbation: Tensor, threat: Threat) -> Tensor:
    """Return the nearest point of the ball to each `perturbation`, [n, channels, height, width]."""
    if threat.norm == "linf":
        return perturbation.clamp(-threat.eps, threat.eps)
    return perturbation * (threat.eps / l2_norm(perturbation)).clamp(max=1)


def random_perturbation(
    images: Tensor, threat: Threat, random: torch.Generator, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """Return a random point of the ball for each of `images`, [n, channels, height, width].

    Linf: uniform in the cube. L2: a uniform direction with a uniform radius, as in the released code of Rice et al.
    (not uniform in the volume). `images` may be this process's shard of the batch of `group`.
    """
    if threat.norm == "linf":
        return group.draw_like(images, lambda noise: noise.uniform_(-threat.eps, threat.eps, generator=random))
    noise = group.draw_like(images, lambda noise: noise.normal_(generator=random))
    count = group.size * len(images)
    radius = group.shard(torch.rand(count, 1, 1, 1, generator=random, device=images.device))
    noise *= threat.eps * radius / l2_norm(noise)
    return noise


def random_start(
    images: Tensor, threat: Threat, random: torch.Generator, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """Return `images` plus a `random_perturbation`, clipped to [0, 1]."""
    return (images + random_perturbation(images, threat, random, group)).clamp_(0, 1)


def ascend(images: Tensor, adversarial: Tensor, gradient: Tensor, threat: Threat, step_size: float) -> Tensor:
    """Return `adversarial` after a step along `gradient`, projected onto the ball around `images` and [0, 1]."""
    direction = gradient.sign() if threat.norm == "linf" else gradient / l2_norm(gradient)
    moved = adversarial.detach().add(direction, alpha=step_size).sub_(images)
    return project(moved, threat).add_(images).clamp_(0, 1)


def pgd(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    *,
    threat: Threat,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
) -> Tensor:
    """Return the last iterate of gradient ascent on `objective(model(x))` over the ball around `images`.

    Only input gradients are computed if the caller has frozen the parameters (`frozen_parameters`). The caller sets the
    mode of the network. Under autocast, weights are converted once for all steps.

    Args:
        images: float, [n, channels, height, width], in [0, 1].
        objective: the scalar to maximise, as a function of the logits.
        steps: gradient steps.
        step_size: length of a step: per pixel for Linf (the sign of the gradient), in L2 norm for L2.
        start: first iterate, inside the ball; `images` if None.
    """
    adversarial = images if start is None else start
    with weights_converted(model, images.device):
        for _ in range(steps):
            adversarial = adversarial.detach().requires_grad_()
            with torch.enable_grad():
                value = objective(model(adversarial))
            (gradient,) = torch.autograd.grad(value, adversarial)
            adversarial = ascend(images, adversarial, gradient, threat, step_size)
    return adversarial.detach()


def l2_norm(x: Tensor) -> Tensor:
    """L2 norm of each image, [n, 1, 1, 1], at least 1e-12, because it is a divisor."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.clamp(min=1e-12).view(-1, 1, 1, 1)
