"""Trackers beside the driver: they follow its cells, and whatever they do, it goes on."""

import threading

import pytest

from bench.execution.plan import Action, CellState
from bench.registry import TRACKERS
from bench.storage.run_folder import CellStatus
from bench.trackers import live
from bench.trackers.live import LiveTrackers

from .conftest import Memory


class Failing(Memory):
    def finish(self, *_):
        raise OSError(28, "No space left on device")


class Hanging(Memory):
    released = threading.Event()

    def log(self, epoch, metrics):
        self.released.wait()


@pytest.fixture
def state(folder, monkeypatch):
    """The state of the finished cell, still running as far as the driver knows."""
    monkeypatch.setattr(live, "INTERVAL_SECONDS", 0.01)
    return CellState(None, folder, CellStatus.RUNNING, Action.RUN)


def test_a_tracker_that_fails_is_dropped_with_one_warning(state, memory, tmp_path, caplog):
    TRACKERS.add("failing", Failing)
    with LiveTrackers(["failing", "memory"], tmp_path) as trackers:
        for _ in range(10):
            trackers.watch([state])
    assert [record.getMessage() for record in caplog.records] == [
        "tracker 'failing' failed and is disabled: OSError: [Errno 28] No space left on device"
    ]
    ((_, whole),) = ([*sorted(records, key=lambda one: one.end is not None)] for records in memory.records.values())
    assert whole.end[0] == "finished"
    assert (tmp_path / "trackers" / "memory" / ".complete" / state.folder.path.name).exists()
    assert not (tmp_path / "trackers" / "failing" / ".complete").exists()


def test_a_tracker_that_hangs_is_left_behind(state, memory, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE_SECONDS", 0.2)
    TRACKERS.add("hanging", Hanging)
    try:
        with LiveTrackers(["hanging"], tmp_path) as trackers:
            trackers.watch([state])
    finally:
        Hanging.released.set()
    assert "tracker 'hanging' does not respond" in caplog.text


def test_cells_that_wait_and_folders_that_have_not_begun_are_left_alone(state, memory, tmp_path, caplog):
    waiting = CellState(None, state.folder, CellStatus.QUEUED, Action.RUN)
    new = CellState(None, type(state.folder)(tmp_path / "runs" / "new"), CellStatus.RUNNING, Action.RUN)
    with LiveTrackers(["memory"], tmp_path) as trackers:
        trackers.watch([waiting, new])
    assert memory.records == {}
    assert caplog.text == ""
