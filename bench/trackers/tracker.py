"""The interface of an experiment tracker; an entry of the group `bench.trackers` is a subclass of `Tracker`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.utils.files import canonical_json, fingerprint

FINAL = "final"
"""The first part of the names of metrics of a whole run; the others are of an epoch."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker records.

    `experiment`: the suite and the beginning of the protocol's fingerprint, of letters, digits, `_` and `-`; `name`:
    method and seed; `fingerprint`: of the cell (64 hex digits), by which a tracker finds the run again; `params`: the
    hyperparameters and all settings of the protocol.
    """

    experiment: str
    name: str
    fingerprint: str
    params: dict[str, str | int | float | bool]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> TrackedRun:
        """Return the run of `record`, the content of a `cell.json`, none of whose texts becomes a path."""
        cell, identity = record["cell"], record["identity"]
        method, seed = identity["method"], identity["seed"]
        params = {"method": method["name"], "seed": seed, "params": method["params"], **identity["protocol"]}
        return cls(
            experiment=f"{re.sub(r'[^A-Za-z0-9_-]', '-', cell['suite'])}-{fingerprint(identity['protocol'])[:12]}",
            name=cell["method"]["label"] if cell.get("network") else f"{cell['method']['label']} seed {seed}",
            fingerprint=fingerprint(identity),
            params=flat(params, "."),
        )


@dataclass(frozen=True)
class Picture:
    """An image to store at the end of a run: `pixels`, uint8, [height, width, channels], of 1 or 3 channels."""

    name: str
    pixels: NDArray[np.uint8]
    caption: str


class Tracker(ABC):
    """The record of one run in an experiment tracker. Its methods are called in one thread, and may raise any error."""

    @abstractmethod
    def __init__(self, folder: Path, run: TrackedRun) -> None:
        """Begin to write `run` into `folder`, which may hold others. An earlier record of the same run is replaced."""

    @abstractmethod
    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one epoch (from 0); epochs come in order, each once."""

    @abstractmethod
    def finish(self, status: str, epoch: int, metrics: Mapping[str, float], pictures: list[Picture]) -> None:
        """End the record.

        Args:
            status: finished, diverged or failed; or interrupted, if the run is to resume and to be recorded again.
            epoch: the last one, -1 if there was none.
            metrics: of the whole run.
            pictures: adversarial examples.
        """


def flat(tree: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return the values of nested mappings by their joined keys, without None; lists become JSON."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= {f"{key}{separator}{inner}": held for inner, held in flat(value, separator).items()}
        elif isinstance(value, list | tuple):
            values[key] = canonical_json(value)
        elif value is not None:
            values[key] = value
    return values
