"""Outcomes of several evaluations of an image: under all attacks together, and under natural corruptions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.attacks.evaluate import EVALUATION_SEED, balanced_subset, correct_under
from bench.attacks.identity import corruptions_identity
from bench.attacks.outcome import Outcome, per_class
from bench.config.attacks import Clean, Joint, Threat
from bench.config.corruptions import Corruptions
from bench.data.corrupted import Version
from bench.utils.cuda_graphs import capture_on
from bench.utils.device import exact_arithmetic
from bench.utils.files import fingerprint
from bench.utils.progress import ProgressCallback, no_progress
from bench.utils.rng import generator


def joint_outcome(identity: dict[str, Any], outcomes: Sequence[Outcome], labels: Tensor) -> Outcome:
    """Return the outcome of all attacks together, of one checkpoint: an image must be correct in each of `outcomes`.

    It is of the images that all of them saw. Subsets are nested (`balanced_subset`), so these are those of the attack
    that saw fewest. `labels`: int64, [n], of the whole test set.
    """
    started = time.monotonic()
    shared = balanced_subset(labels, min(len(outcome.correct) for outcome in outcomes))
    correct = np.ones(len(shared), bool)
    for outcome in outcomes:
        seen = balanced_subset(labels, len(outcome.correct))
        correct &= outcome.correct[torch.searchsorted(seen, shared).numpy()]
    detail = {"per_class": per_class(correct, labels[shared.to(labels.device)], labels)}
    return Outcome(identity, Joint().title, outcomes[0].weights_sha256, correct, time.monotonic() - started, detail)


def evaluate_corruptions(
    model: nn.Module,
    weights_sha256: str,
    settings: Corruptions,
    versions: Iterable[Version],
    threat: Threat,
    progress: ProgressCallback = no_progress,
) -> Outcome:
    """Evaluate `model` on the corrupted test images `versions`, in fp32.

    `correct` of the outcome has the versions of the first image in the order of `settings.versions`, then those of the
    second, and so on. `detail` has the name of each version, the accuracy on it and its digest; the identity
    has the digest of all.

    Raises:
        BenchError: as `bench.data.corrupted.versions`.
    """
    started, done, described = time.monotonic(), [], []
    with exact_arithmetic():
        for number, (name, images, sha256) in enumerate(versions):
            random, device = generator(EVALUATION_SEED, "evaluation"), images.labels.device
            capture = capture_on(device)
            done.append(correct_under(model, images, Clean(), threat, random, capture=capture).cpu().numpy())
            described.append({"version": name, "accuracy": float(done[-1].mean()), "sha256": sha256})
            labels = images.labels
            progress(number + 1, len(settings.versions))
    correct = np.stack(done, axis=1).reshape(-1)
    detail = {"versions": described, "per_class": per_class(correct, labels.repeat_interleave(len(done)), labels)}
    digests = fingerprint([version["sha256"] for version in described])
    identity = corruptions_identity(settings) | {"images_sha256": digests}
    return Outcome(identity, settings.title, weights_sha256, correct, time.monotonic() - started, detail)
