"""What the cells of a results folder are doing, as somebody sees it who did not start them."""

import os
import time

import pytest

from bench.execution import watch
from bench.execution.driver import mark_interrupted
from bench.execution.watch import STALLED_SECONDS, Watcher
from bench.storage.run_folder import RunFolder


def seen(watcher):
    return {state.cell.seed: state.status for state in watcher.states()}


def test_states_as_they_change(load, tmp_path):
    loaded = load({"seeds: [0]": "seeds: [0, 1, 2, 3, 4]"})
    folders = [RunFolder.of(cell, tmp_path) for cell in loaded.cells]
    of_suite, of_all = Watcher(tmp_path, list(loaded.cells)), Watcher(tmp_path)
    assert seen(of_suite) == dict.fromkeys(range(5), "queued")
    assert seen(of_all) == {}

    for cell, folder in list(zip(loaded.cells, folders, strict=True))[:4]:
        folder.begin(cell, {})
        folder.progress(force=True, phase="training", epoch=1, epochs=2, done=0, of=17)
    folders[1].finish("finished")
    folders[2].finish("diverged", reason="the loss")
    long_ago = time.time() - STALLED_SECONDS - 10
    os.utime(folders[3].path / "progress.json", (long_ago, long_ago))
    expected = {0: "running", 1: "finished", 2: "diverged", 3: "stalled"}
    assert seen(of_suite) == expected | {4: "queued"}
    assert seen(of_all) == expected
    states = {state.cell.seed: state for state in of_all.states()}
    assert states[0].progress["epoch"] == 1
    assert states[2].reason == "the loss"
    assert states[3].reason == "no heartbeat for 2 minutes"

    folders[3].progress(force=True, phase="training")
    (folders[0].path / "done.json").write_text("{}")
    folders[1].archive()
    assert seen(of_all) == {0: "failed", 1: "finished", 2: "diverged", 3: "running"}
    assert 1 not in seen(Watcher(tmp_path))


def test_an_interrupted_cell_is_not_running(load, tmp_path):
    cell = load().cells[0]
    folder, watcher = RunFolder.of(cell, tmp_path), Watcher(tmp_path, [cell])
    mark_interrupted(folder)
    assert not folder.path.exists()  # it has not begun
    folder.begin(cell, {})
    folder.progress(force=True, phase="training", epoch=1, epochs=2, done=0, of=17)
    with folder.lock():
        mark_interrupted(folder)  # its worker has not ended
    assert seen(watcher) == {0: "running"}
    mark_interrupted(folder)
    assert seen(watcher) == {0: "interrupted"}
    assert watcher.states()[0].progress["epoch"] == 1
    folder.progress(force=True, phase="starting")
    assert seen(watcher) == {0: "running"}
    folder.finish("finished")
    before = (folder.path / "progress.json").read_bytes()
    mark_interrupted(folder)
    assert (folder.path / "progress.json").read_bytes() == before


def test_what_is_no_run_is_passed_over(load, tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "cell.json").write_text("{}")
    (tmp_path / "runs" / "c").touch()
    assert Watcher(tmp_path).states() == []


def test_ended_runs_are_read_once(load, tmp_path, monkeypatch):
    cell = load().cells[0]
    folder = RunFolder.of(cell, tmp_path)
    folder.begin(cell, {})
    folder.finish("finished")
    watcher = Watcher(tmp_path)
    watcher.states()
    monkeypatch.setattr(watch.RunFolder, "result", lambda _self: 1 / 0)
    assert seen(watcher) == {0: "finished"}


@pytest.mark.parametrize(
    "text",
    [
        *("[1]", "7", "{", "[" * 100_000, '{"phase": []}', '{"last": 1}'),
        *('{"phase": "training"}', '{"phase": "evaluation", "share": "x"}'),
        '{"phase": "training", "epoch": 0, "epochs": 0, "done": 0, "of": 1}',
    ],
)
def test_a_display_file_that_says_nothing_sound_is_passed_over(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    assert RunFolder(tmp_path).read_progress() == {}


def test_a_run_without_its_display_file_is_silent(load, tmp_path):
    cell = load().cells[0]
    RunFolder.of(cell, tmp_path).begin(cell, {})
    assert seen(Watcher(tmp_path)) == seen(Watcher(tmp_path, [cell])) == {0: "stalled"}
