"""The images of a run are on its record, and nothing goes on with others."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from bench.cli.doctor import diagnose
from bench.config.cell import ExternalModel
from bench.errors import BenchError
from bench.execution import worker
from bench.execution.external_evaluation import evaluate_network
from bench.execution.plan import Rerun, plan
from bench.execution.worker import Job, execute
from bench.storage.run_folder import RunFolder
from bench.utils.files import read_record, write_record

SUITE = """\
name: own
dataset: {name: npz, validation: 20, files: {path: d.npz, classes: 2, shape: [1, 8, 8]}}
model: small_cnn
threat: {norm: linf, eps: 0.1}
training: {epochs: 1, batch_size: 20, attack: {name: pgd, steps: 1, step_size: 0.05}}
evaluation: {track: {attack: {name: pgd, steps: 1, step_size: 0.05}}, final: [clean]}
methods: [pgd_at]
"""


def write(root, **changes):
    """Write the same images, or with the arrays in `changes` instead, in a file of the same size and time."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (80, 8, 8), np.uint8), np.arange(80) % 2
    arrays = {"x_train": pixels[:60], "y_train": labels[:60], "x_test": pixels[60:], "y_test": labels[60:]}
    root.mkdir(exist_ok=True)
    np.savez(root / "d.npz", **arrays | changes)
    os.utime(root / "d.npz", (1, 1))


OTHER_TEST = {"y_test": 1 - np.arange(20) % 2}
OTHER_TRAINING = {"y_train": 1 - np.arange(60) % 2}


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(load, root, tmp_path):
    """A finished cell and its folder."""
    (cell,) = load(SUITE).cells
    assert execute(job_of(cell, tmp_path, root)) == "finished"
    return cell, RunFolder.of(cell, tmp_path)


def job_of(cell, results, root):
    return Job(cell, results, ("cpu",), root, 1)


def recorded(folder):
    return folder.cell()["environment"]["data"]


def unfinish(folder):
    """Make a finished run one that was interrupted before its evaluation."""
    (folder.path / "done.json").unlink()
    for outcome in folder.outcomes.iterdir():
        outcome.unlink()


def test_a_finished_run_says_what_it_used_and_is_not_taken_for_one_of_other_images(run, root, tmp_path):
    cell, folder = run
    assert sorted(recorded(folder)) == ["files", "test", "training"]
    for changes, part in ((OTHER_TEST, "test images"), (OTHER_TRAINING, "training images")):
        write(root, **changes)
        with pytest.raises(BenchError, match=rf"^{folder.path} used other data than those present: {part} \([^)]*\);"):
            plan([cell], tmp_path, data=root)
        assert plan([cell], tmp_path, Rerun.ALL, data=root)[0].action == "restart"
    write(root)  # the same images in a new file
    assert plan([cell], tmp_path, data=root)[0].action == "skip"
    shutil.rmtree(root)
    assert plan([cell], tmp_path, data=root)[0].action == "skip"  # nothing is there that could be other data


def test_doctor_compares_runs_with_the_images_that_are_there(run, root, tmp_path):
    def checks():
        return [(check.ok, check.detail) for check in diagnose(tmp_path, None, root) if check.check == "data"]

    assert checks() == [(True, f"{root}: no run used other images than are there")]
    write(root, **OTHER_TEST)
    ((ok, detail),) = checks()
    assert not ok
    assert "used other data than those present: test images" in detail
    assert not [check for check in diagnose(tmp_path, None) if check.check == "data"]


def test_images_are_read_again_only_if_the_file_moved(run, root, tmp_path, monkeypatch):
    cell, _ = run
    monkeypatch.setattr("bench.data.dataset.Dataset.splits", None)  # not called
    assert plan([cell], tmp_path, data=root)[0].action == "skip"


def test_an_interrupted_run_does_not_go_on_with_other_images(run, root, tmp_path):
    cell, folder = run
    unfinish(folder)
    write(root, **OTHER_TEST)
    with pytest.raises(BenchError, match="used other data"):
        plan([cell], tmp_path, data=root)
    assert execute(job_of(cell, tmp_path, root)) == "failed"  # a worker of another machine may see other files
    assert "used other data than those present: test images" in folder.result()["reason"]
    write(root)
    folder.reopen()
    assert execute(job_of(cell, tmp_path, root)) == "finished"


def test_streamed_images_must_not_change_meanwhile(load, tmp_path, monkeypatch):
    for part in ("train", "test"):
        for index in range(40):
            path = tmp_path / "data" / "mine" / part / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), index).save(path)

    def evaluate(*arguments, **settings):
        real(*arguments, **settings)
        Image.new("L", (8, 8), 200).save(path)

    real = worker.evaluate_checkpoints
    monkeypatch.setattr("bench.data.dataset.LARGE_PIXELS", 1)
    (cell,) = load(SUITE.replace("name: npz", "name: image_folder").replace("d.npz", "mine")).cells
    assert execute(job_of(cell, tmp_path / "still", tmp_path / "data")) == "finished"
    monkeypatch.setattr(worker, "evaluate_checkpoints", evaluate)
    assert execute(job_of(cell, tmp_path / "moved", tmp_path / "data")) == "failed"
    assert "used other data than those present" in RunFolder.of(cell, tmp_path / "moved").result()["reason"]


def test_training_on_other_images_is_not_reused(run, load, root, tmp_path):
    more = load(SUITE.replace("final: [clean]", "final: [clean, fgsm]")).cells[0]
    assert more.training_fingerprint == run[0].training_fingerprint
    reused = tmp_path / "copy"
    shutil.copytree(tmp_path / "runs", reused / "runs")
    assert execute(job_of(more, reused, root)) == "finished"
    write(root, **OTHER_TRAINING)
    assert execute(job_of(more, tmp_path, root)) == "finished"
    same, other = (RunFolder.of(more, results) for results in (reused, tmp_path))
    assert same.epochs() == run[1].epochs()
    assert other.epochs() != run[1].epochs()
    assert recorded(other)["training"] != recorded(same)["training"] == recorded(run[1])["training"]


def test_the_images_of_older_runs_stay_unknown(run, root, tmp_path):
    cell, folder = run
    record = read_record(folder.path / "cell.json")
    del record["environment"]["data"]
    write_record(folder.path / "cell.json", record)
    write(root, **OTHER_TEST)
    assert plan([cell], tmp_path, data=root)[0].action == "skip"
    unfinish(folder)
    assert execute(job_of(cell, tmp_path, root)) == "finished"
    assert "data" not in folder.cell()["environment"]  # its training may have used any


def test_an_external_model_is_evaluated_before_only_on_the_same_test_images(run, load, root, tmp_path):
    weights = next(run[1].checkpoints.glob("weights-*.safetensors"))
    loaded, network = load(SUITE), ExternalModel(source=str(weights), normalisation="dataset")

    def evaluate():
        return evaluate_network(loaded, network, "mine", results=tmp_path, data=root)

    state = evaluate()
    assert state.status == "finished", state.reason
    assert sorted(recorded(state.folder)) == ["files", "test"]
    write(root, **OTHER_TRAINING)
    assert evaluate().action == "skip"
    write(root, **OTHER_TEST)
    with pytest.raises(BenchError, match=r"used other data than those present: test images .*; restore that data"):
        evaluate()
