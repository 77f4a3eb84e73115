"""Auto-PGD: gradient ascent that halves an image's step size when its loss stops rising.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020:
algorithm 1, with the constants and, for the same seed, the random starts of their released code. Their code continues
with broken images; this one drops them from the batch, which does not change the results of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attacks.passes import Passes, Values
from bench.config.attacks import Threat

STEPS = 100
MOMENTUM = 0.75  # weight of the gradient in a step
RISING = 0.75  # keep the step size if the loss rose in more than this share of the steps since the last check
FIRST_CHECK, DECREMENT, MIN_INTERVAL = 22, 3, 6  # steps: the first interval between checks, its decrease, its minimum

Confirm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From adversarial images, clean images and labels to which images count as broken: bool, [n]."""


def cross_entropy(logits: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
    """Return the loss of apgd-ce of each image, [n]."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of apgd-t: target logit minus true logit, divided by the spread of the largest logits."""
    each, largest = torch.arange(len(labels), device=labels.device), logits.sort(dim=1)[0]
    difference = logits[each, labels] - logits[each, targets]
    return -difference / (largest[:, -1] - 0.5 * (largest[:, -3] + largest[:, -4]) + 1e-12)


@dataclass
class _State:
    """The state of every unbroken image of the batch; the first axis of every tensor is the image."""

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

    def keep(self, unbroken: Tensor) -> None:
        """Drop all other images than `unbroken`: bool, [n]."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[unbroken])


def apgd(
    passes: Passes,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    loss: Values,
    threat: Threat,
    random: torch.Generator,
    confirm: Confirm,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (adversarial images, which of them are broken, which had a zero gradient at the start).

    Args:
        passes: through the network to attack.
        images: float32, [n, channels, height, width], in [0, 1]. labels, targets: int64, [n].
        loss: the loss to maximise.
        random: on the CPU, for the start: uniform in the cube, or a Gaussian direction in L2, scaled to the sphere.
        confirm: called for the images that the network misclassifies; the attack on confirmed images ends.
    """
    adversarial, broken = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def measure(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, losses, gradient = passes.gradients(loss, x, labels[at], targets[at])
        return logits.argmax(1) != labels[at], losses, gradient

    def drop_broken(state: _State, wrong: Tensor) -> bool:
        """Drop the images that are broken now; return whether none remains."""
        if wrong.any():
            candidates = state.at[wrong]
            sure = confirm(state.current[wrong], state.clean[wrong], labels[candidates])
            adversarial[candidates[sure]] = state.current[wrong][sure]
            broken[candidates[sure]] = True
            state.keep(~broken[state.at])
        return not len(state.at)

    all_images = torch.arange(len(images), device=images.device)
    start = _start(images, threat, random)
    wrong, losses, gradient = measure(start, all_images)
    flat = gradient.flatten(1).abs().sum(1) == 0
    state = _State(
        at=all_images, clean=images, current=start, before=start, gradient=gradient, highest=start,
        gradient_there=gradient, loss=losses, highest_loss=losses, loss_at_check=losses,
        halved=torch.ones_like(losses, dtype=torch.bool),
        step=torch.full((len(images), 1, 1, 1), 2 * threat.eps, device=images.device),
        losses=torch.zeros(len(images), STEPS, device=images.device),
    )  # fmt: skip
    done = drop_broken(state, wrong)
    since, check = 0, FIRST_CHECK
    for number in range(STEPS):
        if done:
            break
        moved = _step(state, threat, MOMENTUM if number > 0 else 1.0)
        state.before, state.current = state.current, moved
        wrong, state.loss, state.gradient = measure(moved, state.at)
        state.losses[:, number] = state.loss
        higher = state.loss > state.highest_loss
        state.highest = _where(higher, state.current, state.highest)
        state.gradient_there = _where(higher, state.gradient, state.gradient_there)
        state.highest_loss = torch.where(higher, state.loss, state.highest_loss)
        done = drop_broken(state, wrong)
        since += 1
        if since == check:
            _halve(state, number, check)
            since, check = 0, max(check - DECREMENT, MIN_INTERVAL)
    return adversarial, broken, flat


def _start(images: Tensor, threat: Threat, random: torch.Generator) -> Tensor:
    if threat.norm == "linf":
        direction = 2 * torch.rand(images.shape, generator=random) - 1
    else:
        direction = torch.randn(images.shape, generator=random)
    return (images + threat.eps * _normalised(direction.to(images.device), threat)).clamp(0, 1)


def _step(state: _State, threat: Threat, share: float) -> Tensor:
    """Return the next iterate: a gradient step with momentum."""
    if threat.norm == "linf":
        direction, project = state.gradient.sign(), _into_cube
    else:
        direction, project = _normalised(state.gradient, threat), _into_ball
    ahead = project(state.current + state.step * direction, state.clean, threat)
    drift = state.current - state.before
    return project(state.current + (ahead - state.current) * share + drift * (1 - share), state.clean, threat)


def _into_cube(x: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    return torch.min(torch.max(x, clean - threat.eps), clean + threat.eps).clamp(0, 1)


def _into_ball(x: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    """Scale each perturbation to an L2 norm of at most eps, and clip to [0, 1]."""
    moved = x - clean
    return (clean + _normalised(moved, threat) * _length(moved).clamp(max=threat.eps)).clamp(0, 1)


def _normalised(x: Tensor, threat: Threat) -> Tensor:
    size = x.abs().amax((1, 2, 3), keepdim=True) if threat.norm == "linf" else _length(x)
    return x / (size + 1e-12)


def _length(x: Tensor) -> Tensor:
    return (x**2).flatten(1).sum(1).sqrt().view(-1, 1, 1, 1)


def _halve(state: _State, number: int, check: int) -> None:
    """Halve the step size of images whose loss rose too seldom, or reached no new maximum since the last check.

    These images return to the iterate of their highest loss.
    """
    # The loss before the first step counts as 0: the released code reads index -1, a row that is still zero.
    earlier = torch.stack([state.losses[:, number - back - 1] for back in range(check)])
    later = torch.stack([state.losses[:, number - back] for back in range(check)])
    seldom = (later > earlier).sum(0) <= RISING * check
    stuck = ~state.halved & (state.loss_at_check >= state.highest_loss)
    state.halved, state.loss_at_check = seldom | stuck, state.highest_loss
    state.step = _where(state.halved, state.step / 2, state.step)
    state.current = _where(state.halved, state.highest, state.current)
    state.gradient = _where(state.halved, state.gradient_there, state.gradient)


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.view(-1, 1, 1, 1), yes, no)
