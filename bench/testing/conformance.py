"""The checks, each a function of a method's name and an empty folder; they raise `NotConforming`, one sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.attacks.pgd import frozen
from bench.data.batches import Batch
from bench.data.dataset import Dataset
from bench.evaluation import correct_under
from bench.method import Method
from bench.protocol import Clean
from bench.run_folder import RunFolder
from bench.seeding import generator
from bench.spec import Cell, Suite, resolve_method
from bench.training.step import Totals, train_step
from bench.training.trainer import Trainer

EPOCHS = 6  # both rate drops, at 3 and at 4 or 5, lie inside
CHANCE = 0.1
CPU = torch.device("cpu")
TOLERANCE = 1e-6  # of projections, in fp32

Check = Callable[[str, Path], None]


class NotConforming(AssertionError):
    """A method does not keep the contract; the message says which point and how."""


def conform(method: str) -> None:
    """Run every check on a registered method. Raises NotConforming at the first that fails."""
    for check in CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            check(method, Path(folder))


def small_cell(method: str, epochs: int = EPOCHS) -> Cell:
    """Return a cell of `method` with canonical parameters: a small network on digits, PGD-3, two rate drops."""
    suite = Suite.model_validate(
        {
            "name": "conformance",
            "dataset": {"name": "digits", "validation": 200},
            "model": "small_cnn",
            "threat": {"norm": "linf", "eps": 0.1},
            "training": {
                "epochs": epochs,
                "batch_size": 64,
                "schedule": {"name": "piecewise", "milestones": [0.5, 0.75]},
                "attack": {"name": "pgd", "steps": 3, "step_size": 0.05},
                "augmentation": [{"name": "crop", "padding": 1, "mode": "zero"}],
            },
            "evaluation": {"track": {"attack": {"name": "pgd", "steps": 2, "step_size": 0.05}}, "final": ["clean"]},
            "methods": [method],
        }
    )
    return Cell(protocol=suite.protocol, method=resolve_method(suite, suite.methods[0]), seed=0, suite=suite.name)


def trainer_of(cell: Cell, folder: Path) -> Trainer:
    """Return a trainer of `cell` whose run folder lies in `folder`; one that exists is continued."""
    run = RunFolder.of(cell, folder)
    run.begin(cell, {})
    dataset: Dataset = registry.DATASETS.get(cell.protocol.dataset.name)
    splits = dataset.splits(None, cell.protocol.dataset.validation, cell.protocol.dataset.split_seed)
    return Trainer(cell, dataset, splits, run, CPU)


def phases(trainer: Trainer, batches: int) -> Iterator[tuple[int, Method[Any], Batch]]:
    """Yield (epoch, method, batch) for the first `batches` of every epoch, so that a method's every phase is seen.

    The caller trains on the batch if it wants to.
    """
    for epoch in range(trainer.plan.epochs):
        trainer.random.start_epoch(epoch)
        trainer.method.begin_epoch(epoch)
        trainer.method.model.train()
        for batch in islice(trainer.batches, batches):
            yield epoch, trainer.method, batch
        trainer.method.end_epoch(epoch)


def crafted(method: Method[Any], batch: Batch) -> tuple[Batch, Tensor]:
    """Return the transformed batch and its adversarial images, made as the training step makes them."""
    with method.autocast(), frozen(method.model):
        with torch.no_grad():
            batch = method.transform(batch)
        return batch, method.perturb(batch)


# --- the checks ------------------------------------------------------------------------------------------------------


def perturbations_stay_inside(method: str, folder: Path) -> None:
    """Images stay in [0, 1] and adversarial ones within eps of those that were attacked, in every epoch."""
    trainer = trainer_of(small_cell(method), folder)
    eps = trainer.cell.protocol.threat.eps
    for epoch, running, batch in phases(trainer, 2):
        attacked, adversarial = crafted(running, batch)
        for name, images in (("transformed", attacked.images), ("adversarial", adversarial)):
            if images.shape != batch.images.shape or not ((images >= 0) & (images <= 1)).all():
                raise NotConforming(f"{method}: {name} images are not in [0, 1] or change shape in epoch {epoch}")
        farthest = (adversarial - attacked.images).abs().max().item()
        if farthest > eps + TOLERANCE:
            raise NotConforming(f"{method}: a perturbation of {farthest:.4f} exceeds eps {eps} in epoch {epoch}")


def loss_is_finite(method: str, folder: Path) -> None:
    """The loss is one finite number, and the logits have a row for every image, in every epoch."""
    trainer = trainer_of(small_cell(method), folder)
    for epoch, running, batch in phases(trainer, 2):
        transformed, adversarial = crafted(running, batch)
        loss, logits = running.loss(transformed, adversarial)
        if loss.shape != () or not torch.isfinite(loss):
            raise NotConforming(f"{method}: the loss in epoch {epoch} is {loss.tolist()}, not one finite number")
        if logits.shape != (len(batch), running.context.classes):
            raise NotConforming(f"{method}: the logits in epoch {epoch} have shape {list(logits.shape)}")


def gradients_come_from_the_update_alone(method: str, folder: Path) -> None:
    """Crafting leaves no gradient and no frozen parameter; the update gives every parameter a finite gradient."""
    trainer = trainer_of(small_cell(method), folder)
    for epoch, running, batch in phases(trainer, 1):
        transformed, adversarial = crafted(running, batch)
        parameters = dict(running.model.named_parameters())
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                raise NotConforming(f"{method}: crafting left a gradient in {name} in epoch {epoch}")
            if not parameter.requires_grad:
                raise NotConforming(f"{method}: {name} is frozen after crafting in epoch {epoch}")
        running.backward(transformed, adversarial)
        for name, parameter in parameters.items():
            if parameter.grad is None or not torch.isfinite(parameter.grad).all():
                raise NotConforming(f"{method}: {name} has no finite gradient after backward in epoch {epoch}")
        if not any(parameter.grad.abs().sum() > 0 for parameter in parameters.values() if parameter.grad is not None):
            raise NotConforming(f"{method}: every gradient is zero in epoch {epoch}")
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        running.after_step()


def same_seed_same_weights(method: str, folder: Path) -> None:
    """Two trainings of the same cell end with the same bits, whatever the global generators hold."""
    digests = []
    for number in range(2):
        torch.manual_seed(number)
        trainer = trainer_of(small_cell(method), folder / str(number))
        trainer.run()
        digests.append({name: entry.sha256 for name, entry in trainer.checkpoints.entries.items()})
    if digests[0] != digests[1]:
        raise NotConforming(f"{method}: two trainings with the same seed end with different weights")


def resumes_exactly(method: str, folder: Path) -> None:
    """For every k, training k epochs, stopping, and training the rest gives the bits and the curve of one go."""
    whole = trainer_of(small_cell(method), folder / "whole")
    whole.run()
    for k in range(1, len(whole.history)):
        trainer_of(small_cell(method), folder / str(k)).run(epochs=k)
        torch.manual_seed(k)
        second = trainer_of(small_cell(method), folder / str(k))
        second.run()
        if second.checkpoints.entries != whole.checkpoints.entries:
            raise NotConforming(f"{method}: stopped after {k} epochs and resumed, it ends with different weights")
        if curve(second.history) != curve(whole.history):
            raise NotConforming(f"{method}: stopped after {k} epochs and resumed, its curve differs")


def curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the history without its times."""
    return [{key: value for key, value in record.items() if not key.endswith("seconds")} for record in history]


def state_round_trips(method: str, folder: Path) -> None:
    """What `state_dict` returns after training, a fresh method takes, and returns again."""
    trained = trainer_of(small_cell(method), folder / "trained")
    trained.run()
    state = trained.method.state_dict()
    fresh = trainer_of(small_cell(method), folder / "fresh").method
    fresh.load_state_dict(state)
    if not same(fresh.state_dict(), state):
        raise NotConforming(f"{method}: its state is not what was loaded into it")


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
    trainer = trainer_of(small_cell(method), folder)
    trainer.random.start_epoch(0)
    trainer.method.begin_epoch(0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = trainer.training.optimizer.lr
    totals = Totals(CPU)
    for batch in trainer.batches:
        trainer.method.model.train()
        train_step(trainer.method, batch, trainer.optimizer, totals)
    right = correct_under(
        trainer.method.model, trainer.test, Clean(), trainer.cell.protocol.threat, generator(0, "conformance")
    )
    accuracy = right.double().mean().item()
    if accuracy < 2 * CHANCE:
        raise NotConforming(f"{method}: after one epoch it is right about {accuracy:.1%} of the test digits")


CHECKS: tuple[Check, ...] = (
    perturbations_stay_inside,
    loss_is_finite,
    gradients_come_from_the_update_alone,
    same_seed_same_weights,
    resumes_exactly,
    state_round_trips,
    learns_something,
)
