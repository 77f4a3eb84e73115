"""A tracker in memory, and a finished run."""

from typing import ClassVar

import pytest

from bench.registry import TRACKERS
from bench.storage.run_folder import run_folders
from bench.trackers.tracker import Tracker


class Memory(Tracker):
    """Keeps records in `records`, by the fingerprint of the run; each is what has been called, in order."""

    records: ClassVar[dict] = {}

    def __init__(self, folder, run):
        self.run, self.epochs, self.end = run, [], None
        self.records.setdefault(run.fingerprint, []).append(self)

    def log(self, epoch, metrics):
        self.epochs.append((epoch, dict(metrics)))

    def finish(self, status, epoch, metrics, pictures):
        assert self.end is None
        self.end = (status, epoch, dict(metrics), pictures)


@pytest.fixture
def memory():
    """The class of the tracker 'memory', without records."""
    Memory.records = {}
    TRACKERS.add("memory", Memory)
    return Memory


@pytest.fixture
def folder(copy_of_results):
    """A finished run folder."""
    return run_folders(copy_of_results)[0]


def curve(folder):
    """Return the metrics of a run folder as trackers have them: {name: [(epoch, value), ...]}."""
    metrics = {}
    for record in folder.epochs():
        values = {name: record[name] for name in ("lr", "seconds", "train_seconds", "train_pflop")}
        values |= {f"train/{name}": record["train"][name] for name in ("loss", "robust")}
        values |= {
            f"{part}/{name}": record[part][name] for part in ("validation", "test") for name in ("clean", "robust")
        }
        for name, value in values.items():
            metrics.setdefault(name, []).append((record["epoch"], value))
    return metrics
