"""The parts of `bench speed --what gpu` that train: what a captured step must not change."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from bench.config.cell import Cell
from bench.config.suite import params_of
from bench.data.batches import Batch
from bench.data.dataset import ImageSet, Splits
from bench.speed.process import Setup
from bench.storage.run_folder import RunFolder
from bench.testing.conformance import curve
from bench.testing.recorded_graph import CountedCapture, record
from bench.training.method import Method
from bench.training.step import WARM_UP, EpochMetrics, train_step
from bench.training.trainer import Trainer
from bench.utils.cuda_graphs import Capture, capture_on, host_waits
from bench.utils.rng import generator

EPOCHS = 4  # both rate drops, at 2 and at 3, lie inside
BATCHES = WARM_UP + 2  # of an epoch: two of its steps are replays
ATTACK_STEPS = 3  # at most, of the attack of training, where its speed does not count
TRACKED = 50  # validation and test images
COMPILED_APART = 0.05
"""Relative distance between the mean losses of an epoch, compiled and eager, that rounding explains."""

GROWTH = 2**26  # bytes that later epochs may reserve


@dataclass(frozen=True)
class GPUSetup(Setup):
    """`methods`: a cell of every method. `output`: the folder of the profile and the logs."""

    methods: tuple[Cell, ...]
    output: Path

    @property
    def where(self) -> torch.device:
        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.where.type == "cuda"


@dataclass(frozen=True)
class Line:
    """A claim that `holds` or not, or figures alone (None)."""

    what: str
    holds: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)


Part = Callable[[GPUSetup], Iterator[Line]]


def capture_or_record(device: torch.device) -> Capture:
    """Return the capture for a GPU, and on a CPU what stands for it."""
    return capture_on(device) or record


# --- trainings -------------------------------------------------------------------------------------------------------


class _Unsaved(Trainer):
    """A trainer that writes no checkpoints, and notes the reserved memory of the GPU after each epoch."""

    def _save(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        reserved = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0
        self.reserved = [*getattr(self, "reserved", []), reserved]

    def _finish(self) -> None:
        pass

    @contextmanager
    def _writing_resume_file(self, epoch: int) -> Iterator[None]:
        yield


def random_images(setup: GPUSetup, count: int, purpose: str) -> ImageSet:
    """Return random images and labels of the suite's dataset, on the device."""
    random, dataset = generator(0, f"speed/{purpose}"), setup.dataset
    pixels = torch.randint(0, 256, (count, *dataset.shape), generator=random, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, dataset.classes, (count,), generator=random)).to(setup.where)


def _trainer(setup: GPUSetup, cell: Cell, folder: str | Path, kind: type[Trainer] = _Unsaved) -> Trainer:
    """Return the trainer of a few epochs of `cell` on random images, without a capture; it resumes what is there."""
    torch.backends.cudnn.deterministic = True
    training = cell.protocol.training
    attack = training.attack.model_copy(update={"steps": min(training.attack.steps, ATTACK_STEPS)})
    few = training.model_copy(update={"epochs": EPOCHS, "attack": attack})
    short = cell.model_copy(update={"protocol": cell.protocol.model_copy(update={"training": few})})
    tracked = random_images(setup, TRACKED, "test")
    images = BATCHES * few.batch_size + params_of(cell).held_out
    splits = Splits(random_images(setup, images, "train"), tracked, tracked)
    run = RunFolder.of(short, Path(folder))
    run.begin(short, {})
    trainer = kind(short, setup.dataset, splits, run, setup.where)
    trainer.capture = None
    return trainer


def _train(
    setup: GPUSetup,
    cell: Cell,
    capture: Capture | None = None,
    change: Callable[[Method[Any]], None] | None = None,
    *,
    compile: bool = False,
) -> _Unsaved:
    """Return the trainer of `cell` after its training, with `change` made to the method before."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setup, cell, folder)
        assert isinstance(trainer, _Unsaved)
        trainer.capture, trainer.compile = capture, compile
        if change:
            change(trainer.method)
        trainer.run()
    return trainer


def _results(trainer: Trainer) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Return the tensors of the trained and the evaluated network, and the curve without its times."""
    networks = (trainer.method.model, trainer.method.evaluated_model())
    return [tensor for network in networks for tensor in network.state_dict().values()], curve(trainer.history)


def _apart(one: Trainer, other: Trainer) -> float:
    """Return the largest difference of two trainings; 0 if weights and curves are equal bit for bit."""
    (ours, our_curve), (theirs, their_curve) = _results(one), _results(other)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if not torch.equal(a, b)]
    largest = max((float((a.double() - b.double()).abs().nan_to_num(torch.inf).max()) for a, b in pairs), default=0.0)
    return largest if pairs or our_curve == their_curve else float("inf")


def _named(setup: GPUSetup, *names: str) -> list[Cell]:
    return [cell for cell in setup.methods if cell.method.name in names]


# --- the parts -------------------------------------------------------------------------------------------------------


def _every_method(setup: GPUSetup, claim: str, check: Callable[[Cell, str], Line]) -> Iterator[Line]:
    """Yield `check(cell, name of its claim)` of each method; an error fails its claim, and the others are checked."""
    for cell in setup.methods:
        name = f"{cell.method.name}: {claim}"
        try:
            yield check(cell, name)
        except Exception as error:
            yield Line(name, False, {"error": f"{type(error).__name__}: {error}"})


def captured(setup: GPUSetup) -> Iterator[Line]:
    """Captured steps give the bits of eager ones, for every method."""

    def check(cell: Cell, name: str) -> Line:
        count = CountedCapture(capture_or_record(setup.where))
        graph, eager = _train(setup, cell, count), _train(setup, cell)
        apart = _apart(graph, eager)
        ran = bool(count.replays) or not graph.method.captured
        repeats = not apart or not _apart(eager, _train(setup, cell))
        figures = {"apart": apart, "replays": count.replays, "refused": "; ".join(count.refusals[:1])}
        if not repeats:  # then nothing is known
            return Line(f"{name} (eager steps do not repeat)", None, figures)
        return Line(name, not apart and ran, figures)

    yield from _every_method(setup, "captured steps equal eager ones", check)


def refused(setup: GPUSetup) -> Iterator[Line]:
    """A step that waits, and a capture that fails, train on as eager steps do; the next training is captured."""

    def waiting(first: int) -> Callable[[Method[Any]], None]:
        """Return a change after which the loss waits for the device, from call `first` of each epoch on."""

        def change(method: Method[Any]) -> None:
            loss, begin, calls = method.loss, method.begin_epoch, [0]

            def begin_epoch(_self: Method[Any], epoch: int) -> None:
                calls[0] = 0
                begin(epoch)

            def waiting_loss(_self: Method[Any], batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
                calls[0] += 1
                if calls[0] >= first:
                    float(adversarial.sum())
                return loss(batch, adversarial)

            for name, function in (("loss", waiting_loss), ("begin_epoch", begin_epoch)):
                setattr(method, name, MethodType(function, method))

        return change

    eager = _train(setup, setup.cell)
    for what, change in (
        ("a step that waits trains on", waiting(1)),
        ("a failed capture trains on", waiting(WARM_UP + 1)),
        ("the next training is captured", None),
    ):
        count = CountedCapture(capture_or_record(setup.where))
        apart = _apart(_train(setup, setup.cell, count, change), eager)
        right = not apart and bool(count.replays) == (change is None)
        figures = {"apart": apart, "replays": count.replays, "refused": "; ".join(count.refusals[:1])}
        yield Line(what, right, figures)


def captured_and_compiled(setup: GPUSetup) -> Iterator[Line]:
    """Compiled steps are captured; their losses are those of eager steps up to rounding."""
    count = CountedCapture(capture_or_record(setup.where))
    losses = [
        _results(t)[1][0]["train"]["loss"]
        for t in (_train(setup, setup.cell, count, compile=True), _train(setup, setup.cell))
    ]
    apart = abs(losses[0] - losses[1]) / losses[1]
    right = apart < COMPILED_APART and bool(count.replays) and not count.refusals
    figures = {"loss apart": apart, "replays": count.replays, "refused": "; ".join(count.refusals[:1])}
    yield Line("compiled steps are captured, with the losses of eager ones", right, figures)


def waits(setup: GPUSetup) -> Iterator[Line]:
    """Count the operations of eager steps that wait for the device."""

    def check(cell: Cell, name: str) -> Line:
        with tempfile.TemporaryDirectory() as folder:
            trainer, found, waiting = _trainer(setup, cell, folder), [], 0
            for epoch in range(EPOCHS):
                trainer.begin_epoch(epoch)
                batches, metrics = iter(trainer.batches), EpochMetrics(setup.where)
                train_step(trainer.method, next(batches), trainer.optimizer, metrics)
                with host_waits(setup.where) as messages:
                    for batch in batches:
                        train_step(trainer.method, batch, trainer.optimizer, metrics)
                trainer.method.end_epoch(epoch)
                found += messages
                waiting += len(messages) if trainer.method.captured and trainer.method.captured_transform else 0
        known = not waiting if setup.on_gpu else None
        return Line(name, known, {"waits": len(found), "first": found[0] if found else ""})

    yield from _every_method(setup, "no step waits", check)


def recapture(setup: GPUSetup) -> Iterator[Line]:
    """Measure what the capture of each epoch costs, and whether it keeps memory."""
    count = CountedCapture(capture_or_record(setup.where))
    reserved = _train(setup, setup.cell, count).reserved
    yield Line(
        "memory does not grow from epoch to epoch",
        bool(count.seconds) and reserved[-1] - reserved[1] <= GROWTH,
        {"s a capture": statistics.median(count.seconds or [0.0]), "reserved GiB": [size / 2**30 for size in reserved]},
    )


def resume(setup: GPUSetup) -> Iterator[Line]:
    """Training that stops after an epoch resumes with the bits of one that does not."""
    for cell in _named(setup, "pgd_at", "fomo"):
        ended = []
        for stops in ((None,), (1, None)):
            with tempfile.TemporaryDirectory() as folder:
                for stop in stops:
                    trainer = _trainer(setup, cell, folder, Trainer)
                    trainer.capture = capture_or_record(setup.where)
                    trainer.run(stop)
                ended.append(
                    ({name: e.sha256 for name, e in trainer.checkpoints.entries.items()}, _results(trainer)[1])
                )
        yield Line(f"{cell.method.name}: resumed training equals uninterrupted training", ended[0] == ended[1])
