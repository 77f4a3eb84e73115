"""Checkpoint + attack -> outcome: which test images does the network still get right?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.autoattack import PASSES, Cascade, CascadeState
from bench.attacks.outcome import Outcome
from bench.attacks.pgd import cross_entropy, frozen_parameters, margin, pgd, random_start, train_mode
from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Clean, FinalAttack, Threat
from bench.data.batches import to_float
from bench.data.dataset import Images
from bench.utils.cuda_graphs import Recorder, replayed
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.progress import ProgressCallback, no_progress
from bench.utils.rng import generator

log = logging.getLogger(__name__)

EVALUATION_BATCH = 500  # images at a time; evaluation keeps no activations for weights, so it can be large

LEAST_RECORDED = 5 * EVALUATION_BATCH
"""Images from which on recording an attack is worth what it costs, which is about the host's part of one batch."""

EVALUATION_SEED = 0
"""Of the attacks' own randomness: equal for all checkpoints and methods, so that outcomes are paired."""


Judge = Callable[[Tensor, Tensor], Tensor]
"""From images and labels of a batch to which of them the network is right about."""


def correct_under(
    model: nn.Module,
    images: Images,
    attack: Clean | FGSM | PGD | CW,
    threat: Threat,
    random: torch.Generator,
    progress: ProgressCallback = no_progress,
    group: ProcessGroup = SINGLE_PROCESS,
    recorder: Recorder | None = None,
) -> Tensor:
    """Return, for each image, whether the network in eval mode stays right under `attack`: bool, [n], on the device.

    The caller chooses the precision by an autocast context. The processes of `group` share out the batches, and each
    returns the whole answer. With a `recorder`, the attack on the second whole batch is recorded, and replayed on those
    after it.
    """
    correct = torch.zeros_like(images.labels, dtype=torch.uint8)  # booleans cannot be added
    replay: Judge | None = None

    def stands(x: Tensor, labels: Tensor) -> Tensor:
        return _stands(model, x, labels, attack, threat, random)

    with train_mode(model, enabled=False), frozen_parameters(model):
        batches = _batches(images)
        own, passed = range(group.rank, len(batches), group.size), 0
        for number, pixels in zip(own, images.read([batches[number] for number in own]), strict=True):
            x, index = to_float(pixels), batches[number]
            for other in batches[passed:number]:
                _pass_over(x, len(other), attack, threat, random)
            passed, labels = number + 1, images.labels[index]
            whole = len(labels) == EVALUATION_BATCH
            if recorder and whole and number == 1 and len(images) >= LEAST_RECORDED:
                replay = _recorded(recorder, stands, x, labels, random)
            correct[index] = (replay if replay and whole else stands)(x, labels).to(torch.uint8)
            progress(min(passed * EVALUATION_BATCH, len(images)), len(images))
    group.all_reduce(correct)
    return correct.bool()


def _recorded(recorder: Recorder, stands: Judge, x: Tensor, labels: Tensor, random: torch.Generator) -> Judge | None:
    """Return what replays the judgement of a batch; None if it cannot be recorded."""
    try:
        return replayed(recorder, stands, (x, labels), [random] if random.device.type == "cuda" else [])
    except RuntimeError as error:
        log.warning("an attack is not recorded: %s", error)
        return None


def _batches(images: Images) -> tuple[Tensor, ...]:
    """Return the positions of each batch in turn."""
    return torch.split(torch.arange(len(images), device=images.labels.device), EVALUATION_BATCH)


def _stands(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Clean | FGSM | PGD | CW,
    threat: Threat,
    random: torch.Generator,
) -> Tensor:
    """Return which of a batch's images the network is right about under `attack`: bool, [n]."""
    stands = torch.ones_like(labels, dtype=torch.bool)

    def judge(logits: Tensor) -> None:
        stands.logical_and_(logits.detach().argmax(1) == labels)

    raised = margin(labels) if isinstance(attack, CW) else cross_entropy(labels)

    def judged(logits: Tensor) -> Tensor:
        judge(logits)
        return raised(logits)

    for _ in range(getattr(attack, "restarts", None) or 1):
        x = images
        if isinstance(attack, FGSM):
            x = pgd(model, images, raised, threat=threat, steps=1, step_size=threat.eps)
        elif not isinstance(attack, Clean):
            x = pgd(
                model, images, judged if attack.iterate == "worst" else raised,
                threat=threat, steps=attack.steps, step_size=attack.step_size,
                start=random_start(images, threat, random) if attack.random_start else None,
            )  # fmt: skip
        with torch.no_grad():
            judge(model(x))
    return stands


def _pass_over(
    like: Tensor, count: int, attack: Clean | FGSM | PGD | CW, threat: Threat, random: torch.Generator
) -> None:
    """Draw what `attack` draws for `count` images that another process judges; they are as large as those of `like`."""
    if isinstance(attack, PGD | CW) and attack.random_start:
        for _ in range(attack.restarts or 1):
            random_start(like.new_empty_strided((count, *like.shape[1:]), like.stride()), threat, random)


def balanced_subset(labels: Tensor, count: int | None) -> Tensor:
    """Return the indices (int64, rising) of the `count` test images that an attack with `images: count` sees.

    The first images of every class in the order of the test set, classes as equal as the count allows: every image gets
    its rank within its class, and the lowest ranks are taken, ties by class. None, or more than there are: all of them.
    """
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    seen: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        ranked.append((seen[label], label, index))
    return torch.tensor(sorted(index for _, _, index in sorted(ranked)[:count]))


def evaluated_images(attack: FinalAttack, test_images: int) -> int:
    """Return how many of the test images `attack` sees."""
    return min(getattr(attack, "images", None) or test_images, test_images)


def forward_passes(attack: FinalAttack) -> int:
    """Return the work of `attack` on one image, in forward passes; an input gradient counts as one more."""
    if isinstance(attack, AutoAttack):
        return sum(PASSES[part] for part in attack.cascade)
    if isinstance(attack, PGD | CW):
        return (2 * attack.steps + 1) * (attack.restarts or 1)
    return 3 if isinstance(attack, FGSM) else 1


def attack_identity(attack: FinalAttack, threat: Threat) -> dict[str, Any]:
    """Return everything that the outcome of `attack` depends on, besides weights and images."""
    identity: dict[str, Any] = {**attack.model_dump(mode="json", exclude_none=True), "precision": "fp32"}
    if not isinstance(attack, Clean):
        identity |= {**threat.model_dump(mode="json"), "seed": EVALUATION_SEED}
    if isinstance(attack, AutoAttack):
        identity |= Cascade.identity(attack)
    return identity


@contextmanager
def exact_arithmetic() -> Any:
    """Within, products and convolutions on NVIDIA GPUs have full fp32 precision (TF32 off)."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def evaluate(
    model: nn.Module,
    weights_sha256: str,
    images: Images,
    attack: FinalAttack,
    threat: Threat,
    *,
    progress: ProgressCallback = no_progress,
    state: CascadeState | None = None,
    commit: Callable[[CascadeState], None] = lambda _state: None,
) -> Outcome:
    """Judge `model` under one of the final attacks, in fp32 unless the attack says otherwise.

    Args:
        images: the whole test set, on the model's device.
        state, commit: AutoAttack's place to continue from, and what to call with each new one.

    Raises:
        BenchError: AutoAttack is not defined for the network's number of classes, or labels lie outside them.
    """
    started, identity = time.monotonic(), attack_identity(attack, threat)
    chosen = images.take(balanced_subset(images.labels, getattr(attack, "images", None)).to(images.labels.device))
    detail: dict[str, Any] = {}
    with exact_arithmetic():
        if isinstance(attack, AutoAttack):
            cascade = Cascade(model, threat, attack, EVALUATION_SEED)
            with train_mode(model, enabled=False), frozen_parameters(model):
                pixels = to_float(torch.cat(list(chosen.read(_batches(chosen)))))
                final = cascade.run(pixels, chosen.labels, state, commit, progress)
                detail = {"accuracy_after": final.accuracy_after, "doubts": cascade.doubts(pixels, final)}
            correct, seconds = final.robust, final.seconds
            if final.batch_size < attack.batch_size:  # there was no memory for more
                identity["reduced_batch_size"] = final.batch_size
        else:
            random = generator(EVALUATION_SEED, "evaluation", device=images.labels.device)
            correct = correct_under(model, chosen, attack, threat, random, progress).cpu().numpy()
            seconds = time.monotonic() - started
    return Outcome(identity, attack.title, weights_sha256, correct, seconds, detail)
