"""Checkpoint + attack -> outcome: which test images does the network still get right?"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.attacks.autoattack import Cascade, CascadeState
from bench.attacks.pgd import frozen, mode, pgd, random_start
from bench.data.batches import to_float
from bench.data.dataset import ImageSet
from bench.protocol import PGD, AutoAttack, Clean, FinalAttack, Threat
from bench.seeding import generator

EVALUATION_BATCH = 500  # images at a time; evaluation keeps no activations for weights, so it can be large

Tick = Callable[[int, int], None]
"""Called with (done, of) as an attack goes on."""


def correct_under(
    model: nn.Module,
    images: ImageSet,
    attack: Clean | PGD,
    threat: Threat,
    random: torch.Generator,
    tick: Tick = lambda _done, _of: None,
) -> Tensor:
    """Return, for each image, whether the network in eval mode stays right under `attack`: bool, [n], on the device.

    The caller chooses the precision by an autocast context.
    """
    correct = []
    with mode(model, train=False), frozen(model):
        for start in range(0, len(images), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            x, labels = to_float(images.pixels[part]), images.labels[part]
            if isinstance(attack, PGD):
                x = _pgd(model, x, labels, attack, threat, random)
            with torch.no_grad():
                correct.append(model(x).argmax(1) == labels)
            tick(min(start + EVALUATION_BATCH, len(images)), len(images))
    return torch.cat(correct)


def _pgd(model: nn.Module, x: Tensor, labels: Tensor, attack: PGD, threat: Threat, random: torch.Generator) -> Tensor:
    return pgd(
        model, x, lambda logits: F.cross_entropy(logits, labels, reduction="sum"),
        threat=threat, steps=attack.steps, step_size=attack.step_size,
        start=random_start(x, threat, random) if attack.random_start else None,
    )  # fmt: skip


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


def attack_identity(attack: FinalAttack, threat: Threat, seed: int) -> dict[str, Any]:
    """Return everything that the outcome of `attack` depends on, besides weights and images."""
    identity: dict[str, Any] = {**attack.model_dump(mode="json", exclude_none=True), "precision": "fp32"}
    if not isinstance(attack, Clean):
        identity |= {**threat.model_dump(mode="json"), "seed": seed}
    if isinstance(attack, AutoAttack):
        identity |= Cascade.identity()
    return identity


@dataclass(frozen=True)
class Outcome:
    """For one checkpoint and one attack: per image, does the prediction stay right?

    `correct`: bool, [n]. `images` is None for the whole test set, or the size of the balanced subset. `detail` holds
    what the attack has to say beyond the verdicts, such as AutoAttack's accuracy after each of its parts.
    """

    attack: dict[str, Any]
    title: str
    weights_sha256: str
    correct: np.ndarray[Any, np.dtype[np.bool_]]
    seconds: float
    detail: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def to_record(self) -> dict[str, Any]:
        """Return JSON data; the verdicts are packed eight to a byte, in base64."""
        return {
            "attack": self.attack,
            "title": self.title,
            "weights_sha256": self.weights_sha256,
            "count": len(self.correct),
            "right": int(self.correct.sum()),
            "correct": base64.b64encode(pack(self.correct)).decode(),
            "seconds": self.seconds,
            "detail": self.detail,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Outcome:
        """Undo `to_record`."""
        correct = unpack(base64.b64decode(record["correct"]), record["count"])
        fields = ("attack", "title", "weights_sha256", "seconds", "detail")
        return cls(correct=correct, **{name: record[name] for name in fields})


def pack(correct: np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    """Pack verdicts eight to a byte, first image in the highest bit."""
    return np.packbits(correct).tobytes()


def unpack(bits: bytes, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Undo `pack`, given the number of images."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)


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
    images: ImageSet,
    attack: FinalAttack,
    threat: Threat,
    *,
    seed: int = 0,
    tick: Tick = lambda _done, _of: None,
    state: CascadeState | None = None,
    commit: Callable[[CascadeState], None] = lambda _state: None,
) -> Outcome:
    """Judge `model` under one of the final attacks, in fp32.

    Args:
        images: the whole test set, on the model's device.
        seed: of the attack's own randomness; equal for all checkpoints and methods, so that outcomes are paired.
        state, commit: AutoAttack's place to continue from, and what to call with each new one.
    """
    started = time.monotonic()
    chosen = images.take(balanced_subset(images.labels, getattr(attack, "images", None)).to(images.labels.device))
    detail: dict[str, Any] = {}
    with exact_arithmetic():
        if isinstance(attack, AutoAttack):
            cascade = Cascade(model, threat, attack.batch_size, seed)
            with mode(model, train=False), frozen(model):
                final = cascade.run(to_float(chosen.pixels), chosen.labels, state, commit, tick)
            correct, detail = final.robust, {"accuracy_after": final.accuracy_after}
            seconds = final.seconds
        else:
            random = generator(seed, "evaluation", device=images.labels.device)
            correct = correct_under(model, chosen, attack, threat, random, tick).cpu().numpy()
            seconds = time.monotonic() - started
    identity = attack_identity(attack, threat, seed)
    return Outcome(identity, attack.title, weights_sha256, correct, seconds, detail)
