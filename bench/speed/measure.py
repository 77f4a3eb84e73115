"""Interleaved measurements of candidates, each compared with the reference of the same run."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator, Mapping
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
from bench.speed.process import Candidate, Setup, Work, peak
from bench.training.step import WARM_UP

MIN_SECONDS = 0.5  # of one measurement of the fastest candidate, so that starting and stopping are negligible
MOST_STEPS = 1000

SAME = 1e-5
"""Relative distance between the fast and the plain loop that rounding explains."""

CHECKED_STEPS = 2

Report = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One candidate: seconds per image of each repetition; `ratio` is the reference's median divided by its own.

    `lowest` and `highest`: the extreme ratios of single repetitions. `tflops` counts the necessary work only.
    `share_of_peak`: relative to the fastest matrix product in this precision.
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


def measure_peak(setup: Setup, repetitions: int) -> dict[str, float]:
    """Return the peak FLOP/s of matrix products in fp32 and bf16."""
    with Candidate(peak, setup) as machine:
        peaks = {}
        for precision in ("fp32", "bf16"):
            timings = [machine.work(precision) for _ in range(repetitions + 1)]
            peaks[precision] = max(work / seconds for seconds, work in timings[1:])
    return peaks


def measure_training(
    setup: Setup, repetitions: int, peaks: Mapping[str, float], report: Report
) -> Iterator[dict[str, Any]]:
    """Yield the speed of training as JSON data after each repetition: `ratio` and the candidates.

    The last one also states how far fast and plain weights differ.

    Raises:
        BenchError: the reference does not support the attack, or a candidate failed.
    """
    precision = setup.cell.protocol.training.precision
    builds: Builds = {"reference": ("fp32", training.public), "bench": (precision, training.harness)}
    if importlib.util.find_spec("torchattacks"):
        builds["torchattacks"] = ("fp32", training.public_with_torchattacks)
    for result in interleaved(setup, builds, repetitions, peaks, report):
        yield result
    report("comparing the weights")
    with Candidate(training.difference, setup) as pair:
        _, (weights, gradients) = pair.work(CHECKED_STEPS)
    same = {
        "weights_in_double_precision": weights,
        "steps": CHECKED_STEPS,
        "gradients_in_fp32": gradients,
        "limit": SAME,
        "same": max(weights, gradients) <= SAME,
    }
    yield {**result, "same": same}


def measure_changes(
    setup: Setup, repetitions: int, peaks: Mapping[str, float], report: Report
) -> Iterator[dict[str, Any]]:
    """Yield, as JSON data, the speed of the reference loop with one change after the other, and of the harness.

    Once after each repetition.

    Raises:
        BenchError: as `measure_training`.
    """
    precision = setup.cell.protocol.training.precision
    wanted = [change for change in training.CHANGES if (change, precision) != ("bf16", "fp32")]
    builds: Builds = {"reference": ("fp32", training.public)}
    for count, change in enumerate(wanted, start=1):
        builds[f"+ {change}"] = (
            "bf16" if change == "bf16" else "fp32",
            partial(training.changed, changes=wanted[:count]),
        )
    builds["bench"] = (precision, training.harness)
    yield from interleaved(setup, builds, repetitions, peaks, report)


Builds = dict[str, tuple[str, Callable[[Setup], Work]]]
"""Precision, and what builds it, for each candidate by name; the first is the reference."""


def interleaved(
    setup: Setup, builds: Builds, repetitions: int, peaks: Mapping[str, float], report: Report
) -> Iterator[dict[str, Any]]:
    """Measure the training of all candidates, interleaved; yield the figures after each repetition.

    Raises:
        BenchError: the reference does not support the attack, or a candidate failed.
    """
    protocol = setup.cell.protocol
    if protocol.threat.norm != "linf" or protocol.training.attack.name != "pgd":
        raise BenchError("the reference loop supports PGD under Linf only; name a suite that trains with it")
    if protocol.training.optimizer.name != "sgd":
        raise BenchError("the reference loop supports SGD only; name a suite that trains with it")
    batch = protocol.training.batch_size
    forward = size_of(registry.MODELS.get(protocol.model), (setup.dataset.classes, *setup.dataset.shape))[1]
    work = forward * (2 * protocol.training.attack.steps + 3)
    with ExitStack() as stack:
        report("warming up")
        entered = {name: stack.enter_context(Candidate(build, setup)) for name, (_, build) in builds.items()}
        for candidate in entered.values():
            candidate.work(1 if setup.device == "cpu" else WARM_UP + 2)  # until steps are replayed
        fastest = min(candidate.work(1)[0] for candidate in entered.values())
        steps = min(max(1, round(MIN_SECONDS / fastest)), MOST_STEPS)
        times: dict[str, list[float]] = {name: [] for name in entered}
        for number in range(repetitions):
            report(f"training, {number + 1} of {repetitions}")
            for name, candidate in entered.items():
                times[name].append(candidate.work(steps)[0] / (steps * batch))
            memory = {name: candidate.peak_memory() for name, candidate in entered.items()}
            results = [_measured(name, of, times, memory[name], work, peaks) for name, (of, _) in builds.items()]
            yield {
                "ratio": next(candidate.ratio for candidate in results if candidate.name == "bench"),
                "repetitions": number + 1,
                "batch_size": batch,
                "steps": steps,
                "contenders": [candidate.__dict__ for candidate in results],
            }


def measure_autoattack(setup: Setup, repetitions: int, report: Report) -> Iterator[dict[str, Any]]:
    """Yield the speed of AutoAttack as JSON data after each batch: `ratio`, candidates, numbers of images that differ.

    The images are divided into as many batches as there are repetitions; the candidates alternate after every batch.

    Raises:
        BenchError: a candidate failed, or the package's attacks are not defined for the number of classes.
    """
    bf16 = setup.cell.protocol.training.precision == "bf16"
    builds: Builds = {"reference": ("fp32", autoattack.official)}
    if setup.device != "cpu":
        builds["reference with TF32"] = ("tf32", partial(autoattack.official, exact=False))
    builds["bench in fp32" if bf16 else "bench"] = ("fp32", autoattack.cascade)
    if bf16:
        builds["bench"] = ("bf16, confirmed in fp32", autoattack.confirmed)
    with ExitStack() as stack:
        report("choosing images and radius")
        with Candidate(autoattack.prepare, setup) as chooser:
            _, (what, eps, images, labels) = chooser.work(None)
        entered = {name: stack.enter_context(Candidate(build, setup)) for name, (_, build) in builds.items()}
        batches = list(zip(_chunks(images, repetitions), _chunks(labels, repetitions), strict=True))
        times: dict[str, list[float]] = {name: [] for name in entered}
        robust: dict[str, list[bool]] = {name: [] for name in entered}
        for number, (batch, batch_labels) in enumerate(batches):
            for name, candidate in entered.items():
                report(f"AutoAttack, {name}, {number + 1} of {len(batches)}")
                seconds, correct = candidate.work((eps, batch, batch_labels))
                times[name].append(seconds / len(batch))
                robust[name] += correct
            memory = {name: candidate.peak_memory() for name, candidate in entered.items()}
            results = [_measured(name, of, times, memory[name], None, {}) for name, (of, _) in builds.items()]
            yield {
                "ratio": results[-1].ratio,
                "images": len(robust["reference"]),
                "what": what,
                "eps": eps,
                "batches": number + 1,
                "standing": sum(robust["reference"]),
                "differing": {
                    name: sum(a != b for a, b in zip(robust["reference"], correct, strict=True))
                    for name, correct in robust.items()
                },
                "contenders": [candidate.__dict__ for candidate in results],
            }


def _chunks(values: Tensor, parts: int) -> tuple[Tensor, ...]:
    return torch.chunk(values, min(parts, len(values)))


def _measured(
    name: str,
    precision: str,
    times: Mapping[str, list[float]],
    memory: int,
    work: int | None,
    peaks: Mapping[str, float],
) -> Measured:
    """Return the figures of a candidate; `work` is the necessary work per image, in FLOP."""
    seconds, median = times[name], statistics.median(times[name])
    ratios = [reference / own for reference, own in zip(times["reference"], seconds, strict=True)]
    return Measured(
        name=name,
        precision=precision,
        seconds_per_image=tuple(seconds),
        images_per_second=1 / median,
        ratio=statistics.median(times["reference"]) / median,
        lowest=min(ratios),
        highest=max(ratios),
        peak_memory_bytes=memory,
        tflops=work / median / 1e12 if work else None,
        share_of_peak=work / median / peaks[precision] if work and precision in peaks else None,
    )
