"""Signs of masked gradients: the gradient does not lead an attack to the adversarial images that exist.

Athalye, Carlini and Wagner, Obfuscated gradients give a false sense of security, 2018, and Carlini et al., On
evaluating adversarial robustness, 2019, describe most of them. docs/attacks.md has the measurements behind the
thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.attacks.pgd import Objective, cross_entropy, l2_norm, margin, margins, pgd, random_start
from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Threat

PROBED = 128
"""Images to check, of those that the attack left robust: about 2 % of the work of PGD-20 on 10,000 images."""

DRAWS = 10  # of random noise for each image

STEPS = 10  # of the attack on another loss, at most

SMALL_STEP = 0.1
"""Of the radius: over this distance the margin should change as its gradient predicts."""

AGREEMENT = (0.5, 2.0)
"""The change of the margin relative to the prediction, if they agree."""

SAME_LOGITS = 1e-4
"""Relative distance between the logits of two passes up to which a network is deterministic, as in AutoAttack."""

SMALL_LOGITS = 0.1
"""Standard deviation over the classes below which the cross-entropy's gradient hardly depends on the prediction."""

# By how much robust accuracy may be too high without a sign, as a share of the attacked images; our choice.
NO_GRADIENT = 0.01
WRONG_GRADIENT = 0.05
RESCALED = 0.04
OTHER_LOSS = 0.10  # larger: without masking, too, the margin breaks more images than the cross-entropy
ONE_STEP = 0.05
NOISE = 0.02

MANY = 0.25
"""Share of the checked images whose gradient must be wrong; it is 0.2 if inputs are rounded and their gradient is not,
which attacks can follow."""

GradientAttack = FGSM | PGD | CW


def masking_signs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    accuracy: float,
    attack: GradientAttack | AutoAttack,
    threat: Threat,
    random: torch.Generator,
) -> list[str]:
    """Return signs that `attack` overestimates robustness because gradients are masked; usually none.

    The global random state, from which a network may draw, is restored.

    Args:
        model: in eval mode, with frozen parameters.
        images: float32, [n, channels, height, width], in [0, 1]: some that the attack left robust.
        labels: int64, [n].
        accuracy: the robust accuracy that the attack measured.
        attack: compared with itself on other losses; AutoAttack, which looks for zero gradients itself, with PGD.
        random: for starts and noise, on the device.
    """
    signs: list[str] = []
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        if len(images) and not isinstance(attack, AutoAttack):
            signs += output_signs(model, images)
        for found, limit, what in _findings(model, images, labels, attack, threat, random) if len(images) else ():
            if float(found.float().mean()) * accuracy > limit:
                signs.append(f"{int(found.sum())} of {len(images)} robust images checked {what}")
    return signs


def _findings(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: GradientAttack | AutoAttack,
    threat: Threat,
    random: torch.Generator,
) -> Iterator[tuple[Tensor, float, str]]:
    """Yield for each check which images are affected (bool, [n]), its limit, and what was found.

    The arguments are those of `masking_signs`.
    """
    ascent = PGD(steps=STEPS, step_size=threat.eps / 4)
    if isinstance(attack, PGD | CW):
        size = max(attack.step_size, threat.eps / 4) if attack.steps > STEPS else attack.step_size
        ascent = PGD(steps=min(attack.steps, STEPS), step_size=size, random_start=attack.random_start)
    if isinstance(attack, FGSM):
        ascent = PGD(steps=1, step_size=threat.eps, random_start=False)

    def start() -> Tensor:
        return random_start(images, threat, random) if ascent.random_start else images

    def broken(x: Tensor) -> Tensor:
        with torch.no_grad():
            wrong: Tensor = model(x).argmax(1) != labels
        return wrong

    def ascend(objective: Objective) -> Tensor:
        return broken(
            pgd(model, images, lambda logits: objective(_rescaled(logits)), threat=threat, steps=ascent.steps,
                step_size=ascent.step_size, start=start())
        )  # fmt: skip

    noisy = torch.zeros_like(labels, dtype=torch.bool)
    for _ in range(DRAWS):
        noise = torch.empty_like(images).normal_(generator=random)
        noisy |= broken((images + threat.eps * _direction(noise, threat)).clamp(0, 1))
    yield noisy, NOISE, "are broken by random noise of the same radius"
    with torch.enable_grad():
        if not model(images[:1].clone().requires_grad_()).requires_grad:  # no gradient: some of AutoAttack needs none
            return
    if not isinstance(attack, AutoAttack):
        yield from _wrong_gradients(model, start(), labels, attack, threat)
    one_step = pgd(model, images, cross_entropy(labels), threat=threat, steps=1, step_size=threat.eps)
    yield broken(one_step), ONE_STEP, "are broken by a single step, FGSM"
    yield ascend(cross_entropy(labels)), RESCALED, "are broken by PGD on rescaled logits"
    yield ascend(margin(labels)), OTHER_LOSS, "are broken by PGD on the margin"


def _wrong_gradients(
    model: nn.Module, x: Tensor, labels: Tensor, attack: GradientAttack, threat: Threat
) -> Iterator[tuple[Tensor, float, str]]:
    """Yield as `_findings` which images have no gradient at `x`, where `attack` starts, or a wrong one."""
    loss = margin(labels) if isinstance(attack, CW) else cross_entropy(labels)
    largest = _gradient(model, x, loss).flatten(1).abs().amax(1)
    flat = ~((largest > 0) & largest.isfinite())
    yield flat, NO_GRADIENT, "have no gradient where it starts"
    gradient = _gradient(model, x, margin(labels))
    moved = (x + SMALL_STEP * threat.eps * _direction(gradient, threat)).clamp(0, 1)
    with torch.no_grad():
        logits = model(x)
        change = margins(model(moved), labels) - margins(logits, labels)
    if not isinstance(attack, CW):
        yield logits.std(1) < SMALL_LOGITS, WRONG_GRADIENT, "have such small logits that all classes are as probable"
    ratio = change / (gradient * (moved - x)).flatten(1).sum(1)
    wrong = ~((ratio > AGREEMENT[0]) & (ratio < AGREEMENT[1])) & ~flat
    if float(wrong.float().mean()) > MANY:
        yield wrong, WRONG_GRADIENT, "change their margin otherwise than its gradient predicts"


def _gradient(model: nn.Module, x: Tensor, objective: Objective) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = objective(model(x))
    (gradient,) = torch.autograd.grad(value, x)
    return gradient


def _direction(x: Tensor, threat: Threat) -> Tensor:
    return x.sign() if threat.norm == "linf" else x / l2_norm(x)


def _rescaled(logits: Tensor) -> Tensor:
    """Return logits with a standard deviation of 1 over the classes, which keeps the direction of the gradient."""
    return logits / logits.detach().std(1, keepdim=True).clamp(min=1e-30)


def output_signs(model: nn.Module, images: Tensor) -> list[str]:
    """Return what the outputs for `images` say against `model`, with AutoAttack's limits.

    `images`: float32, [n, channels, height, width], in [0, 1].
    """
    with torch.no_grad():
        first, second = model(images), model(images)
    signs = []
    length = torch.linalg.vector_norm(first, dim=1, keepdim=True) + 1e-10
    if bool((torch.linalg.vector_norm((first - second) / length, dim=1) > SAME_LOGITS).any()):
        signs.append("the network is not deterministic")
    if bool((first >= -1e-5).all()) and bool(((first.sum(1) - 1).abs() < 1e-5).all()):
        signs.append("the network returns probabilities, not logits")
    return signs
