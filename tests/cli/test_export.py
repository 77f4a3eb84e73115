"""`bench export robustbench`: a run as RobustBench's model information."""

import json

import pytest

from bench.storage.store import Store

from ..export.test_robustbench import cifar10, verdicts
from ..storage.conftest import make_run, results

__all__ = ["make_run", "results"]


@pytest.fixture
def run(make_run, results):
    """A finished run on cifar10 in the default store."""
    right = {"best": verdicts(8_212, 5_234, 4_931), "last": verdicts(8_400, 4_700, 4_290)}
    folder = make_run(right, protocol=cifar10(), done={"classes": 10})
    with Store.of(results) as store:
        store.ingest(folder)
    return folder.path.name


def test_it_is_printed_and_what_is_left_out_is_named(bench, run, results):
    result = bench("export", "robustbench", run[:10], "--results", results, "--title", "Ünicode", "--reported", "50")
    assert result.code == 0
    found = json.loads(result.out)
    assert (found["name"], found["reported"], found["autoattack_acc"]) == ("Ünicode", "50", "49.31")
    assert result.err == "bench: fields left out, because nothing states them: link, authors, additional_data, venue\n"


def test_it_is_written_to_a_file(bench, run, results, tmp_path):
    result = bench(
        "export", "robustbench", run, "--results", results, "--output", tmp_path / "x.json", "--no-additional-data"
    )
    assert (result.code, result.out) == (0, "")
    assert json.loads((tmp_path / "x.json").read_text())["additional_data"] is False
    result = bench("export", "robustbench", run, "--results", results, "--output", tmp_path / "none" / "x.json")
    assert result.code == 2
    assert "cannot be written" in result.err


def test_runs_that_are_not_there(bench, run, results, tmp_path):
    result = bench("export", "robustbench", "none", "--results", results)
    assert (result.code, result.out) == (4, "")
    assert "no run begins with 'none'" in result.err
    assert bench("export", "robustbench", run, "--results", tmp_path / "nowhere").code == 4
    assert bench("export", "robustbench", run, "--results", results, "--reported", "150").code == 2
    result = bench("export", "robustbench", run, "--results", results, "--checkpoint", "first")
    assert (result.code, result.out) == (2, "")
    assert "no outcome of a checkpoint 'first'; it has best, last" in result.err


def test_weights_are_written_and_what_was_compared_is_said(bench, tiny_results, tmp_path):
    words = ("export", "weights", "pgd-at", "--results", tiny_results, "--checkpoint", "last")
    result = bench(*words, "--format", "safetensors", "--output", tmp_path / "x")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("bench: last of pgd-at-seed0-")
    assert result.err.endswith(f" as safetensors: {tmp_path / 'x'}; logits equal on 256 test images\n")
    result = bench(*words, "--format", "torch", "-o", tmp_path / "y", "--json")
    said = json.loads(result.out)
    assert (said["format"], said["checkpoint"], said["images"], said["difference"]) == ("torch", "last", 256, 0)
    result = bench(*words, "--format", "torch", "-o", tmp_path / "y")
    assert (result.code, result.err) == (2, f"bench: {tmp_path / 'y'} exists; choose another path, or remove it\n")
    assert bench(*words, "--format", "keras", "-o", tmp_path / "z").code == 2


def test_an_entry_of_the_zoo_gets_the_information_and_a_name(bench, run, results, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("bench.export.trained.trained_network", lambda *where: where)
    monkeypatch.setattr("bench.export.zoo.write_zoo_entry", lambda *arguments: calls.append(arguments) or 256)
    words = ("export", "robustbench", run, "--results", results, "--zoo", tmp_path / "zoo")
    result = bench(*words)
    assert (result.code, result.out) == (0, "")
    assert f"bench: {tmp_path / 'zoo'}: loaded by RobustBench; logits equal on 256 test images\n" in result.err
    bench(*words, "--entry", "Ours2026", "--checkpoint", "last", "--data", tmp_path)
    (first, label, information, *_), (second, entry, _, folder, data) = calls
    assert (first, second) == ((results / "runs" / run, None), (results / "runs" / run, "last"))
    assert (label, entry, folder, data) == ("PGD_AT", "Ours2026", tmp_path / "zoo", tmp_path)
    assert (information["dataset"], information["autoattack_acc"]) == ("cifar10", "49.31")
