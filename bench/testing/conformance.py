"""The checks, each a function of a method's name and an empty folder; they raise `NotConforming`, one sentence."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from bench.attacks.evaluate import correct_under
from bench.attacks.pgd import frozen_parameters
from bench.config.attacks import Clean
from bench.config.cell import Cell
from bench.config.suite import Suite, params_of, resolve_method, teachers_of
from bench.data.batches import Batch, to_float
from bench.data.dataset import Splits, dataset_of
from bench.registry import METHODS
from bench.storage.checkpoints import Entry
from bench.storage.run_folder import RunFolder
from bench.testing.recorded_graph import CountedCapture
from bench.testing.simulated_device import simulated_device
from bench.training.build import build_evaluated
from bench.training.method import Method
from bench.training.step import EpochMetrics, train_step
from bench.training.trainer import Trainer
from bench.utils.rng import generator

EPOCHS = 6  # both rate drops, at 3 and at 4 or 5, lie inside
TRAINED = 160  # images that the small trainings see: five batches an epoch are enough to enter every phase
MEASURED = 50  # validation and test images after each of their epochs
BATCHES = 2  # an epoch, where a check looks at batches and not at whole trainings
CHANCE = 0.1
CPU = torch.device("cpu")
TOLERANCE = 1e-6  # of projections, in fp32
SOFT_TOLERANCE = 1e-3  # of a loss whose attack takes steps along signs

Check = Callable[[str, Path], None]


class NotConforming(AssertionError):
    """A method fails a check of the conformance suite; the message names the method and the reason."""


def conform(method: str) -> None:
    """Run every check on a registered method. Raises NotConforming at the first that fails."""
    for check in CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            check(method, Path(folder))


# --- what the checks run on ------------------------------------------------------------------------------------------


def small_cell(method: str, norm: Literal["linf", "l2"] = "linf") -> Cell:
    """Return a cell of `method` with canonical parameters: a small network on digits, PGD-3, two rate drops."""
    eps, step_size = {"linf": (0.1, 0.05), "l2": (0.5, 0.25)}[norm]
    suite = Suite.model_validate(
        {
            "name": "conformance",
            "dataset": {"name": "digits", "validation": 200},
            "model": "small_cnn",
            "threat": {"norm": norm, "eps": eps},
            "training": {
                "epochs": EPOCHS,
                "batch_size": 32,
                "schedule": {"name": "piecewise", "milestones": [0.5, 0.75]},
                "attack": {"name": "pgd", "steps": 3, "step_size": step_size},
                "augmentation": [{"name": "crop", "padding": 1, "mode": "zero"}],
            },
            "evaluation": {
                "track": {"attack": {"name": "pgd", "steps": 1, "step_size": step_size}},
                "final": ["clean"],
            },
            "methods": [method],
        }
    )
    return Cell(protocol=suite.protocol, method=resolve_method(suite, suite.methods[0]), seed=0, suite=suite.name)


def trainer_of(cell: Cell, folder: Path, *, whole: bool = False) -> Trainer:
    """Return a trainer of `cell` whose run folder lies in `folder`; one that exists is continued.

    It trains on the first images of the dataset alone, unless `whole`.
    """
    return _trainer(Trainer, cell, folder, whole)


class KeepingTrainer(Trainer):
    """Keeps the weights of the evaluated model after every epoch."""

    kept: list[dict[str, Tensor]]

    def _save(self, record: dict[str, Any]) -> None:
        super()._save(record)
        self.kept.append({name: value.clone() for name, value in self.method.evaluated_model().state_dict().items()})


def keeping_trainer_of(cell: Cell, folder: Path, device: torch.device = CPU) -> KeepingTrainer:
    """Return a trainer as `trainer_of` does, which keeps weights."""
    trainer = _trainer(KeepingTrainer, cell, folder, device=device)
    trainer.kept = []
    return trainer


class Undisturbed(NamedTuple):
    """What an eager training that nothing stops gives: weights after each epoch, curve and checkpoints."""

    kept: list[dict[str, Tensor]]
    history: list[dict[str, Any]]
    entries: dict[str, Entry]


@cache  # two checks compare with it
def undisturbed(method: str, _registered: type[Method[Any]]) -> Undisturbed:
    """Train a method; `_registered`: what its name stands for, which tests change."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = keeping_trainer_of(small_cell(method), Path(folder))
        trainer.run()
    return Undisturbed(trainer.kept, trainer.history, trainer.checkpoints.entries)


TrainerT = TypeVar("TrainerT", bound=Trainer)


def _trainer(
    kind: type[TrainerT], cell: Cell, folder: Path, whole: bool = False, device: torch.device = CPU
) -> TrainerT:
    for teacher, _ in teachers_of(cell).values():
        _trainer(Trainer, teacher, folder, device=device).run()
    run = RunFolder.of(cell, folder)
    run.begin(cell, {})
    dataset = dataset_of(cell.protocol.dataset)
    splits = dataset.splits(None)
    if not whole:
        count = min(TRAINED + params_of(cell).held_out, len(splits.train))
        some, few = torch.arange(count), torch.arange(MEASURED)
        splits = Splits(splits.train.take(some), splits.validation.take(few), splits.test.take(few))
    return kind(cell, dataset, splits.to(device), run, device)


def phases(trainer: Trainer, batches: int = BATCHES) -> Iterator[tuple[int, Method[Any], Batch]]:
    """Yield (epoch, method, batch) for the first `batches` of every epoch, so that a method's every phase is seen.

    After each the network has been trained on it, so that later phases meet weights that have learned something.
    """
    for epoch in range(trainer.lr_schedule.epochs):
        trainer.begin_epoch(epoch)
        for batch in islice(trainer.batches, batches):
            yield epoch, trainer.method, batch
            train_step(trainer.method, batch, trainer.optimizer, EpochMetrics(CPU))
        trainer.method.end_epoch(epoch)


def crafted(method: Method[Any], batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    """Return the transformed batch, a copy of its images, and the adversarial ones, made as the training step does."""
    with method.autocast(), frozen_parameters(method.model):
        with torch.no_grad():
            batch = method.transform(batch)
        before = batch.images.clone()
        return batch, before, method.perturb(batch)


# --- the checks ------------------------------------------------------------------------------------------------------


def perturbations_stay_inside(method: str, folder: Path) -> None:
    """Images stay in [0, 1] and adversarial ones close to those that were attacked, in every epoch and norm.

    Close: within eps, or the multiple of it that the method's parameters state (`training_radius`).
    """
    norms: tuple[Literal["linf", "l2"], ...] = ("linf", "l2")
    for norm in norms:
        trainer = trainer_of(small_cell(method, norm), folder / norm)
        eps = trainer.cell.protocol.threat.eps * trainer.method.params.training_radius
        for epoch, running, batch in phases(trainer):
            _, attacked, adversarial = crafted(running, batch)
            for name, images in (("transformed", attacked), ("adversarial", adversarial)):
                if images.shape != batch.images.shape or not ((images >= 0) & (images <= 1)).all():
                    raise NotConforming(f"{method}: {name} images are not in [0, 1] or change shape in epoch {epoch}")
            order = torch.inf if norm == "linf" else 2
            farthest = torch.linalg.vector_norm((adversarial - attacked).flatten(1), order, dim=1).max().item()
            if farthest > eps + TOLERANCE:
                raise NotConforming(
                    f"{method}: a perturbation of {norm} norm {farthest:.4f} exceeds eps {eps:g} in epoch {epoch}"
                )


def loss_is_finite(method: str, folder: Path) -> None:
    """The loss is one finite number, and the logits have a row for every image, in every epoch."""
    for epoch, running, batch in phases(trainer_of(small_cell(method), folder)):
        transformed, _, adversarial = crafted(running, batch)
        loss, logits = running.loss(transformed, adversarial)
        if loss.shape != ():
            raise NotConforming(f"{method}: the loss in epoch {epoch} has shape {list(loss.shape)}, not one number")
        if not torch.isfinite(loss):
            raise NotConforming(f"{method}: the loss in epoch {epoch} is {loss.item()}")
        if logits.shape != (len(batch), running.context.classes):
            raise NotConforming(f"{method}: the logits in epoch {epoch} have shape {list(logits.shape)}")


def crafting_leaves_no_trace(method: str, folder: Path) -> None:
    """Crafting leaves no gradient, no frozen or changed parameter, no module in another mode, and the clean images."""
    for epoch, running, batch in phases(trainer_of(small_cell(method), folder)):
        values = [parameter.detach().clone() for parameter in running.model.parameters()]
        transformed, before, _ = crafted(running, batch)
        for (name, parameter), value in zip(running.model.named_parameters(), values, strict=True):
            if parameter.grad is not None:
                raise NotConforming(f"{method}: crafting left a gradient in {name} in epoch {epoch}")
            if not parameter.requires_grad:
                raise NotConforming(f"{method}: {name} is frozen after crafting in epoch {epoch}")
            if not torch.equal(parameter, value):
                raise NotConforming(f"{method}: crafting changed {name} in epoch {epoch}")
        for name, module in running.model.named_modules():
            if not module.training:
                raise NotConforming(
                    f"{method}: {name or 'the network'} is in eval mode after crafting in epoch {epoch}"
                )
        if not torch.equal(transformed.images, before):
            raise NotConforming(f"{method}: crafting changed the clean images in epoch {epoch}")


def soft_labels_replace_labels(method: str, folder: Path) -> None:
    """Soft labels that are all one class act as that integer label, in every epoch.

    For methods that state `accepts_soft_labels`; the others are refused where labels are mixed or smoothed.
    """
    trainer = trainer_of(small_cell(method), folder)
    if not vars(type(trainer.method)).get("accepts_soft_labels"):
        return
    classes = trainer.method.context.classes
    for epoch, running, batch in phases(trainer, 1):
        state = copy.deepcopy((running.model.state_dict(), running.state_dict()))
        others = (batch.labels + 1) % classes
        losses = []
        for given in (
            replace(batch, labels=others),
            replace(batch, soft_labels=torch.nn.functional.one_hot(others, classes).float()),
        ):
            running.model.load_state_dict(state[0])
            running.load_state_dict(state[1])
            trainer.random.start_epoch(epoch)
            transformed, _, adversarial = crafted(running, given)
            losses.append(running.loss(transformed, adversarial)[0].item())
        if abs(losses[0] - losses[1]) > SOFT_TOLERANCE * abs(losses[0]):
            raise NotConforming(
                f"{method}: the loss in epoch {epoch} is {losses[0]:.4f} with labels and {losses[1]:.4f} with the same "
                "soft labels; read batch.targets, or leave out accepts_soft_labels"
            )


def every_parameter_gets_a_gradient(method: str, folder: Path) -> None:
    """The update gives every parameter a finite gradient, and not only zeros."""
    for epoch, running, batch in phases(trainer_of(small_cell(method), folder)):
        transformed, _, adversarial = crafted(running, batch)
        parameters = dict(running.model.named_parameters())
        values = [parameter.detach().clone() for parameter in parameters.values()]
        running.backward(transformed, adversarial)
        for name, parameter in parameters.items():
            if parameter.grad is None or not torch.isfinite(parameter.grad).all():
                raise NotConforming(f"{method}: {name} has no finite gradient after backward in epoch {epoch}")
        if not any(parameter.grad.abs().sum() > 0 for parameter in parameters.values() if parameter.grad is not None):
            raise NotConforming(f"{method}: every gradient is zero in epoch {epoch}")
        with torch.no_grad():  # as if this backward had not been: an attack on the weights has moved them
            for parameter, value in zip(parameters.values(), values, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def resumes_exactly(method: str, folder: Path) -> None:
    """A second training, which stops and resumes after every epoch, gives the bits and the curve of the first.

    Each epoch finds the global generators in another state.
    """
    cell, whole = small_cell(method), undisturbed(method, METHODS.get(method))
    count = len(whole.history)
    for k in range(count):
        torch.manual_seed(k)
        second = keeping_trainer_of(cell, folder / "second")
        second.run(k + 1 if k + 1 < count else None)
        resumed = (
            f"stopped after {k} of {count} epochs and resumed, it ends" if k else "two trainings with one seed end"
        )
        if not same(second.kept, whole.kept[k : k + 1]):
            raise NotConforming(f"{method}: {resumed} with different weights")
        if curve(second.history) != curve(whole.history[: k + 1]):
            raise NotConforming(f"{method}: {resumed} with different curves")
    if second.checkpoints.entries != whole.entries:
        raise NotConforming(f"{method}: stopped and resumed after every epoch, it keeps other checkpoints")


def captured_steps_equal_eager_steps(method: str, folder: Path) -> None:
    """Steps on a simulated GPU, replayed from a recording as from a CUDA graph, give the bits of eager ones on the CPU.

    A method whose Python code decides or counts from step to step states `captured = False`; its steps are eager.
    """
    count = CountedCapture()
    try:
        with simulated_device() as device:
            captured = keeping_trainer_of(small_cell(method), folder, device)
            captured.capture = count
            captured.run()
    except RuntimeError as error:
        raise NotConforming(f"{method}: it fails on another device than the CPU: {error}") from error
    if count.refusals:
        raise NotConforming(f"{method}: a step cannot be captured: {count.refusals[0]}")
    if captured.method.captured and not count.replays:
        raise NotConforming(f"{method}: a step cannot be captured: it draws random numbers on the host")
    eager = undisturbed(method, METHODS.get(method))
    for epoch, (one, other) in enumerate(zip(captured.kept, eager.kept, strict=True)):
        if not same(one, other):
            raise NotConforming(f"{method}: captured steps end epoch {epoch} with other weights than eager ones")


def curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the history without its times."""
    return [{key: value for key, value in record.items() if not key.endswith("seconds")} for record in history]


def state_round_trips(method: str, folder: Path) -> None:
    """What `state_dict` returns after training, a fresh method takes and returns again.

    The weights of the evaluated model likewise: a fresh one that loads them gives the same logits.
    """
    cell = small_cell(method)
    trained = trainer_of(cell, folder / "trained")
    for _ in phases(trained):
        pass
    state = trained.method.state_dict()
    fresh = trainer_of(cell, folder / "fresh").method
    fresh.load_state_dict(state)
    if not same(fresh.state_dict(), state):
        raise NotConforming(f"{method}: its state is not what was loaded into it")
    evaluated, images = (
        trained.method.evaluated_model().eval(),
        to_float(next(trained.test.read([torch.arange(MEASURED)]))),
    )
    try:
        loaded = build_evaluated(cell, dataset_of(cell.protocol.dataset), evaluated.state_dict(), CPU)
    except RuntimeError as error:
        raise NotConforming(f"{method}: the weights of its evaluated model do not load into a fresh one") from error
    with torch.no_grad():
        if not torch.equal(loaded(images), evaluated(images)):
            raise NotConforming(f"{method}: a fresh model with the weights of its evaluated one answers differently")


def same(one: Any, other: Any) -> bool:
    """Return whether two nested states are equal, tensors bit by bit."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one.cpu(), other.cpu())
    return bool(one == other)


def learns_something(method: str, folder: Path) -> None:
    """After one epoch the trained network is right about at least twice as many test digits as chance."""
    trainer = trainer_of(small_cell(method), folder, whole=True)
    trainer.begin_epoch(0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = trainer.training.optimizer.lr
    for batch in trainer.batches:
        train_step(trainer.method, batch, trainer.optimizer, EpochMetrics(CPU))
    right = correct_under(
        trainer.method.model, trainer.test, Clean(), trainer.cell.protocol.threat, generator(0, "conformance")
    )
    accuracy = right.double().mean().item()
    if accuracy < 2 * CHANCE:
        raise NotConforming(f"{method}: after one epoch it is right about {accuracy:.1%} of the test digits")


CHECKS: tuple[Check, ...] = (
    perturbations_stay_inside,
    loss_is_finite,
    crafting_leaves_no_trace,
    soft_labels_replace_labels,
    every_parameter_gets_a_gradient,
    resumes_exactly,
    captured_steps_equal_eager_steps,
    state_round_trips,
    learns_something,
)
