"""One cell, from request to `done.json`: what it leaves, what it skips, how it fails."""

import errno
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.attacks.identity import attack_key
from bench.attacks.outcome import Outcome
from bench.config.attacks import STANDARD
from bench.data.dataset import dataset_of
from bench.data.datasets.digits import digits
from bench.errors import BenchError, DamagedFile
from bench.execution import final_evaluation, worker
from bench.execution.plan import Rerun, plan
from bench.execution.worker import Job, WorkerLost, execute, reuse_training, work
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.registry import METHODS
from bench.reporting.frames import curves_frame, outcomes_frame
from bench.reporting.leaderboard import leaderboards
from bench.reporting.notes import notes
from bench.reporting.plots.data import figures
from bench.reporting.plots.render import render
from bench.storage import run_folder
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder
from bench.storage.store import Store
from bench.storage.verify import folder_damage
from bench.testing.conformance import curve
from bench.training.trainer import Trainer
from bench.utils.files import read_record, write_record


def job_of(cell, results):
    return Job(cell, results, ("cpu",), None, 1)


@pytest.fixture
def cell(load):
    return load().cells[0]


@pytest.fixture
def finished(cell, tmp_path):
    assert execute(job_of(cell, tmp_path)) == "finished"
    return RunFolder.of(cell, tmp_path)


def test_a_finished_run_folder_is_complete(cell, finished):
    assert finished.result()["status"] == finished.status() == "finished"
    assert finished.result()["epochs"] == len(finished.epochs()) == 2
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

    monkeypatch.setattr(final_evaluation, "evaluate", fail)
    monkeypatch.setattr("bench.training.step.train_step", fail)
    before = {path: path.stat().st_mtime_ns for path in finished.outcomes.iterdir()}
    assert execute(job_of(cell, tmp_path)) == "finished"
    assert {path: path.stat().st_mtime_ns for path in finished.outcomes.iterdir()} == before


def test_joint_comes_from_stored_outcomes_and_corruptions_are_a_column(load, copy_of_results, monkeypatch):
    """Nothing but the new attack is run, and `joint` may stand before what it combines."""
    judged = []
    real = final_evaluation.evaluate
    monkeypatch.setattr(final_evaluation, "evaluate", lambda *a, **k: judged.append(a[3].title) or real(*a, **k))
    corrupted = "{name: corruptions, severity: 5, kinds: [contrast, impulse_noise]}"
    new = "{name: fgsm, images: 100, threat: {norm: l2, eps: 0.3}}"
    more = load({"[clean,": f"[joint, {corrupted}, clean, {new},"}).cells[0]
    assert execute(job_of(more, copy_of_results)) == "finished"
    assert set(judged) == {"FGSM (L2 0.3)"}
    folder = RunFolder.of(more, copy_of_results)
    last = {key.partition("-")[0]: record for (name, key), record in folder.read_outcomes().items() if name == "last"}
    assert set(last) == {"joint", "corruptions", "clean", "fgsm", "pgd"}
    assert last["joint"]["count"] == 100
    assert last["joint"]["right"] <= min(last["fgsm"]["right"], last["pgd"]["right"])
    assert sum(right for right, _ in last["joint"]["detail"]["per_class"]) == last["joint"]["right"]
    assert (last["corruptions"]["count"], last["clean"]["count"]) == (1000, 500)
    with Store.of(copy_of_results) as store:
        store.ingest(folder)
        (board,) = [board for board in leaderboards(store) if len(board.attacks) == 5]
        shown, outcomes = store.show_run(folder.path.name), outcomes_frame(store, checkpoint="last")
    titles = ["Joint", "Corruptions (severity 5)", "Clean", "FGSM (L2 0.3)", "PGD-3"]
    assert [attack.title for attack in board.attacks] == titles
    assert (board.attacks[0].balanced_subset, board.attacks[1].images, board.ranked_by) == (True, 500, 4)
    corrupted = outcomes[outcomes.attack == titles[1]]
    assert "Corruptions (severity 5) 500 (the mean over 2 versions of each image)" in notes(board)[1]
    assert corrupted.groupby("image").size().to_list() == 500 * [2]
    of_version = [row for row in shown["corruptions"] if row["checkpoint"] == "last"]
    assert [row["version"] for row in of_version] == ["contrast 5", "impulse_noise 5"]
    assert corrupted.groupby("version").correct.mean().to_list() == [row["accuracy"] for row in of_version]
    assert all(0.1 < row["accuracy"] < last["clean"]["right"] / 500 for row in of_version)
    figure = board.rows[0].figures[1].last
    shares = corrupted.groupby("image").correct.mean()
    reach = 1.959964 * shares.std() / 500**0.5
    assert figure.interval == pytest.approx((shares.mean() - reach, shares.mean() + reach))
    assert len(shown["per_class"]) == 10 * len({name for name, _ in folder.read_outcomes()})
    (third,) = [row for row in shown["per_class"] if (row["checkpoint"], row["class"]) == ("last", 3)]
    key = next(key for (name, key) in folder.read_outcomes() if (name, key[:5]) == ("last", "joint"))
    assert third[key] == last["joint"]["detail"]["per_class"][3][0] / 10


def test_equal_weights_are_judged_once(load, tmp_path, monkeypatch):
    judged = []
    real = final_evaluation.evaluate
    monkeypatch.setattr(final_evaluation, "evaluate", lambda *a, **k: judged.append(a[1]) or real(*a, **k))
    one_epoch = load({"epochs: 2": "epochs: 1"}).cells[0]
    assert execute(job_of(one_epoch, tmp_path)) == "finished"
    assert len(judged) == 2, "best, best_on_test and last are the same epoch; two attacks"
    assert len(RunFolder.of(one_epoch, tmp_path).read_outcomes()) == 6


def test_without_held_out_images_the_test_images_select_best(load, tmp_path, monkeypatch):
    exact = []
    real = Trainer.begin_epoch
    monkeypatch.setattr(Trainer, "begin_epoch", lambda *a: exact.append(torch.backends.cudnn.allow_tf32) or real(*a))
    loaded = load({"validation: 200": "validation: none", "batch_size: 64": "batch_size: 64\n  tf32: false"})
    assert execute(job_of(loaded.cells[0], tmp_path)) == "finished"
    folder = RunFolder.of(loaded.cells[0], tmp_path)
    assert all(record["validation"] == record["test"] is not None for record in folder.epochs())
    entries = Checkpoints(folder.checkpoints).entries
    assert entries["best"] == entries["best_on_test"]
    assert (exact, torch.backends.cudnn.allow_tf32) == ([False, False], True)


def test_a_nan_loss_is_a_result(load, tmp_path):
    cell = load({"batch_size: 64": "batch_size: 64\n  optimizer: {lr: 1e30}"}).cells[0]
    assert execute(job_of(cell, tmp_path)) == "diverged"
    done = RunFolder.of(cell, tmp_path).result()
    assert (done["status"], done["epoch"]) == ("diverged", 0)
    assert "epoch 0" in done["reason"]


def test_any_other_error_fails_the_cell_with_its_reason(cell, tmp_path, monkeypatch):
    def broken(*_arguments, **_settings):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(final_evaluation, "evaluate", broken)
    assert execute(job_of(cell, tmp_path)) == "failed"
    folder = RunFolder.of(cell, tmp_path)
    assert folder.result()["reason"] == "RuntimeError: out of luck"
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
    assert entry.file in finished.result()["reason"]
    assert DamagedFile.__name__ in finished.result()["reason"]


def test_another_final_attack_retrains_nothing(load, cell, finished, tmp_path, monkeypatch):
    more = load({"steps: 3, step_size: 0.05}]": "steps: 3, step_size: 0.05}, {name: pgd, steps: 5}]"}).cells[0]
    assert more.fingerprint != cell.fingerprint
    assert more.training_fingerprint == cell.training_fingerprint
    folder, judged, real = RunFolder.of(more, tmp_path), [], final_evaluation.evaluate

    def counted(*arguments, **settings):
        judged.append(arguments[3])
        return real(*arguments, **settings)

    def fail(*_arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(final_evaluation, "evaluate", counted)
    monkeypatch.setattr("bench.training.step.train_step", fail)
    assert execute(job_of(more, tmp_path)) == "finished"
    assert {attack.steps for attack in judged} == {5}, "the other attacks' outcomes came along"
    assert folder.epochs() == finished.epochs()
    assert Checkpoints(folder.checkpoints).entries == Checkpoints(finished.checkpoints).entries


def test_a_damaged_donor_is_passed_over(load, finished, tmp_path):
    more = load({"steps: 3, step_size: 0.05}]": "steps: 3, step_size: 0.05}, {name: pgd, steps: 5}]"}).cells[0]
    (finished.checkpoints / "index.json").write_text("{}")
    folder = RunFolder.of(more, tmp_path)
    folder.begin(more, {})
    reuse_training(more, folder, finished.cell()["environment"]["data"])
    assert not (folder.checkpoints / "index.json").exists()


@pytest.mark.parametrize("attacks", ["[apgd-ce, apgd-t]", pytest.param(str([*STANDARD]), marks=pytest.mark.slow)])
def test_autoattack_continues_where_it_was_killed(load, tmp_path, monkeypatch, attacks):
    final = "[clean, {name: pgd, steps: 3, step_size: 0.05}]"
    cell = load(
        {final: f"[{{name: autoattack, images: 12, batch_size: 3, attacks: {attacks}}}]", "epochs: 2": "epochs: 1"}
    ).cells[0]
    assert execute(job_of(cell, tmp_path / "whole")) == "finished"

    class Killed(BaseException):
        pass

    real, places = final_evaluation.write_record, []

    def until_third(path, content):
        real(path, content)
        if path.parent.name == "partial":
            places.append(json.loads(path.read_text())["content"])
            if len(places) == 3:
                raise Killed

    monkeypatch.setattr(final_evaluation, "write_record", until_third)
    with pytest.raises(Killed):
        execute(job_of(cell, tmp_path / "killed"))
    assert execute(job_of(cell, tmp_path / "killed")) == "finished"
    begun = {(place["attack"], place["done"], place["batch_size"]) for place in places}
    assert len(begun) == len(places) > 3, "a batch was attacked twice"
    assert {place["batch_size"] for place in places} == {3}
    whole, killed = (RunFolder.of(cell, tmp_path / name).read_outcomes() for name in ("whole", "killed"))
    for key, record in whole.items():
        one, other = Outcome.from_record(record), Outcome.from_record(killed[key])
        np.testing.assert_array_equal(one.correct, other.correct)
        assert one.detail == other.detail


def test_progress_says_which_share_of_the_images_still_stands(load, tmp_path, monkeypatch):
    final = "[clean, {name: pgd, steps: 3, step_size: 0.05}]"
    attacks = "[{name: pgd, steps: 1}, {name: autoattack, images: 12, batch_size: 5, attacks: [apgd-ce]}]"
    cell = load({final: attacks, "epochs: 2": "epochs: 1"}).cells[0]
    monkeypatch.setattr(run_folder, "PROGRESS_SECONDS", 0.0)
    real, said = RunFolder.progress, []

    def progress(folder, **state):
        real(folder, **state)
        said.append(folder.read_progress())

    monkeypatch.setattr(RunFolder, "progress", progress)
    assert execute(job_of(cell, tmp_path)) == "finished"
    judging = [state for state in said if state["phase"] == "evaluation"]
    assert {state["robust"] for state in judging if state["attack"] == "PGD-1"} == {None}
    assert not any("at_most" in state for state in judging), "no preview was asked for"
    cascade = [state["robust"] for state in judging if state["attack"] == "AutoAttack (apgd-ce)"]
    shares = [share for share in cascade if share is not None]
    assert cascade[0] is None, "it says what it begins before it has judged anything"
    (outcome,) = [
        Outcome.from_record(record)
        for (checkpoint, key), record in RunFolder.of(cell, tmp_path).read_outcomes().items()
        if checkpoint == "best" and key.startswith("autoattack")
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] >= shares[-1] == outcome.accuracy


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


def test_training_of_other_code_is_not_reused(load, finished, tmp_path):
    more = load({"steps: 3, step_size: 0.05}]": "steps: 3, step_size: 0.05}, {name: pgd, steps: 5}]"}).cells[0]
    record = read_record(finished.path / "cell.json")
    other = {"plugins": {"method pgd_at": "a" * 64}}
    for changes in (other, {"code": "a" * 64}, {"code": None}):  # by another plug-in, other code, or unknown code
        record["environment"].update(changes)
        write_record(finished.path / "cell.json", record)
        folder = RunFolder.of(more, tmp_path)
        reuse_training(more, folder, record["environment"]["data"])
        assert not folder.checkpoints.exists()


def test_a_worker_with_other_code_than_its_driver_does_nothing(load, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # of this process
    status, reason = work(replace(job_of(load().cells[0], tmp_path), code="a" * 64))
    assert status == "failed"
    assert reason.startswith("the worker imports other code than the driver")
    assert not (tmp_path / "runs").exists()


def test_a_worker_with_another_plugin_than_its_driver_does_nothing(load, tmp_path):
    job = job_of(load().cells[0], tmp_path)
    object.__setattr__(job, "plugins", {"method pgd_at": "a" * 64})
    with pytest.raises(BenchError, match="a plug-in has changed since the suite was loaded"):
        execute(job)
    assert job.folder.status() == "new"


def test_some_epochs_are_tracked_and_select_best(load, tmp_path):
    """Interrupted after every epoch or not; methods are asked after tracked epochs, with these alone."""
    asked = []

    class Watched(METHODS.get("pgd_at")):
        def should_stop(self, history):
            asked.append([record["epoch"] for record in history])
            return False

    METHODS.add("watched", Watched)
    changes = {
        "epochs: 2": "epochs: 5\n  schedule: constant",
        "step_size: 0.1}}": "step_size: 0.1}, every: 2, around: 0}",
        "[pgd_at]": "[watched]",
    }
    cell = load(changes).cells[0]
    assert execute(job_of(cell, tmp_path / "whole")) == "finished"
    assert asked == [[1], [1, 3]]
    whole = RunFolder.of(cell, tmp_path / "whole")
    records = whole.epochs()
    assert [record["epoch"] for record in records if record["validation"]] == [1, 3, 4]
    assert all((record["validation"] is None) == (record["test"] is None) for record in records)
    entries = Checkpoints(whole.checkpoints).entries
    best = max((record for record in records if record["validation"]), key=lambda one: one["validation"]["robust"])
    assert (entries["best"].epoch, entries["last"].epoch) == (best["epoch"], 4)
    in_parts = RunFolder.of(cell, tmp_path / "parts")
    in_parts.begin(cell, {})
    splits = dataset_of(cell.protocol.dataset).splits(None)
    for epochs in (1, 2, 3, None):
        Trainer(cell, digits, splits, in_parts, torch.device("cpu")).run(epochs)
    assert curve(in_parts.epochs()) == curve(records)
    assert Checkpoints(in_parts.checkpoints).entries == entries
    with Store.of(tmp_path / "whole") as store:
        store.ingest(whole)
        (board,) = leaderboards(store)
        curves, drawn = curves_frame(store), render(figures(store, board), "curves", "svg")
    assert curves.validation_robust.notna().to_list() == [False, True, False, True, True]
    assert b"validation images" in drawn
    assert "among epochs tracked every 2, around drops and at the end" in notes(board)[0]


# --- damage, and what is not the cell's fault ------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def interrupted(load, tmp_path):
    """A cell of three epochs that was interrupted after the second, and what it comes to undisturbed."""
    cell = load({"epochs: 2": "epochs: 3"}).cells[0]
    assert execute(job_of(cell, tmp_path / "whole")) == "finished"
    folder = RunFolder.of(cell, tmp_path / "cut")
    folder.begin(cell, {})
    splits, device = digits.configured(cell.protocol.dataset).splits(None), torch.device("cpu")
    Trainer(cell, digits, splits, folder, device).run(epochs=2)
    return cell, folder, RunFolder.of(cell, tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("checkpoints/resume-0001.safetensors", "is damaged: its bytes do not match its SHA-256"),
        ("checkpoints/index.json", "is damaged"),
        ("epochs.jsonl", "is damaged: its first 2 lines do not match their SHA-256"),
    ],
)
def test_training_goes_back_one_epoch_where_the_last_is_damaged(interrupted, tmp_path, name, sentence):
    cell, folder, whole = interrupted
    path = folder.path / name
    if name == "epochs.jsonl":
        data = path.read_bytes()
        path.write_bytes(data[:-5] + (b"1" if data[-5:-4] == b"0" else b"0") + data[-4:])
    else:
        flip(path)
    assert execute(job_of(cell, tmp_path / "cut")) == "finished"
    (incident,) = folder.incidents()
    assert f"{path} {sentence}" in incident
    assert incident.endswith("; training went back to the end of epoch 0")
    assert incident in folder.log.read_text()
    assert curve(folder.epochs()) == curve(whole.epochs())
    assert Checkpoints(folder.checkpoints).entries == Checkpoints(whole.checkpoints).entries
    assert folder_damage(folder) == []


def test_with_nothing_to_go_back_to_the_cell_fails_and_can_be_run_anew(interrupted, tmp_path):
    cell, folder, _ = interrupted
    flip(folder.checkpoints / "resume-0001.safetensors")
    flip(folder.checkpoints / "resume-0000.safetensors")
    assert execute(job_of(cell, tmp_path / "cut")) == "failed"
    assert "resume-0001.safetensors is damaged" in folder.result()["reason"]
    assert "`--rerun failed` trains it again" in folder.result()["reason"]
    (planned,) = plan([cell], tmp_path / "cut", Rerun.FAILED)
    assert planned.action == "restart"


def test_a_damaged_outcome_is_judged_again(cell, finished, tmp_path):
    path = sorted(finished.outcomes.iterdir())[0]
    before = finished.read_outcomes()
    flip(path)
    (planned,) = plan([cell], tmp_path, Rerun.FAILED)
    assert planned.action == "resume"
    finished.reopen()
    assert execute(job_of(cell, tmp_path)) == "finished"
    after = finished.read_outcomes()
    assert {key: record["correct"] for key, record in after.items()} == {
        key: record["correct"] for key, record in before.items()
    }
    (incident,) = finished.incidents()
    assert f"{path} is damaged" in incident
    assert incident.endswith("; it was evaluated again")


def test_a_finished_run_is_left_alone_unless_it_is_damaged(cell, finished, tmp_path):
    (planned,) = plan([cell], tmp_path, Rerun.FAILED)
    assert planned.action == "skip"
    flip(finished.checkpoints / Checkpoints(finished.checkpoints).entries["last"].file)
    assert plan([cell], tmp_path)[0].action == "skip", "nobody asked for it"
    assert plan([cell], tmp_path, Rerun.FAILED)[0].action == "restart"


def test_a_run_that_another_process_finished_meanwhile_stays_as_it_is(cell, finished, tmp_path):
    before = (finished.path / "done.json").stat().st_mtime_ns
    assert execute(job_of(cell, tmp_path)) == "finished"
    assert (finished.path / "done.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "error",
    [MemoryError("no"), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x: can't allocate memory: y")],
    ids=["python", "gpu", "cpu"],
)
def test_no_memory_ends_no_cell(cell, tmp_path, monkeypatch, error):
    def greedy(*_arguments):
        raise error

    monkeypatch.setattr("bench.training.step.train_step", greedy)
    with pytest.raises(WorkerLost, match="out of memory: .*; run fewer cells at a time"):
        execute(job_of(cell, tmp_path))
    assert RunFolder.of(cell, tmp_path).status() == "interrupted"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_ends_no_cell(cell, tmp_path, monkeypatch, code):
    """Once the state of training cannot be written, once the curve, once `done.json`; mended, the same cell goes on."""
    folder = RunFolder.of(cell, tmp_path)

    def fail(*_arguments, **_settings):
        raise OSError(code, "it said")

    for owner, name in ((Checkpoints, "write_packed"), (RunFolder, "append_epoch"), (RunFolder, "finish")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(OSError, match="it said"):
                execute(job_of(cell, tmp_path))
        assert folder.status() == "interrupted"
    assert execute(job_of(cell, tmp_path)) == "finished"


def test_the_state_of_training_is_written_while_the_accuracies_are_measured(cell, tmp_path, monkeypatch):
    """The thread waits for the measurement to begin, and an epoch is committed when both have ended."""
    measuring, happened = threading.Event(), []
    write, track, commit = Checkpoints.write_packed, Trainer._track, Checkpoints.commit

    def slow_write(self, stem, epoch, data):
        if stem == "resume":
            assert measuring.wait(60)
        entry = write(self, stem, epoch, data)
        happened.append((stem, epoch))
        return entry

    def noted_track(self, images, purpose):
        measuring.set()
        return track(self, images, purpose)

    def noted_commit(self, entries, finished_epochs, **state):
        happened.append(("commit", finished_epochs - 1))
        commit(self, entries, finished_epochs, **state)

    monkeypatch.setattr(Checkpoints, "write_packed", slow_write)
    monkeypatch.setattr(Trainer, "_track", noted_track)
    monkeypatch.setattr(Checkpoints, "commit", noted_commit)
    assert execute(job_of(cell, tmp_path)) == "finished"
    for epoch in (0, 1):
        assert happened.index(("resume", epoch)) < happened.index(("commit", epoch))
    assert happened.index(("commit", 0)) < happened.index(("resume", 1))


def test_a_failing_measurement_ends_after_the_file_of_the_state(cell, tmp_path, monkeypatch):
    """And not before, when the run folder is no longer locked."""
    written, write = [], Checkpoints.write_packed

    def slow_write(self, stem, epoch, data):
        time.sleep(0.2)
        written.append(write(self, stem, epoch, data).file)

    def fail(*_arguments):
        raise KeyError("no")

    monkeypatch.setattr(Checkpoints, "write_packed", slow_write)
    monkeypatch.setattr(Trainer, "_track", fail)
    assert execute(job_of(cell, tmp_path)) == "failed"
    assert written == ["resume-0000.safetensors"]


def test_a_long_log_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "LOG_BYTES", 10)
    log = tmp_path / "log.txt"
    worker._shorten(log)
    log.write_text("short")
    worker._shorten(log)
    assert log.read_text() == "short"
    log.write_text("0123456789the end")
    worker._shorten(log)
    assert log.read_text() == "789the end"
