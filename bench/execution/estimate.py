"""Estimates of a cell's compute, and of the hours on this machine, before anything runs."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench import registry
from bench.attacks.autoattack import PASSES
from bench.attacks.evaluate import evaluated_images, forward_passes
from bench.attacks.pgd import cross_entropy, frozen_parameters, pgd
from bench.config.attacks import AutoAttack, FinalAttack
from bench.config.protocol import Protocol
from bench.data.dataset import dataset_of
from bench.errors import NotFound
from bench.models.architecture import build_network, size_of
from bench.training.lr_schedule import protocol_schedule, tracked_epochs
from bench.utils.device import emulates_bf16, exact_arithmetic
from bench.utils.environment import cpu_name
from bench.utils.formatting import duration

Precision = Literal["fp32", "bf16", "exact fp32"]
"""exact fp32: without TF32, as the final attacks run."""

ROBUST = (0.82, 0.53, 0.44)
"""Share of images that are robust when the first, the second and every later part of AutoAttack begins.

Medians of the papers' figures, results/published.csv: clean, PGD (both of the best checkpoint) and AutoAttack.
"""


@dataclass(frozen=True)
class Work:
    """The compute of one cell in PFLOP: `training` and `tracking` (all epochs), and `final` (all checkpoints).

    Training and tracking use the protocol's precision, the final attacks fp32.
    """

    training: float
    tracking: float
    final: float

    @property
    def total(self) -> float:
        return self.training + self.tracking + self.final


def work_of(protocol: Protocol, root: Path | None) -> Work | None:
    """Estimate the compute of one cell; None if images must be counted and are missing, or torch cannot count it.

    In forward passes of plain PGD-AT: an attack step is a forward pass and an input gradient (2), an update a forward
    pass and both gradients (3), a clean pass after it one more (1). Methods that stop early, augment or use further
    networks differ. A part of AutoAttack costs its full work on the images that are robust when it begins, `ROBUST`.
    """
    try:
        dataset = dataset_of(protocol.dataset).counted(root)
        forward = size_of(registry.MODELS.get(protocol.model), (dataset.classes, *dataset.shape))[1] / 1e15
    except (NotFound, NotImplementedError):  # a network that cannot be counted may still be trained
        return None
    held_out, test_images = protocol.dataset.held_out, dataset.test_images
    assert dataset.train_images is not None
    assert test_images is not None
    training, track = protocol.training, protocol.evaluation.track
    attack_steps = 0 if training.attack.name == "none" else training.attack.steps
    tracked = held_out + (test_images if track.test or not held_out else 0)
    final = sum(evaluated_images(attack, test_images) * _passes(attack) for attack in protocol.evaluation.final)
    checkpoints = 3 if track.test and held_out else 2
    return Work(
        training=forward
        * training.epochs
        * (dataset.train_images - held_out)
        * (2 * attack_steps + 3 + (training.clean_pass is not None)),
        tracking=forward
        * len(tracked_epochs(protocol_schedule(training), track))
        * tracked
        * (2 * track.attack.steps + 2),
        final=forward * checkpoints * final,
    )


def _passes(attack: FinalAttack) -> float:
    """Return the expected forward passes of a final attack per image."""
    if isinstance(attack, AutoAttack):
        return sum(PASSES[part] * ROBUST[min(place, 2)] for place, part in enumerate(attack.cascade))
    return forward_passes(attack)


def measured_speed(protocol: Protocol, precision: Precision, device: torch.device, seconds: float = 2.0) -> float:
    """Return the PFLOP/s of attack steps, most of the compute, on this protocol's network: a median.

    Of random images, in the training's batch size or a smaller one on a slow machine.
    """
    dataset, threat = dataset_of(protocol.dataset), protocol.threat
    architecture = registry.MODELS.get(protocol.model)
    network = build_network(architecture, dataset, 0).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    forward = size_of(architecture, (dataset.classes, *dataset.shape))[1] / 1e15

    def step(count: int) -> float:
        images = torch.rand(count, *dataset.shape, device=device).contiguous(memory_format=torch.channels_last)
        objective = cross_entropy(torch.zeros(count, dtype=torch.int64, device=device))
        started = time.perf_counter()
        arithmetic = exact_arithmetic() if precision == "exact fp32" else nullcontext()
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with arithmetic, autocast, frozen_parameters(network):
            pgd(network, images, objective, threat=threat, steps=1, step_size=threat.eps, start=None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    count, largest = 4, protocol.training.batch_size
    step(count)  # the first is slow: kernels are selected, memory is allocated
    while count < largest and step(count) < seconds / 8:
        count = min(2 * count, largest)
    began, times = time.perf_counter(), [step(count)]
    while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 50):
        times.append(step(count))
    return 2 * forward * count / statistics.median(times)


class Machine:
    """A device called `name`, which times each network and precision once, at the first use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
        self._speeds: dict[tuple[str, Precision], float] = {}

    def hours(self, protocol: Protocol, work: Work, precision: Precision | None = None) -> float:
        """Return the hours of a cell that has the device for itself; `precision` replaces the protocol's."""
        trained = (work.training + work.tracking) / self._speed(protocol, precision or protocol.training.precision)
        return (trained + work.final / self._speed(protocol, "exact fp32")) / 3600

    def _speed(self, protocol: Protocol, precision: Precision) -> float:
        if precision == "exact fp32" and self.device.type == "cpu":
            precision = "fp32"  # the same there
        key = (protocol.fingerprint, precision)
        if key not in self._speeds:
            self._speeds[key] = measured_speed(protocol, precision, self.device)
        return self._speeds[key]

    def emulation(self, protocol: Protocol, work: Work) -> str | None:
        """Return a warning if this device emulates the precision of a cell's training, with the hours of both."""
        if protocol.training.precision != "bf16" or not emulates_bf16(self.device):
            return None
        bf16, fp32 = (duration(3600 * self.hours(protocol, work, precision)) for precision in ("bf16", "fp32"))
        return (
            f"{self.name} has no bfloat16 and emulates it: a cell takes about {bf16} here, and about {fp32} with "
            "'precision: fp32' in the suite"
        )
