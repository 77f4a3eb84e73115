import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench.data.batches import to_float
from bench.data.dataset import dataset_of
from bench.reporting import frames
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder, run_folders

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_suite):
    """A results folder with the committed runs of `cifar10_small` and one trained run of the tiny suite."""
    results = tmp_path_factory.mktemp("session") / "results"
    shutil.copytree(ROOT / "results" / "leaderboards" / "cifar10_small", results)
    suite = results.parent / "tiny.yaml"
    suite.write_text(tiny_suite)
    bench.run_suite(bench.load_suite(str(suite)), results=results)
    with bench.Store.of(results) as store:
        for folder in run_folders(results):
            store.ingest(folder)
    return results


@pytest.fixture
def store(results):
    with bench.Store.of(results) as store:
        yield store


def tiny_folder(results):
    return next(folder for folder in run_folders(results) if folder.cell()["cell"]["suite"] == "tiny")


def test_the_page_of_the_docs_is_a_session_that_works(results, monkeypatch):
    monkeypatch.chdir(results.parent)
    outcome = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False, verbose=False)
    assert outcome.attempted > 20
    assert outcome.failed == 0


def test_results_are_the_outcomes_on_disk(store, results):
    table = bench.results_frame(store)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == frames.RESULTS
    rows = {(row.run, row.checkpoint, row.attack_key): row for row in table.itertuples()}
    count = 0
    for folder in run_folders(results):
        for (checkpoint, key), record in folder.read_outcomes().items():
            row = rows[folder.path.name, checkpoint, key]
            assert (row.images, row.attack, row.attack_seconds) == (record["count"], record["title"], record["seconds"])
            assert row.accuracy == row.correct / row.images
            count += 1
    assert count == len(table) > 70


def test_curves_are_the_epochs_on_disk(store, results):
    table = bench.curves_frame(store)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == frames.CURVES
    for folder in run_folders(results):
        rows = table[table.run == folder.path.name]
        records = folder.epochs()
        assert rows.epoch.to_list() == [record["epoch"] for record in records]
        assert rows.validation_robust.to_list() == [record["validation"]["robust"] for record in records]
        assert rows.train_loss.to_list() == [record["train"]["loss"] for record in records]


def test_outcomes_add_up_to_the_accuracies(store):
    table, images = bench.results_frame(store), bench.outcomes_frame(store)
    assert {name: str(kind) for name, kind in images.dtypes.items()} == frames.OUTCOMES
    keys = ["run", "checkpoint", "attack_key"]
    accuracy = images.groupby(keys).correct.mean()
    assert np.array_equal(accuracy, table.set_index(keys).accuracy.sort_index())
    assert images.groupby(keys).image.max().add(1).to_list() == table.set_index(keys).images.sort_index().to_list()
    only = bench.outcomes_frame(store, checkpoint="last", attack="PGD-20")
    assert set(only.checkpoint) == {"last"}
    assert set(only.attack) == {"PGD-20"}


def test_a_suite_selects_its_own_cells(store, results):
    suite = bench.load_suite(str(results.parent / "tiny.yaml"))
    assert set(bench.results_frame(store, suite).suite) == {"tiny"}
    assert len(bench.curves_frame(store, suite)) == 2
    assert set(bench.outcomes_frame(store, suite).suite) == {"tiny"}


def test_an_empty_store_gives_empty_frames_with_the_same_columns():
    with bench.Store("sqlite:///:memory:") as store:
        for frame, columns in (
            (bench.results_frame(store), frames.RESULTS),
            (bench.curves_frame(store), frames.CURVES),
            (bench.outcomes_frame(store), frames.OUTCOMES),
        ):
            assert len(frame) == 0
            assert {name: str(kind) for name, kind in frame.dtypes.items()} == columns


def test_a_network_gives_the_stored_outcomes(store, results):
    folder = tiny_folder(results)
    suite = bench.load_suite(str(results.parent / "tiny.yaml"))
    test = dataset_of(suite.suite.protocol.dataset).splits(None).test
    stored = bench.outcomes_frame(store, suite, checkpoint="last", attack="Clean").correct
    for run in (folder.path, folder.path.name[:15], folder.cell()["fingerprint"][:20]):
        network = bench.load_network(run, "last", results=results)
        logits = network(to_float(test.pixels))
        assert (logits.argmax(1) == test.labels).tolist() == stored.to_list()
    assert not network.training
    assert not logits.requires_grad


def test_the_weights_are_those_of_the_checkpoint(results):
    folder = tiny_folder(results)
    weights = Checkpoints(folder.checkpoints).load("best")
    state = bench.load_network(folder.path).state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_what_cannot_be_loaded_is_named(results, tmp_path):
    folder = tiny_folder(results)
    with pytest.raises(bench.NothingMeasured, match="no run in .* begins with 'nothing'"):
        bench.load_network("nothing", results=results)
    with pytest.raises(bench.BenchError, match="'pgd-at' is the beginning of several runs"):
        bench.load_network("pgd-at", results=results)
    with pytest.raises(bench.BenchError, match="has no checkpoint 'first'; it has best, best_on_test, last"):
        bench.load_network(folder.path, "first")
    copy = tmp_path / "runs" / "copy"
    shutil.copytree(folder.path, copy)
    next(copy.glob("checkpoints/weights-*.safetensors")).write_bytes(b"damaged")
    name = "last"
    (copy / "checkpoints" / Checkpoints(RunFolder(copy).checkpoints).entries[name].file).write_bytes(b"damaged")
    with pytest.raises(bench.DamagedFile, match="not match its SHA-256"):
        bench.load_network(copy, name)
