"""Results, learning curves and per-image outcomes as pandas DataFrames with stable columns.

Accuracies are shares in [0, 1]. A column may be added in a later version; none is renamed or removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.config.suite import LoadedSuite
from bench.reporting.work import work_after
from bench.storage.schema import CheckpointRow, OutcomeRow, RunRow
from bench.storage.store import Epoch, Store

RUN = {
    "run": "string",
    "suite": "string",
    "protocol": "string",
    "dataset": "string",
    "model": "string",
    "method": "string",
    "label": "string",
    "seed": "int64",
    "status": "string",
}
"""Columns that name a run, with their types: the folder's name, the suite, 12 digits of the protocol's fingerprint,
dataset, architecture, method, the row's label, the seed, and finished, diverged, failed or interrupted."""

RESULTS = RUN | {
    "checkpoint": "string",
    "checkpoint_epoch": "int64",
    "attack": "string",
    "attack_key": "string",
    "images": "int64",
    "correct": "int64",
    "accuracy": "float64",
    "attack_seconds": "float64",
    "train_pflop": "float64",
    "train_seconds": "float64",
    "peak_memory_bytes": "Int64",
    "checkpoint_pflop": "float64",
}
"""Columns of `results_frame`."""

CURVES = RUN | {
    "epoch": "int64",
    "lr": "float64",
    "train_loss": "float64",
    "train_robust": "float64",
    "validation_robust": "float64",
    "test_robust": "float64",
    "work_pflop": "float64",
}
"""Columns of `curves_frame`."""

OUTCOMES = RUN | {
    "checkpoint": "string",
    "attack": "string",
    "attack_key": "string",
    "image": "int64",
    "correct": "bool",
    "version": "string",
}
"""Columns of `outcomes_frame`."""

CLASSES = RUN | {
    "checkpoint": "string",
    "attack": "string",
    "attack_key": "string",
    "class": "int64",
    "images": "int64",
    "correct": "int64",
    "accuracy": "float64",
}
"""Columns of `classes_frame`."""


def results_frame(store: Store, suite: LoadedSuite | None = None) -> pd.DataFrame:
    """Return one row for each run, checkpoint and attack; `RESULTS` names the columns.

    `accuracy` is `correct / images`; under corruptions every version of an image counts. A run without a finished
    attack has no row. Costs are those of the whole run and repeat on each of its rows; an unknown cost is NaN.

    `checkpoint_pflop` is the work of training up to the checkpoint.

    Args:
        store: an open database of runs.
        suite: only runs of its cells; default: all runs.

    Raises:
        BenchError: the database cannot be read.
    """
    runs = _runs(store, suite)
    curves = store.curves([run.fingerprint for run in runs])
    work = {run.fingerprint: dict(enumerate(work_after(run, curves.get(run.fingerprint, [])) or [])) for run in runs}
    return _frame(
        RESULTS,
        (
            _run(run)
            | _attacked(checkpoint, outcome)
            | {
                "checkpoint_epoch": checkpoint.epoch,
                "images": outcome.count,
                "correct": outcome.right,
                "accuracy": outcome.accuracy,
                "attack_seconds": outcome.seconds,
                "train_pflop": run.train_pflop,
                "train_seconds": run.train_seconds,
                "peak_memory_bytes": run.peak_memory_bytes,
                "checkpoint_pflop": work[run.fingerprint].get(checkpoint.epoch),
            }
            for run in runs
            for checkpoint, outcome in _outcomes(run)
        ),
    )


def curves_frame(store: Store, suite: LoadedSuite | None = None) -> pd.DataFrame:
    """Return one row for each run and epoch (from 0); `CURVES` names the columns.

    `train_loss` is the mean over the epoch's batches, the accuracies are those under the protocol's tracking attack.
    `test_robust` is NaN where the protocol does not track the test images, both are after epochs that are not tracked.
    `work_pflop` is the work of training up to the end of the epoch, with that of teachers, which comes first. Arguments
    and errors: see `results_frame`.
    """
    runs = _runs(store, suite)
    curves = store.curves([run.fingerprint for run in runs])
    return _frame(
        CURVES,
        (
            _run(run) | epoch._asdict() | {"work_pflop": amount}
            for run in runs
            for epoch, amount in _with_work(run, curves.get(run.fingerprint, []))
        ),
    )


def outcomes_frame(
    store: Store, suite: LoadedSuite | None = None, *, checkpoint: str | None = None, attack: str | None = None
) -> pd.DataFrame:
    """Return one row for each run, checkpoint, attack and test image; `OUTCOMES` names the columns.

    `image` is the position among the images that the attack was run on. The images and their order are equal for all
    runs of a protocol, so outcomes pair by `protocol`, `attack_key` and `image`. `correct` says whether the prediction
    is right under the attack. Under corruptions an image has one row for each of its versions, and `version` names
    corruption and severity ("gaussian_noise 3").

    Args:
        store: an open database of runs.
        suite: only runs of its cells; default: all runs.
        checkpoint: only this one: best, best_on_test or last.
        attack: only this one, by title ("PGD-20") or key.

    Raises:
        BenchError: the database cannot be read.
    """
    parts = []
    for run in _runs(store, suite, bits=True):
        for row, outcome in _outcomes(run):
            if checkpoint in (None, row.name) and attack in (None, outcome.title, outcome.key):
                values = _run(run) | _attacked(row, outcome)
                image = np.repeat(np.arange(outcome.images), outcome.versions)
                names = [version["version"] for version in outcome.detail.get("versions", ())]
                version = names * outcome.images or None
                images = {"image": image, "correct": outcome.bits.unpack(), "version": version}
                parts.append(pd.DataFrame(values | images).astype(OUTCOMES)[list(OUTCOMES)])
    return pd.concat(parts, ignore_index=True) if parts else _frame(OUTCOMES, ())


def classes_frame(store: Store, suite: LoadedSuite | None = None) -> pd.DataFrame:
    """Return one row for each run, checkpoint, attack and class; `CLASSES` names the columns.

    `class` is the label, from 0. Outcomes of older versions do not state their classes and have no row; a class without
    attacked images has the accuracy NaN. Arguments and errors: see `results_frame`.
    """
    return _frame(
        CLASSES,
        (
            _run(run)
            | _attacked(checkpoint, outcome)
            | {"class": label, "images": images, "correct": right, "accuracy": right / images if images else None}
            for run in _runs(store, suite)
            for checkpoint, outcome in _outcomes(run)
            for label, (right, images) in enumerate(outcome.detail.get("per_class", ()))
        ),
    )


def _frame(columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def _runs(store: Store, suite: LoadedSuite | None, *, bits: bool = False) -> list[RunRow]:
    if suite is None:
        return store.runs(bits=bits)
    wanted = {cell.fingerprint for cell in suite.cells}
    protocol = suite.suite.protocol.fingerprint
    return [run for run in store.runs(protocol=protocol, bits=bits) if run.fingerprint in wanted]


def _with_work(run: RunRow, epochs: list[Epoch]) -> Iterator[tuple[Epoch, float | None]]:
    return zip_longest(epochs, work_after(run, epochs) or [])


def _run(run: RunRow) -> dict[str, Any]:
    protocol = run.protocol.content
    return {
        "run": Path(run.folder).name,
        "suite": run.suite,
        "protocol": run.protocol_fingerprint[:12],
        "dataset": protocol["dataset"]["name"],
        "model": protocol["model"],
        "method": run.method,
        "label": run.label,
        "seed": run.seed,
        "status": run.status,
    }


def _attacked(checkpoint: CheckpointRow, outcome: OutcomeRow) -> dict[str, Any]:
    return {"checkpoint": checkpoint.name, "attack": outcome.title, "attack_key": outcome.key}


def _outcomes(run: RunRow) -> Iterator[tuple[CheckpointRow, OutcomeRow]]:
    for _, checkpoint in sorted(run.checkpoints.items()):
        for _, outcome in sorted(checkpoint.outcomes.items()):
            yield checkpoint, outcome
