"""Side by side: contenders take turns, and each is compared with the reference of the same run."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.errors import BenchError
from bench.models.architecture import size_of
from bench.speed import autoattack, training
from bench.speed.process import Arena, Contender, Work, peak

TURN_SECONDS = 0.5  # that the fastest contender's turn takes at least, so that starting and stopping do not count
MOST_STEPS = 1000

SAME = 1e-5
"""Distance between what the fast and the plain loop have, as a share of it, that rounding explains."""

CHECKED_STEPS = 2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One contender: its seconds an image, one for each repetition; `ratio` is the reference's median over its own.

    `lowest` and `highest`: the least and the greatest ratio of one repetition. `tflops` counts the work that has to be
    done, whatever else the contender does. `share_of_peak`: of the fastest product of matrices in this precision.
    """

    name: str
    precision: str
    seconds_per_image: tuple[float, ...]
    images_per_second: float
    ratio: float
    lowest: float
    highest: float
    peak_memory_bytes: int
    tflops: float | None = None
    share_of_peak: float | None = None


def measure_peak(arena: Arena, repetitions: int) -> dict[str, float]:
    """Return the most FLOP/s of matrix products seen in fp32 and bf16."""
    with Contender(peak, arena) as machine:
        found = {}
        for precision in ("fp32", "bf16"):
            turns = [machine.work(precision) for _ in range(repetitions + 1)]
            found[precision] = max(work / seconds for seconds, work in turns[1:])
    return found


def measure_training(arena: Arena, repetitions: int, peaks: Mapping[str, float], tell: Tell) -> dict[str, Any]:
    """Return the speed of training as JSON data: `ratio`, the contenders, and how far fast and plain weights differ.

    Raises:
        BenchError: the reference has no such attack, or a contender failed.
    """
    precision = arena.cell.protocol.training.precision
    builds: Builds = {"reference": ("fp32", training.public), "bench": (precision, training.ours)}
    if importlib.util.find_spec("torchattacks"):
        builds["torchattacks"] = ("fp32", training.public_with_torchattacks)
    found = _in_turns(arena, builds, repetitions, peaks, tell)
    tell("comparing the weights")
    with Contender(training.difference, arena) as pair:
        _, (weights, gradients) = pair.work(CHECKED_STEPS)
    found["same"] = {
        "weights_in_double_precision": weights,
        "steps": CHECKED_STEPS,
        "gradients_in_fp32": gradients,
        "limit": SAME,
        "same": max(weights, gradients) <= SAME,
    }
    return found


def measure_changes(arena: Arena, repetitions: int, peaks: Mapping[str, float], tell: Tell) -> dict[str, Any]:
    """Return, as JSON data, the speed of the reference loop with one change after the other, and of the harness.

    Raises:
        BenchError: as `measure_training`.
    """
    precision = arena.cell.protocol.training.precision
    wanted = [change for change in training.CHANGES if (change, precision) != ("bf16", "fp32")]
    builds: Builds = {"reference": ("fp32", training.public)}
    for count, change in enumerate(wanted, start=1):
        builds[f"+ {change}"] = (
            "bf16" if change == "bf16" else "fp32",
            partial(training.changed, changes=wanted[:count]),
        )
    builds["bench"] = (precision, training.ours)
    return _in_turns(arena, builds, repetitions, peaks, tell)


Builds = dict[str, tuple[str, Callable[[Arena], Work]]]
"""Precision, and what builds it, for each contender by name; the first is the reference."""


def _in_turns(arena: Arena, builds: Builds, repetitions: int, peaks: Mapping[str, float], tell: Tell) -> dict[str, Any]:
    """Let contenders in training take turns."""
    protocol = arena.cell.protocol
    if protocol.threat.norm != "linf" or protocol.training.attack.name != "pgd":
        raise BenchError("the reference loop has PGD under Linf alone; name a suite that trains with it")
    batch = protocol.training.batch_size
    with ExitStack() as stack:
        tell("warming up")
        entered = {name: stack.enter_context(Contender(build, arena)) for name, (_, build) in builds.items()}
        for contender in entered.values():
            contender.work(1)
        fastest = min(contender.work(1)[0] for contender in entered.values())
        steps = min(max(1, round(TURN_SECONDS / fastest)), MOST_STEPS)
        times: dict[str, list[float]] = {name: [] for name in entered}
        for number in range(repetitions):
            tell(f"training, {number + 1} of {repetitions}")
            for name, contender in entered.items():
                times[name].append(contender.work(steps)[0] / (steps * batch))
        memory = {name: contender.peak_memory() for name, contender in entered.items()}
    forward = size_of(registry.MODELS.get(protocol.model), (arena.dataset.classes, *arena.dataset.shape))[1]
    work = forward * (2 * protocol.training.attack.steps + 3)
    found = [_measured(name, of, times, memory[name], work, peaks) for name, (of, _) in builds.items()]
    return {
        "ratio": next(one.ratio for one in found if one.name == "bench"),
        "repetitions": repetitions,
        "batch_size": batch,
        "steps": steps,
        "contenders": [one.__dict__ for one in found],
    }


def measure_autoattack(arena: Arena, repetitions: int, tell: Tell) -> dict[str, Any]:
    """Return the speed of AutoAttack as JSON data: `ratio`, the contenders, and how many verdicts differ.

    The images are dealt into as many batches as there are repetitions; contenders take turns, batch by batch.

    Raises:
        BenchError: a contender failed, or the package's attacks are not defined for the number of classes.
    """
    bf16 = arena.cell.protocol.training.precision == "bf16"
    builds: Builds = {"reference": ("fp32", autoattack.official), "bench": ("fp32", autoattack.cascade)}
    if bf16:
        builds = {
            "reference": builds["reference"],
            "bench in fp32": builds["bench"],
            "bench": ("bf16, confirmed in fp32", autoattack.confirmed),
        }
    with ExitStack() as stack:
        tell("choosing images and radius")
        with Contender(autoattack.prepare, arena) as chooser:
            _, (what, eps, images, labels) = chooser.work(None)
        entered = {name: stack.enter_context(Contender(build, arena)) for name, (_, build) in builds.items()}
        parts = list(zip(_dealt(images, repetitions), _dealt(labels, repetitions), strict=True))
        times: dict[str, list[float]] = {name: [] for name in entered}
        stands: dict[str, list[bool]] = {name: [] for name in entered}
        for number, (some, theirs) in enumerate(parts):
            for name, contender in entered.items():
                tell(f"AutoAttack, {name}, {number + 1} of {len(parts)}")
                seconds, verdicts = contender.work((eps, some, theirs))
                times[name].append(seconds / len(some))
                stands[name] += verdicts
        memory = {name: contender.peak_memory() for name, contender in entered.items()}
    found = [_measured(name, of, times, memory[name], None, {}) for name, (of, _) in builds.items()]
    differing = {
        name: sum(a != b for a, b in zip(stands["reference"], verdicts, strict=True))
        for name, verdicts in stands.items()
    }
    return {
        "ratio": found[-1].ratio,
        "images": len(labels),
        "what": what,
        "eps": eps,
        "batches": len(parts),
        "standing": sum(stands["reference"]),
        "differing": differing,
        "contenders": [one.__dict__ for one in found],
    }


def _dealt(values: Tensor, parts: int) -> tuple[Tensor, ...]:
    return torch.chunk(values, min(parts, len(values)))


def _measured(
    name: str,
    precision: str,
    times: Mapping[str, list[float]],
    memory: int,
    work: int | None,
    peaks: Mapping[str, float],
) -> Measured:
    """Return what was measured of a contender; `work` is what has to be done for an image, in FLOP."""
    own, median = times[name], statistics.median(times[name])
    ratios = [theirs / ours for theirs, ours in zip(times["reference"], own, strict=True)]
    return Measured(
        name=name,
        precision=precision,
        seconds_per_image=tuple(own),
        images_per_second=1 / median,
        ratio=statistics.median(times["reference"]) / median,
        lowest=min(ratios),
        highest=max(ratios),
        peak_memory_bytes=memory,
        tflops=work / median / 1e12 if work else None,
        share_of_peak=work / median / peaks[precision] if work else None,
    )
