"""One cell, from request to `done.json`: what it leaves, what it skips, how it fails."""

import json

import numpy as np
import pytest
from safetensors.torch import save_file

from bench.data.digits import digits
from bench.errors import DamagedFile
from bench.execution import worker
from bench.execution.worker import Job, adopt_training, attack_key, execute
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.outcome import Outcome
from bench.run_folder import RunFolder
from bench.training.checkpoint import Checkpoints


def job_of(cell, results):
    return Job(cell, results, "cpu", None, 1)


@pytest.fixture
def cell(load):
    return load().cells[0]


@pytest.fixture
def finished(cell, tmp_path):
    assert execute(job_of(cell, tmp_path)) == "finished"
    return RunFolder.of(cell, tmp_path)


def test_a_finished_run_folder_is_complete(cell, finished):
    assert finished.done()["status"] == finished.status() == "finished"
    assert finished.done()["epochs"] == len(finished.epochs()) == 2
    assert finished.cell()["fingerprint"] == cell.fingerprint
    assert finished.cell()["environment"]["threads"] == 1
    checkpoints = Checkpoints(finished.checkpoints)
    assert checkpoints.finished
    assert set(checkpoints.entries) == {"best", "best_on_test", "last"}
    outcomes = finished.read_outcomes()
    keys = {attack_key(attack, cell) for attack in cell.protocol.evaluation.final}
    assert set(outcomes) == {(name, key) for name in checkpoints.entries for key in keys}
    for (name, _), record in outcomes.items():
        assert record["weights_sha256"] == checkpoints.entries[name].sha256
        assert record["count"] == 500
    assert not finished.partial.exists()


def test_the_outcome_of_the_last_checkpoint_is_its_tracked_accuracy(finished):
    """Two ways to the same number: tracking after the last epoch, and the clean outcome of `last`."""
    outcomes = finished.read_outcomes().items()
    clean = next(record for (name, key), record in outcomes if name == "last" and key.startswith("clean"))
    assert clean["right"] / clean["count"] == pytest.approx(finished.epochs()[-1]["test"]["clean"])


def test_nothing_is_done_twice(cell, finished, tmp_path, monkeypatch):
    def fail(*_arguments, **_settings):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(worker, "evaluate", fail)
    monkeypatch.setattr("bench.training.trainer.train_step", fail)
    before = {path: path.stat().st_mtime_ns for path in finished.outcomes.iterdir()}
    assert execute(job_of(cell, tmp_path)) == "finished"
    assert {path: path.stat().st_mtime_ns for path in finished.outcomes.iterdir()} == before


def test_equal_weights_are_judged_once(load, tmp_path, monkeypatch):
    judged = []
    real = worker.evaluate
    monkeypatch.setattr(worker, "evaluate", lambda *a, **k: judged.append(a[1]) or real(*a, **k))
    one_epoch = load({"epochs: 2": "epochs: 1"}).cells[0]
    assert execute(job_of(one_epoch, tmp_path)) == "finished"
    assert len(judged) == 2, "best, best_on_test and last are the same epoch; two attacks"
    assert len(RunFolder.of(one_epoch, tmp_path).read_outcomes()) == 6


def test_a_nan_loss_is_a_result(load, tmp_path):
    cell = load({"batch_size: 64": "batch_size: 64\n  optimizer: {lr: 1e30}"}).cells[0]
    assert execute(job_of(cell, tmp_path)) == "diverged"
    done = RunFolder.of(cell, tmp_path).done()
    assert (done["status"], done["epoch"]) == ("diverged", 0)
    assert "epoch 0" in done["reason"]


def test_any_other_error_fails_the_cell_with_its_reason(cell, tmp_path, monkeypatch):
    def broken(*_arguments, **_settings):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(worker, "evaluate", broken)
    assert execute(job_of(cell, tmp_path)) == "failed"
    folder = RunFolder.of(cell, tmp_path)
    assert folder.done()["reason"] == "RuntimeError: out of luck"
    monkeypatch.undo()
    folder.reopen()
    assert execute(job_of(cell, tmp_path)) == "finished"


def test_a_damaged_checkpoint_is_not_evaluated(cell, finished, tmp_path):
    entry = Checkpoints(finished.checkpoints).entries["last"]
    path = finished.checkpoints / entry.file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for outcome in finished.outcomes.iterdir():
        outcome.unlink()
    finished.reopen()
    assert execute(job_of(cell, tmp_path)) == "failed"
    assert entry.file in finished.done()["reason"]
    assert DamagedFile.__name__ in finished.done()["reason"]


def test_another_final_attack_retrains_nothing(load, cell, finished, tmp_path, monkeypatch):
    more = load({"steps: 3, step_size: 0.05}]": "steps: 3, step_size: 0.05}, {name: pgd, steps: 5}]"}).cells[0]
    assert more.fingerprint != cell.fingerprint
    assert more.training_fingerprint == cell.training_fingerprint
    folder, judged, real = RunFolder.of(more, tmp_path), [], worker.evaluate

    def counted(*arguments, **settings):
        judged.append(arguments[3])
        return real(*arguments, **settings)

    def fail(*_arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(worker, "evaluate", counted)
    monkeypatch.setattr("bench.training.trainer.train_step", fail)
    assert execute(job_of(more, tmp_path)) == "finished"
    assert {attack.steps for attack in judged} == {5}, "the other attacks' outcomes came along"
    assert folder.epochs() == finished.epochs()
    assert Checkpoints(folder.checkpoints).entries == Checkpoints(finished.checkpoints).entries


def test_a_damaged_donor_is_passed_over(load, finished, tmp_path):
    more = load({"steps: 3, step_size: 0.05}]": "steps: 3, step_size: 0.05}, {name: pgd, steps: 5}]"}).cells[0]
    (finished.checkpoints / "index.json").write_text("{}")
    folder = RunFolder.of(more, tmp_path)
    folder.begin(more, {})
    adopt_training(more, folder)
    assert not (folder.checkpoints / "index.json").exists()


def test_autoattack_continues_where_it_was_killed(load, tmp_path, monkeypatch):
    final = "[clean, {name: pgd, steps: 3, step_size: 0.05}]"
    cell = load({final: "[{name: autoattack, images: 12, batch_size: 5}]", "epochs: 2": "epochs: 1"}).cells[0]
    assert execute(job_of(cell, tmp_path / "whole")) == "finished"

    class Killed(BaseException):
        pass

    real, places = worker.write_record, []

    def until_third(path, content):
        real(path, content)
        if path.parent.name == "partial":
            places.append(json.loads(path.read_text())["content"])
            if len(places) == 3:
                raise Killed

    monkeypatch.setattr(worker, "write_record", until_third)
    with pytest.raises(Killed):
        execute(job_of(cell, tmp_path / "killed"))
    assert execute(job_of(cell, tmp_path / "killed")) == "finished"
    assert len({(place["attack"], place["batch"]) for place in places}) == len(places), "a batch was attacked twice"
    whole, killed = (RunFolder.of(cell, tmp_path / name).read_outcomes() for name in ("whole", "killed"))
    for key, record in whole.items():
        one, other = Outcome.from_record(record), Outcome.from_record(killed[key])
        np.testing.assert_array_equal(one.correct, other.correct)
        assert one.detail == other.detail


def test_initial_weights_are_needed_for_the_start_alone(load, tmp_path):
    save_file(build_network(small_cnn, digits, seed=1).state_dict(), tmp_path / "w.safetensors")
    row = f"methods: [{{name: aft, params: {{finetuning: 1, initial_weights: {tmp_path / 'w.safetensors'}}}}}]"
    (cell,) = load({"methods: [pgd_at]": row}).cells
    assert execute(job_of(cell, tmp_path)) == "finished"
    (tmp_path / "w.safetensors").unlink()
    folder = RunFolder.of(cell, tmp_path)
    before = folder.read_outcomes()
    for outcome in folder.outcomes.iterdir():
        outcome.unlink()
    folder.reopen()
    assert execute(job_of(cell, tmp_path)) == "finished"
    assert {key: record["correct"] for key, record in folder.read_outcomes().items()} == {
        key: record["correct"] for key, record in before.items()
    }


def test_damaged_weights_are_not_taken_over(load, finished, tmp_path):
    more = load({"steps: 3, step_size: 0.05}]": "steps: 3, step_size: 0.05}, {name: pgd, steps: 5}]"}).cells[0]
    path = finished.checkpoints / Checkpoints(finished.checkpoints).entries["last"].file
    path.write_bytes(path.read_bytes()[:-1])
    assert execute(job_of(more, tmp_path)) == "finished"
    assert len(RunFolder.of(more, tmp_path).epochs()) == 2
