"""Auto-PGD: gradient ascent that halves each image's step when its loss no longer rises.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020:
algorithm 1, with the constants of their released code, and the random starts that it draws from the same seed. Where
theirs goes on with an image that has fallen, this leaves it out of the batch; the others do not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.attacks import Threat

STEPS = 100
MOMENTUM = 0.75  # of a step, the share that the gradient decides
RISING = 0.75  # a step is kept if the loss rose in more than this share of the steps since the last check
FIRST_CHECK, SOONER, SOONEST = 22, 3, 6  # steps to the first check, how much sooner each next one comes, and the least

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [n, classes] and the positions [n] of these images in the batch to each image's loss, [n]."""

Confirmed = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From adversarial images, clean images and labels to which of them count as broken: bool, [n]."""


def cross_entropy(labels: Tensor) -> Loss:
    """Return the loss of apgd-ce."""
    return lambda logits, at: F.cross_entropy(logits, labels[at], reduction="none")


def targeted_dlr(labels: Tensor, targets: Tensor) -> Loss:
    """Return the loss of apgd-t: how far the target has come, in units of the spread of the largest logits."""

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        each, largest = torch.arange(len(at), device=at.device), logits.sort(dim=1)[0]
        reached = logits[each, labels[at]] - logits[each, targets[at]]
        return -reached / (largest[:, -1] - 0.5 * (largest[:, -3] + largest[:, -4]) + 1e-12)

    return loss


@dataclass
class _Climb:
    """What each image of the batch that still stands has reached; the first axis of every tensor is the image's."""

    at: Tensor
    clean: Tensor
    current: Tensor
    before: Tensor
    gradient: Tensor
    highest: Tensor
    gradient_there: Tensor
    loss: Tensor
    highest_loss: Tensor
    loss_at_check: Tensor
    halved: Tensor
    step: Tensor
    losses: Tensor

    def keep(self, standing: Tensor) -> None:
        """Leave out the images that are not `standing`: bool, [n]."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[standing])


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    threat: Threat,
    random: torch.Generator,
    confirmed: Confirmed,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (adversarial images, which of them are broken, which had no gradient at the start).

    Args:
        model: in eval mode, with frozen parameters.
        images: float32, [n, channels, height, width], in [0, 1]. labels: int64, [n].
        loss: what to raise.
        random: on the CPU, for the start: uniform in the cube, or a Gaussian direction in L2, scaled onto the sphere.
        confirmed: asked about the images that `model` gets wrong; those it confirms are done, the others go on.
    """
    found, broken = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def measure(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(x)
            losses = loss(logits, at)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        return logits.detach().argmax(1) != labels[at], losses.detach(), gradient

    def fallen(climb: _Climb, wrong: Tensor) -> bool:
        """Take out the images that are broken now; return whether none is left."""
        if wrong.any():
            candidates = climb.at[wrong]
            sure = confirmed(climb.current[wrong], climb.clean[wrong], labels[candidates])
            found[candidates[sure]] = climb.current[wrong][sure]
            broken[candidates[sure]] = True
            climb.keep(~broken[climb.at])
        return not len(climb.at)

    everyone = torch.arange(len(images), device=images.device)
    start = _start(images, threat, random)
    wrong, losses, gradient = measure(start, everyone)
    flat = gradient.flatten(1).abs().sum(1) == 0
    climb = _Climb(
        at=everyone, clean=images, current=start, before=start, gradient=gradient, highest=start,
        gradient_there=gradient, loss=losses, highest_loss=losses, loss_at_check=losses,
        halved=torch.ones_like(losses, dtype=torch.bool),
        step=torch.full((len(images), 1, 1, 1), 2 * threat.eps, device=images.device),
        losses=torch.zeros(len(images), STEPS, device=images.device),
    )  # fmt: skip
    done = fallen(climb, wrong)
    since, check = 0, FIRST_CHECK
    for number in range(STEPS):
        if done:
            break
        moved = _step(climb, threat, MOMENTUM if number > 0 else 1.0)
        climb.before, climb.current = climb.current, moved
        wrong, climb.loss, climb.gradient = measure(moved, climb.at)
        climb.losses[:, number] = climb.loss
        higher = climb.loss > climb.highest_loss
        climb.highest = _where(higher, climb.current, climb.highest)
        climb.gradient_there = _where(higher, climb.gradient, climb.gradient_there)
        climb.highest_loss = torch.where(higher, climb.loss, climb.highest_loss)
        done = fallen(climb, wrong)
        since += 1
        if since == check:
            _halve(climb, number, check)
            since, check = 0, max(check - SOONER, SOONEST)
    return found, broken, flat


def _start(images: Tensor, threat: Threat, random: torch.Generator) -> Tensor:
    if threat.norm == "linf":
        direction = 2 * torch.rand(images.shape, generator=random) - 1
    else:
        direction = torch.randn(images.shape, generator=random)
    return (images + threat.eps * _normalised(direction.to(images.device), threat)).clamp(0, 1)


def _step(climb: _Climb, threat: Threat, share: float) -> Tensor:
    """Return the next iterate: a step along the gradient, and some of the step before."""
    if threat.norm == "linf":
        direction, project = climb.gradient.sign(), _into_cube
    else:
        direction, project = _normalised(climb.gradient, threat), _into_ball
    ahead = project(climb.current + climb.step * direction, climb.clean, threat)
    drift = climb.current - climb.before
    return project(climb.current + (ahead - climb.current) * share + drift * (1 - share), climb.clean, threat)


def _into_cube(x: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    return torch.min(torch.max(x, clean - threat.eps), clean + threat.eps).clamp(0, 1)


def _into_ball(x: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    """Scale each perturbation to a length of at most eps, and clip to [0, 1]."""
    moved = x - clean
    return (clean + _normalised(moved, threat) * _length(moved).clamp(max=threat.eps)).clamp(0, 1)


def _normalised(x: Tensor, threat: Threat) -> Tensor:
    size = x.abs().amax((1, 2, 3), keepdim=True) if threat.norm == "linf" else _length(x)
    return x / (size + 1e-12)


def _length(x: Tensor) -> Tensor:
    return (x**2).flatten(1).sum(1).sqrt().view(-1, 1, 1, 1)


def _halve(climb: _Climb, number: int, check: int) -> None:
    """Halve the steps of the images whose loss rises too seldom, or not at all since the last check.

    These go back to where their loss was highest.
    """
    # The step before the first counts as loss 0: the released code's index there is -1, of a row not yet written.
    earlier = torch.stack([climb.losses[:, number - back - 1] for back in range(check)])
    later = torch.stack([climb.losses[:, number - back] for back in range(check)])
    seldom = (later > earlier).sum(0) <= RISING * check
    stuck = ~climb.halved & (climb.loss_at_check >= climb.highest_loss)
    climb.halved, climb.loss_at_check = seldom | stuck, climb.highest_loss
    climb.step = _where(climb.halved, climb.step / 2, climb.step)
    climb.current = _where(climb.halved, climb.highest, climb.current)
    climb.gradient = _where(climb.halved, climb.gradient_there, climb.gradient)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), yes, no)
