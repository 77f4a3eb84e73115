"""`bench run --tracker` and `bench export tracker`."""

import json
import sys

import pytest

from bench.registry import TRACKERS
from bench.storage.run_folder import run_folders

from ..trackers.conftest import curve, memory

__all__ = ["memory"]


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow.entities"), ("wandb", "wandb")],
)
def test_a_tracker_that_is_not_installed_ends_the_command_first(bench, suite, tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"bench.trackers.{name}", raising=False)
    monkeypatch.setenv("BENCH_TRACKER", name)
    result = bench("run", suite(), "--results", tmp_path / "new")
    assert result.code == 2
    assert f"pip install 'robust-overfitting-bench[{name}]'" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_unknown_tracker_is_named_with_the_known_ones(bench, suite, tmp_path):
    result = bench("run", suite(), "--results", tmp_path / "new", "--tracker", "quill")
    assert result.code == 2
    assert result.err == f"bench: unknown tracker 'quill'; known: {', '.join(TRACKERS.names())}\n"
    assert not (tmp_path / "new").exists()


def test_runs_that_have_ended_are_recorded_by_a_run_with_nothing_to_do(bench, suite, copy_of_results, memory):
    for _ in range(2):
        assert bench("run", suite(), "--results", copy_of_results, "--tracker", "memory").code == 0
    ((tracker,),) = memory.records.values()
    assert tracker.end[0] == "finished"


def test_an_export_records_the_named_runs_or_all(bench, copy_of_results, memory, tmp_path):
    folder = run_folders(copy_of_results)[0]
    words = ("export", "tracker", "--results", copy_of_results, "--tracker", "memory")
    result = bench(*words, "--json")
    expected = {"run": folder.path.name, "tracker": "memory", "folder": str(copy_of_results / "trackers" / "memory")}
    assert json.loads(result.out) == [expected]
    result = bench(*words, "pgd-at", "--output", tmp_path / "there")
    assert result.out == f"{folder.path.name} in {tmp_path / 'there' / 'memory'}\n"
    ((first, second),) = memory.records.values()
    assert [epoch for epoch, _ in second.epochs] == [epoch for epoch, _ in curve(folder)["lr"]]
    assert first.end[:2] == ("finished", 1)


def test_an_export_without_a_tracker_or_a_run_is_refused(bench, copy_of_results, memory, tmp_path):
    result = bench("export", "tracker", "--results", copy_of_results)
    assert (result.code, result.err) == (
        2,
        "bench: name the trackers with --tracker, as in --tracker tensorboard,mlflow\n",
    )
    result = bench("export", "tracker", "--results", tmp_path / "none", "--tracker", "memory")
    assert result.code == 4
    assert "no run in" in result.err


@pytest.mark.slow
def test_a_live_run_is_recorded(bench, suite, tmp_path, memory):
    assert bench("run", suite(), "--results", tmp_path / "new", "--tracker", "memory").code == 0
    ((tracker,),) = memory.records.values()
    (folder,) = run_folders(tmp_path / "new")
    assert [(epoch, values["train/loss"]) for epoch, values in tracker.epochs] == curve(folder)["train/loss"]
    assert tracker.end[0] == "finished"
    assert len(tracker.end[3]) == 1
