"""A run folder as rows of the database."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.attacks.outcome import PackedBits
from bench.errors import DamagedFile
from bench.storage.previews import previews
from bench.storage.run_folder import CHECKPOINTS, RunFolder
from bench.storage.schema import CheckpointRow, OutcomeRow, ProtocolRow, RunRow
from bench.utils.files import fingerprint, read_record


class Rows(NamedTuple):
    """The rows of one run: its protocol, the run with checkpoints and outcomes, and its epochs.

    Epochs are plain columns of `EpochRow`: there are hundreds of them, and mapped objects take ten times as long.
    """

    protocol: ProtocolRow
    run: RunRow
    curve: list[dict[str, Any]]


def read_run(folder: RunFolder) -> Rows:
    """Return the rows of `folder`: equal ones at every call.

    Raises:
        DamagedFile: it is not a run folder, a file does not match its digest, or two files contradict each other.
    """
    folder.refuse_links()
    cell = cell_of(folder)
    try:
        return Rows(_protocol(folder, cell), *_run(folder, cell))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{folder.path} is damaged: its records are incomplete ({error!r})") from error


def cell_of(folder: RunFolder) -> dict[str, Any]:
    """Return the content of `cell.json`. Raises DamagedFile if there is none, or as `read_record`."""
    try:
        return folder.cell()
    except FileNotFoundError:
        raise DamagedFile(f"{folder.path} is not a run folder: it has no cell.json") from None


def _protocol(folder: RunFolder, cell: dict[str, Any]) -> ProtocolRow:
    content = cell["identity"]["protocol"]
    if cell["fingerprint"] != fingerprint(cell["identity"]) or cell["protocol_fingerprint"] != fingerprint(content):
        raise DamagedFile(f"{folder.path / 'cell.json'} is damaged: its fingerprints do not match its content")
    return ProtocolRow(fingerprint=cell["protocol_fingerprint"], content=content)


def _run(folder: RunFolder, cell: dict[str, Any]) -> tuple[RunRow, list[dict[str, Any]]]:
    # First the result: a run may end while its files are read.
    method, done, index = cell["cell"]["method"], folder.result(), _index(folder)
    ending, status = done or {}, done["status"] if done else "interrupted"
    # An epoch that was recorded but not committed is trained again when the run goes on.
    committed = folder.committed_epochs(index["finished_epochs"], index.get("curve_sha256"))
    curve = [_epoch(cell["fingerprint"], record) for record in committed]
    checkpoints = _checkpoints(folder, cell["fingerprint"], index["checkpoints"], finished=status == "finished")
    # Files say both, not `cell.json`, which may come from a bundle.
    added = {"ingested": folder.origin(), "previews": previews(folder, checkpoints)}
    recorded = {key: value for key, value in cell["environment"].items() if key not in added}
    run = RunRow(
        fingerprint=cell["fingerprint"],
        training_fingerprint=cell["training_fingerprint"],
        protocol_fingerprint=cell["protocol_fingerprint"],
        suite=cell["cell"]["suite"],
        **{name: method[name] for name in ("version", "label", "params", "custom", "origin", "final_is_best")},
        method=method["name"],
        seed=cell["cell"]["seed"],
        status=status,
        reason=_printed(ending.get("reason")),
        diverged_in=ending.get("epoch"),
        classes=ending.get("classes"),
        environment=recorded | {key: value for key, value in added.items() if value},
        folder="/".join(folder.path.absolute().parts[-2:]),
        epochs=len(curve),
        **{
            name: ending.get(name)
            for name in ("train_pflop", "train_seconds", "track_seconds", "evaluation_seconds", "peak_memory_bytes")
        },
        incidents=folder.incidents() or None,
        done_sha256=digest(done),
        checkpoints=checkpoints,
    )
    return run, curve


def _printed(reason: str | None) -> str | None:
    """Return the reason without NUL, which PostgreSQL's text cannot hold: it may quote any exception."""
    return reason and reason.replace("\0", "\ufffd")


def digest(done: dict[str, Any] | None) -> str | None:
    """Return the fingerprint of the content of `done.json`, None while there is none."""
    return None if done is None else fingerprint(done)


def _index(folder: RunFolder) -> dict[str, Any]:
    """Return the index of the checkpoints; an empty one before the first epoch is committed."""
    try:
        return read_record(folder.checkpoints / "index.json")
    except FileNotFoundError:
        return {"checkpoints": {}, "finished_epochs": 0}


def _epoch(run: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of `EpochRow`."""
    unknown = {"clean": None, "robust": None}
    train, validation, test = record["train"], record["validation"] or unknown, record["test"] or unknown
    return {
        "run": run,
        "epoch": record["epoch"],
        "lr": record["lr"],
        "train_loss": train["loss"],
        "train_robust": train["robust"],
        "validation_clean": validation["clean"],
        "validation_robust": validation["robust"],
        "test_clean": test["clean"],
        "test_robust": test["robust"],
        "train_seconds": record["train_seconds"],
        "seconds": record["seconds"],
        "train_pflop": record.get("train_pflop"),
    }


def _checkpoints(folder: RunFolder, run: str, entries: dict[str, Any], *, finished: bool) -> dict[str, CheckpointRow]:
    """Return the checkpoints with their outcomes.

    While a run is unfinished, there may be outcomes of weights that are not there yet; these are left out.
    """
    rows = {
        name: CheckpointRow(
            run=run, name=name, **{field: entries[name][field] for field in ("epoch", "sha256", "file")}
        )
        for name in CHECKPOINTS
        if name in entries
    }
    for (checkpoint, key), record in folder.read_outcomes().items():
        path = folder.outcome_path(checkpoint, key)
        if checkpoint in rows and record["weights_sha256"] == rows[checkpoint].sha256:
            row = _outcome(path.name, key, record)
            row.run, row.checkpoint = run, checkpoint
            rows[checkpoint].outcomes[key] = row
        elif finished:
            raise DamagedFile(f"{path} is of other weights than those of the checkpoint '{checkpoint}'")
    return rows


def _outcome(file: str, key: str, record: dict[str, Any]) -> OutcomeRow:
    count = record["count"]
    bits = PackedBits.from_text(record["correct"], count)
    right = bits.total()
    if count < 1 or record["right"] != right:
        raise ValueError(f"{file} has not as many correct images as it states")
    return OutcomeRow(
        key=key,
        attack=record["attack"]["name"],
        title=record["title"],
        identity=record["attack"],
        count=count,
        right=right,
        accuracy=right / count,
        correct=bits.data,
        seconds=record["seconds"],
        detail=record["detail"],
    )
