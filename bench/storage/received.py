"""Checks of a run that was measured elsewhere: its records against each other, its identity and its protocol.

A digest tells damage, not forgery. These checks refuse records that no run of the stated protocol can have, and values
that reports could not show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import JSON, BigInteger, LargeBinary, String

from bench.attacks.evaluate import evaluated_images
from bench.attacks.identity import RESULTS, joined_attacks, key_of, outcome_identity
from bench.config.attacks import FinalAttack, Joint
from bench.config.cell import EVALUATED, Cell
from bench.config.messages import complaint
from bench.config.protocol import Protocol
from bench.data.dataset import dataset_of
from bench.errors import BenchError, DamagedFile
from bench.storage.checkpoints import INDEX, Checkpoints
from bench.storage.rows import cell_of, read_run
from bench.storage.run_folder import RunFolder
from bench.storage.schema import Base, CheckpointRow, EpochRow, OutcomeRow, RunRow

MAX_DEPTH = 20
"""Of nested values in a record, as in a suite file."""

MAX_LABEL = 100

LARGEST = 1e300
"""Of numbers; infinity and what is not a number are beyond it."""

INSTALLED = RESULTS | {"package"}
"""Keys of an attack's identity that depend on the machine, not on the protocol."""


class _Recorded(BaseModel):
    """Parts of a record that reports read; others may be there."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Data(_Recorded):
    training: str | None = None
    test: str | None = None
    files: str | None = None
    teachers: dict[str, str] | None = None


class _Git(_Recorded):
    revision: str | None = None
    dirty: bool | None = None


class _Environment(_Recorded):
    """Of a run, see `bench.utils.environment.describe`."""

    versions: dict[str, str | None] | None = None
    git: _Git | None = None
    plugins: dict[str, str] | None = None
    data: _Data | None = None
    code: str | None = None
    kernels: str = "eager"
    system: str | None = None
    host: str | None = None
    device: str = "cpu"
    cpu: str | None = None
    gpu: str | None = None
    cuda: str | None = None
    cores: int | None = None
    threads: int | None = None


class _CellRecord(_Recorded):
    """Content of `cell.json`."""

    cell: Cell
    environment: _Environment


class _Version(_Recorded):
    """Of the images, under corruptions."""

    version: str
    accuracy: float
    sha256: str


class _Detail(_Recorded):
    """Of an outcome."""

    doubts: list[str] = []
    accuracy_after: dict[str, float] = {}
    per_class: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]] | None = None
    versions: list[_Version] = []


class _Network(_Recorded):
    """Parameters of an external model."""

    mean: list[float] = []
    std: list[float] = []


def received_run(folder: RunFolder) -> RunRow:
    """Return the rows of a finished run whose records state only what a run of its protocol can.

    Raises:
        DamagedFile: a record is damaged, or contradicts another or the protocol.
    """
    record, path = cell_of(folder), folder.path / "cell.json"
    try:
        cell = _CellRecord.model_validate(record).cell
        if cell.method.name == EVALUATED:
            _Network.model_validate(cell.method.params)
    except ValidationError as error:
        raise DamagedFile(f"{path} does not describe a run: {complaint(error)}") from None
    stated = tuple(record.get(key) for key in ("fingerprint", "training_fingerprint", "protocol_fingerprint"))
    if stated != (cell.fingerprint, cell.training_fingerprint, cell.protocol.fingerprint):
        raise DamagedFile(f"{path} states other fingerprints than those of its cell")
    if record.get("identity") != cell.identity():
        raise DamagedFile(f"{path} states another identity than that of its cell")
    if folder.path.name != RunFolder.of(cell, folder.path).path.name:
        raise DamagedFile(f"{folder.path} is not the folder of its cell, {RunFolder.of(cell, folder.path).path.name}")
    if not Checkpoints(folder.checkpoints).entries:
        raise DamagedFile(f"{folder.checkpoints / INDEX} is missing, or names no checkpoint")
    rows = read_run(folder)
    if rows.run.status != "finished":
        raise DamagedFile(f"{folder.path} has not finished: {rows.run.status}")
    for row in (rows.run, *rows.run.checkpoints.values(), *(EpochRow(**epoch) for epoch in rows.curve)):
        _check_values(folder, row)
    _check_training(folder, cell, rows.run)
    classes, test_images = _dataset(cell.protocol)
    if None not in (classes, rows.run.classes) and classes != rows.run.classes:
        raise DamagedFile(f"{folder.path} states {rows.run.classes} classes, not {classes}")
    for name, checkpoint in rows.run.checkpoints.items():
        _check_outcomes(folder, cell, name, checkpoint, test_images)
    return rows.run


def _check_values(folder: RunFolder, row: Base) -> None:
    """Raise DamagedFile unless each value of a row has the type and the range of its column."""
    for column in row.__table__.columns:
        value = getattr(row, column.key)
        if value is None and column.nullable:
            continue
        if isinstance(column.type, JSON):
            valid = isinstance(value, dict | list) and _depth(value) <= MAX_DEPTH
        elif isinstance(column.type, String):
            length = MAX_LABEL if column.key == "label" else column.type.length or LARGEST
            valid = isinstance(value, str) and len(value) <= length and "\0" not in value
        elif isinstance(column.type, LargeBinary) or column.type.python_type is bool:
            valid = isinstance(value, bytes | bool)
        else:
            whole = column.type.python_type is int
            most = 2**63 if isinstance(column.type, BigInteger) else 2**31 if whole else LARGEST
            if column.key.endswith(("_clean", "_robust", "accuracy")):
                most = 1.0
            number = type(value) is int or (type(value) is float and not whole)
            valid = number and (-most if column.key == "train_loss" else 0) <= value <= most
        if not valid:
            raise DamagedFile(f"{folder.path} has an invalid value of '{column.key}': {value!r:.60}")


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_depth, parts), default=0)


def _check_training(folder: RunFolder, cell: Cell, run: RunRow) -> None:
    """Raise DamagedFile unless the epochs that the run states are there, and the checkpoints that are ranked."""
    external = cell.method.name == EVALUATED
    most = 0 if external else cell.protocol.training.epochs  # a method may end training earlier
    epochs = (folder.result() or {}).get("epochs", most)
    if epochs != run.epochs or not min(1, most) <= epochs <= most:
        raise DamagedFile(f"{folder.path} has {run.epochs} epochs, but states {epochs!r:.20} of at most {most}")
    for name in ("last",) if external else ("best", "last"):
        if name not in run.checkpoints:
            raise DamagedFile(f"{folder.path} has no checkpoint '{name}'")
    for name, checkpoint in run.checkpoints.items():
        if not external and checkpoint.epoch >= epochs:
            raise DamagedFile(f"{folder.path} has a checkpoint '{name}' of epoch {checkpoint.epoch} of {epochs}")


def _dataset(protocol: Protocol) -> tuple[int | None, int | None]:
    """Return the numbers of classes and test images; None where only the files tell, or a plug-in is not loaded."""
    try:
        dataset = dataset_of(protocol.dataset)
    except BenchError:
        return None, None
    return dataset.classes, dataset.test_images


def _check_outcomes(
    folder: RunFolder, cell: Cell, name: str, checkpoint: CheckpointRow, test_images: int | None
) -> None:
    """Raise DamagedFile unless a checkpoint has one outcome for each final attack, on its number of test images.

    `test_images`: of the dataset; if None, the largest number of an outcome.
    """
    left = dict(checkpoint.outcomes)
    found: list[tuple[FinalAttack, str, OutcomeRow]] = []
    for outcome in left.values():
        _check_values(folder, outcome)
    joined = joined_attacks(cell)
    for attack in sorted(cell.protocol.evaluation.final, key=lambda attack: isinstance(attack, Joint)):  # the last
        identity = outcome_identity(attack, cell)
        if isinstance(attack, Joint):
            identity |= {"of": sorted(key for other, key, _ in found if other in joined)}
        key = next((key for key, outcome in left.items() if _same(identity, outcome)), None)
        if key is None:
            raise DamagedFile(
                f"{folder.outcomes} lacks an outcome of the checkpoint '{name}' under {attack.title} as the protocol "
                "has it"
            )
        found.append((attack, key, left.pop(key)))
    for key in left:
        raise DamagedFile(f"{folder.outcome_path(name, key)} is of an attack that the protocol does not have")
    images = test_images or max(outcome.images for _, _, outcome in found)
    for attack, key, outcome in found:
        count = min(evaluated_images(other, images) for other in (joined if isinstance(attack, Joint) else [attack]))
        _check_outcome(folder.outcome_path(name, key), attack, outcome, count)


def _check_outcome(path: Path, attack: FinalAttack, outcome: OutcomeRow, images: int) -> None:
    """Raise DamagedFile unless an outcome in a file is what an attack on so many images writes."""
    if outcome.key != key_of(outcome.identity):
        raise DamagedFile(f"{path} has the name of another attack than its content")
    if outcome.title != attack.title:
        raise DamagedFile(f"{path} has the title {outcome.title!r:.60}, not '{attack.title}'")
    if (outcome.images, outcome.count) != (images, images * outcome.versions):
        raise DamagedFile(f"{path} has {outcome.images} test images, not {images} as the protocol says")
    try:
        per_class = _Detail.model_validate(outcome.detail).per_class
    except ValidationError as error:
        raise DamagedFile(f"{path} does not describe an outcome: {complaint(error, 'detail')}") from None
    totals = None if per_class is None else [sum(part) for part in zip(*per_class, strict=True)]
    if totals not in (None, [outcome.right, outcome.count]):
        raise DamagedFile(f"{path} has accuracies per class that are not those of its images")


def _same(identity: dict[str, Any], outcome: OutcomeRow) -> bool:
    """Return whether an outcome is of an attack, on whatever machine."""
    stated, expected = (
        {key: value for key, value in one.items() if key not in INSTALLED} for one in (outcome.identity, identity)
    )
    return stated == expected
