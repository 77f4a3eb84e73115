"""Evaluation of a network under an attack: which images it classifies correctly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.attacks.autoattack import PASSES, BatchResult, Cascade, CascadeState, Elsewhere, Index
from bench.attacks.masking import PROBED, GradientAttack, masking_signs
from bench.attacks.outcome import Correct, Outcome, per_class
from bench.attacks.pgd import (
    cross_entropy,
    frozen_parameters,
    margin,
    pgd,
    probability_margin,
    random_start,
    train_mode,
)
from bench.config.attacks import CW, FGSM, PGD, Attack, AutoAttack, Clean, FinalAttack, Joint, Preview, Threat
from bench.config.corruptions import Corruptions
from bench.data.batches import to_float
from bench.data.dataset import Images
from bench.utils.cuda_graphs import Capture, capture_in_one_pool, capture_on, make_replay
from bench.utils.device import exact_arithmetic
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.progress import ProgressCallback, no_progress
from bench.utils.rng import generator

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500  # images; large, because evaluation keeps no activations for weight gradients

MIN_CAPTURED_IMAGES = 5 * EVALUATION_BATCH
"""With fewer images, capturing an attack costs more than replays save: about the host's time for one batch."""

EVALUATION_SEED = 0
"""Seed of the attacks' own randomness, equal for all checkpoints and methods, so that outcomes are paired."""

FixedAttack = Clean | FGSM | PGD | CW | Preview
"""The attacks that run every image through the same steps."""

CorrectUnderAttack = Callable[[Tensor, Tensor], Tensor]
"""From the images and labels of a batch to which images are classified correctly under an attack: bool, [n]."""


def correct_under(
    model: nn.Module,
    images: Images,
    attack: FixedAttack,
    threat: Threat,
    random: torch.Generator,
    progress: ProgressCallback = no_progress,
    group: ProcessGroup = SINGLE_PROCESS,
    capture: Capture | None = None,
) -> Tensor:
    """Return, for each image, whether the network in eval mode is correct under `attack`: bool, [n], on the device.

    The caller chooses the precision by an autocast context. The processes of `group` share the batches, and each
    returns the whole result. With `capture`, the attack on the second whole batch is captured as a CUDA graph, and
    replayed for the whole batches from there on.
    """
    correct = torch.zeros_like(images.labels, dtype=torch.uint8)  # booleans cannot be added
    replay: CorrectUnderAttack | None = None

    def evaluate_batch(x: Tensor, labels: Tensor) -> Tensor:
        return _correct_batch(model, x, labels, attack, threat, random)

    with train_mode(model, enabled=False), frozen_parameters(model):
        batches = _batches(images)
        own, passed = range(group.rank, len(batches), group.size), 0
        for number, pixels in zip(own, images.read([batches[number] for number in own]), strict=True):
            x, index = to_float(pixels), batches[number]
            for skipped in batches[passed:number]:
                _skip_draws(x, len(skipped), attack, threat, random)
            passed, labels = number + 1, images.labels[index]
            whole = len(labels) == EVALUATION_BATCH
            if capture and whole and number == 1 and len(images) >= MIN_CAPTURED_IMAGES:
                replay = _capture_batch(capture, evaluate_batch, x, labels, random)
            correct[index] = (replay if replay and whole else evaluate_batch)(x, labels).to(torch.uint8)
            progress(min(passed * EVALUATION_BATCH, len(images)), len(images))
    group.all_reduce(correct)
    return correct.bool()


def _capture_batch(
    capture: Capture, evaluate_batch: CorrectUnderAttack, x: Tensor, labels: Tensor, random: torch.Generator
) -> CorrectUnderAttack | None:
    """Return the replay of the evaluation of a batch, or None if it cannot be captured."""
    try:
        return make_replay(capture, evaluate_batch, (x, labels), [random] if random.device.type == "cuda" else [])
    except RuntimeError as error:
        log.warning("CUDA graph capture of an attack failed, running eagerly: %s", error)
        return None


def _batches(images: Images) -> tuple[Tensor, ...]:
    """Return the positions of each batch in turn."""
    return torch.split(torch.arange(len(images), device=images.labels.device), EVALUATION_BATCH)


def _correct_batch(
    model: nn.Module, images: Tensor, labels: Tensor, attack: FixedAttack, threat: Threat, random: torch.Generator
) -> Tensor:
    """Return which images of a batch the network classifies correctly under `attack`: bool, [n]."""
    correct = torch.ones_like(labels, dtype=torch.bool)
    objectives = {"cw": margin, "preview": probability_margin}
    objective = objectives.get(attack.name, cross_entropy)(labels)

    def update(logits: Tensor) -> None:
        correct.logical_and_(logits.detach().argmax(1) == labels)

    def update_and_raise(logits: Tensor) -> Tensor:
        update(logits)
        return objective(logits)

    for _ in range(getattr(attack, "restarts", None) or 1):
        x = images
        if isinstance(attack, FGSM):
            x = pgd(model, images, objective, threat=threat, steps=1, step_size=threat.eps)
        elif not isinstance(attack, Clean):
            x = pgd(
                model, images, update_and_raise if attack.iterate == "worst" else objective,
                threat=threat, steps=attack.steps, step_size=attack.step_size,
                start=random_start(images, threat, random) if attack.random_start else None,
            )  # fmt: skip
        with torch.no_grad():
            update(model(x))
    return correct


def _skip_draws(like: Tensor, count: int, attack: FixedAttack, threat: Threat, random: torch.Generator) -> None:
    """Draw what `attack` draws for `count` images of the shape of `like`, which another process evaluates."""
    if isinstance(attack, PGD | CW | Preview) and attack.random_start:
        for _ in range(attack.restarts or 1):
            random_start(like.new_empty_strided((count, *like.shape[1:]), like.stride()), threat, random)


def balanced_subset(labels: Tensor, count: int | None) -> Tensor:
    """Return the indices (int64, rising) of the `count` test images for an attack with `images: count`.

    These are the first images of every class in the order of the test set, with class sizes as equal as possible: every
    image has its rank within its class, and the lowest ranks are chosen, ties by class. None, or more images than there
    are, selects all.
    """
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    sizes: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(labels.tolist()):
        sizes[label] = sizes.get(label, -1) + 1
        ranked.append((sizes[label], label, index))
    return torch.tensor(sorted(index for _, _, index in sorted(ranked)[:count]))


def evaluated_images(attack: FinalAttack, test_images: int) -> int:
    """Return the number of test images that `attack` uses."""
    return min(getattr(attack, "images", None) or test_images, test_images)


def forward_passes(attack: FinalAttack) -> int:
    """Return the work of `attack` per image, in forward passes; an input gradient counts as one more."""
    if isinstance(attack, Joint):
        return 0
    if isinstance(attack, Corruptions):
        return len(attack.versions)
    if isinstance(attack, AutoAttack):
        return sum(PASSES[part] for part in attack.cascade)
    if isinstance(attack, PGD | CW):
        return (2 * attack.steps + 1) * (attack.restarts or 1)
    return 3 if isinstance(attack, FGSM) else 1


def ball_of(attack: Attack | Preview, threat: Threat) -> Threat:
    """Return the ball of `attack`: its own, or the protocol's `threat`."""
    own: Threat | None = getattr(attack, "threat", None)
    return own or threat


def attack_identity(attack: Attack | Preview, threat: Threat) -> dict[str, Any]:
    """Return everything that the outcome of `attack` depends on, besides weights and images."""
    identity: dict[str, Any] = {**attack.model_dump(mode="json", exclude_none=True), "precision": "fp32"}
    if not isinstance(attack, Clean):
        threat = ball_of(attack, threat)
        identity |= {**threat.model_dump(mode="json"), "seed": EVALUATION_SEED}
    if isinstance(attack, AutoAttack):
        identity |= Cascade.identity(attack)
    return identity


def _signs(
    model: nn.Module, images: Images, correct: Correct, attack: GradientAttack | AutoAttack, threat: Threat, most: int
) -> list[str]:
    """Return the signs of masked gradients on `most` images, evenly spaced among those that `attack` left robust."""
    robust = np.flatnonzero(correct)
    spaced = robust[np.linspace(0, len(robust) - 1, min(most, len(robust))).astype(int)]
    few = images.take(torch.from_numpy(spaced).to(images.labels.device))
    random = generator(EVALUATION_SEED, "masking", device=images.labels.device)
    with train_mode(model, enabled=False), frozen_parameters(model):
        pixels = to_float(torch.cat(list(few.read(_batches(few))))) if len(few) else torch.empty(0)
        return masking_signs(model, pixels, few.labels, float(correct.mean()), attack, threat, random)


def evaluate(
    model: nn.Module,
    weights_sha256: str,
    images: Images,
    attack: Attack | Preview,
    threat: Threat,
    *,
    progress: ProgressCallback = no_progress,
    state: CascadeState | None = None,
    commit: Callable[[CascadeState], None] = lambda _state: None,
    heartbeat: Callable[[], None] = lambda: None,
    elsewhere: Elsewhere | None = None,
) -> Outcome:
    """Evaluate `model` under a final attack, in fp32 unless the attack has a precision of its own.

    Args:
        images: the whole test set, on the model's device.
        state, commit: the state to resume AutoAttack from, and the callback for each new state.
        heartbeat: called at least at every pass of AutoAttack that does not run the hooks of `model`.
        elsewhere: what runs the batches of AutoAttack, if not this process.

    Raises:
        BenchError: AutoAttack is not defined for this number of classes, or a label is out of range.
    """
    started, identity, threat = time.monotonic(), attack_identity(attack, threat), ball_of(attack, threat)
    subset = _subset(images, attack)
    detail: dict[str, Any] = {}
    with exact_arithmetic():
        if isinstance(attack, AutoAttack):
            cascade = _cascade(model, threat, attack, subset, heartbeat)
            with train_mode(model, enabled=False), frozen_parameters(model):
                pixels = to_float(torch.cat(list(subset.read(_batches(subset)))))
                final = cascade.run(pixels, subset.labels, state, commit, progress, elsewhere)
                detail = {"accuracy_after": final.accuracy_after, "doubts": cascade.flags(pixels, final)}
            correct, seconds = final.robust, final.seconds
            if final.batch_size < attack.batch_size:  # out of memory with more
                identity["reduced_batch_size"] = final.batch_size
        else:
            random = generator(EVALUATION_SEED, "evaluation", device=images.labels.device)
            capture = capture_on(images.labels.device)
            correct = correct_under(model, subset, attack, threat, random, progress, capture=capture).cpu().numpy()
            seconds = time.monotonic() - started
        if not isinstance(attack, Clean | Preview):
            most = min(PROBED, identity.get("reduced_batch_size", PROBED))
            detail["doubts"] = [*detail.get("doubts", ()), *_signs(model, subset, correct, attack, threat, most)]
    detail["per_class"] = per_class(correct, subset.labels, images.labels)
    return Outcome(identity, attack.title, weights_sha256, correct, seconds, detail)


BatchAttack = Callable[[str, Index], BatchResult]
"""From a part of AutoAttack and the indices of images to the result."""


def batch_attack(
    model: nn.Module, images: Images, attack: AutoAttack, threat: Threat, heartbeat: Callable[[], None]
) -> BatchAttack:
    """Return what attacks single batches as `evaluate` would, for another process; `model` is frozen and in eval mode.

    Raises:
        BenchError: as `evaluate`.
    """
    subset, threat = _subset(images, attack), ball_of(attack, threat)
    pixels = to_float(torch.cat(list(subset.read(_batches(subset)))))
    cascade = _cascade(model, threat, attack, subset, heartbeat)
    classes = cascade.check(pixels, subset.labels)

    def attack_batch(name: str, index: Index) -> BatchResult:
        with exact_arithmetic():
            return cascade.attack_batch(name, index, classes, pixels, subset.labels)

    return attack_batch


def _subset(images: Images, attack: Attack | Preview) -> Images:
    return images.take(balanced_subset(images.labels, getattr(attack, "images", None)).to(images.labels.device))


def _cascade(
    model: nn.Module, threat: Threat, attack: AutoAttack, images: Images, heartbeat: Callable[[], None]
) -> Cascade:
    capture = capture_in_one_pool(images.labels.device)
    return Cascade(model, threat, attack, EVALUATION_SEED, capture, heartbeat)
