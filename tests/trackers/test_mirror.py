"""A tracker has each epoch of a run once, whatever happened to the run and to earlier processes."""

import json
import shutil
from pathlib import Path

import pytest

from bench.attacks.outcome import Outcome
from bench.errors import BenchError, DamagedFile
from bench.registry import TRACKERS
from bench.storage.run_folder import CellStatus
from bench.trackers.content import final_metrics
from bench.trackers.mirror import Mirror, export_runs
from bench.trackers.tracker import TrackedRun
from bench.utils.files import write_record

from .conftest import curve


@pytest.fixture
def mirror(memory, tmp_path):
    return lambda: Mirror("memory", tmp_path / "trackers")


@pytest.fixture
def unfinished(folder):
    """The run folder in its first epoch; call the function to finish it."""
    epochs, result = folder.epochs(), folder.result()

    def finish():
        folder.replace_epochs(epochs)
        folder.finish(CellStatus(result.pop("status")), **result)

    folder.reopen()
    folder.replace_epochs(epochs[:1])
    return finish


def recorded(tracker):
    metrics = {}
    for epoch, values in tracker.epochs:
        for name, value in values.items():
            metrics.setdefault(name, []).append((epoch, value))
    return metrics


def the_only(memory):
    ((records,),) = memory.records.values()
    return records


def test_a_run_is_recorded_while_it_runs_and_when_it_ends(mirror, memory, folder, unfinished):
    live = mirror()
    live.update(folder)
    assert len(the_only(memory).epochs) == 1
    live.update(folder)
    unfinished()
    for again in (live, live, mirror()):
        again.update(folder)
    tracker = the_only(memory)
    assert recorded(tracker) == curve(folder)
    assert tracker.run.name == "PGD-AT seed 0"
    assert tracker.run.experiment == f"tiny-{folder.cell()['protocol_fingerprint'][:12]}"
    assert (
        tracker.run.params.items() >= {"seed": 0, "method": "pgd_at", "threat.eps": 0.15, "training.epochs": 2}.items()
    )
    status, epoch, metrics, (picture,) = tracker.end
    assert (status, epoch) == ("finished", 1)
    assert metrics["final/train_seconds"] == folder.result()["train_seconds"]
    for (checkpoint, _), record in folder.read_outcomes().items():
        assert metrics[f"final/{checkpoint}/{record['title']}"] == Outcome.from_record(record).accuracy
    assert picture.pixels.shape == (2 * 66 + 2, 8 * 66 + 2, 3)
    assert picture.caption.startswith("Test images (above) and under PGD-3 (below).")


def test_another_process_records_an_interrupted_run_again(mirror, memory, folder, unfinished):
    first = mirror()
    first.update(folder)
    first.close()
    unfinished()
    mirror().update(folder)
    ((interrupted, whole),) = memory.records.values()
    assert interrupted.end == ("interrupted", 0, {}, [])
    assert recorded(whole) == curve(folder)


def test_training_that_went_back_an_epoch_is_recorded_again(mirror, memory, folder, unfinished):
    live = mirror()
    live.update(folder)
    folder.replace_epochs([record | {"lr": 0.5} for record in folder.epochs()])
    live.update(folder)
    ((before, after),) = memory.records.values()
    assert before.end[0] == "interrupted"
    assert recorded(after) == curve(folder)
    assert after.end is None


def test_the_line_of_an_epoch_that_is_being_written_waits(mirror, memory, folder, unfinished):
    live, file = mirror(), folder.path / "epochs.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"epoch": 1, "lr"')
    with pytest.raises(DamagedFile):
        live.update(folder)
    file.write_text(whole)
    live.update(folder)
    assert recorded(the_only(memory)) == curve(folder)


def test_attacks_with_the_same_title_have_different_names(folder):
    (path,) = folder.outcomes.glob("last.pgd-*.json")
    shutil.copy(path, path.with_name("last.pgd-other.json"))
    record = folder.read_outcomes()["last", "pgd-other"]
    write_record(path.with_name("last.pgd-other.json"), record | {"attack": record["attack"] | {"eps": 8 / 255}})
    assert {"final/last/PGD-3 eps 0.15", "final/last/PGD-3 eps 0.03137"} <= final_metrics(folder).keys()


def test_a_run_without_weights_is_recorded_without_examples(mirror, memory, folder, caplog):
    shutil.rmtree(folder.checkpoints)
    mirror().update(folder)
    assert the_only(memory).end[3] == []
    assert f"no adversarial examples of {folder.path.name}: " in caplog.text


def test_an_export_replaces_earlier_records_and_names_what_fails(memory, folder, tmp_path, monkeypatch):
    for _ in range(2):
        assert list(export_runs([folder], ["memory", "memory"], tmp_path)) == [("memory", folder)]
    ((first, second),) = memory.records.values()
    assert first.epochs == second.epochs
    monkeypatch.setattr(memory, "log", lambda *_: 1 / 0)
    with pytest.raises(BenchError, match="tracker 'memory': ZeroDivisionError: division by zero"):
        list(export_runs([folder], ["memory"], tmp_path))


def test_built_in_trackers_are_registered():
    assert {"tensorboard", "mlflow", "wandb"} <= set(TRACKERS.names())


def test_the_documented_tracker_records_a_run(folder, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text()
    module = {}
    exec(page.partition("```python\n")[2].partition("```")[0], module)
    TRACKERS.add("mine", module["MyTracker"])
    list(export_runs([folder], ["mine"], tmp_path))
    params, *epochs, last = map(json.loads, next(tmp_path.glob("mine/*.jsonl")).read_text().splitlines())
    assert params["threat.eps"] == 0.15
    assert [(record["epoch"], record["train/loss"]) for record in epochs] == curve(folder)["train/loss"]
    assert (last["epoch"], last["status"]) == (1, "finished")


def test_texts_of_a_run_folder_from_elsewhere_are_no_paths(folder):
    record = folder.cell()
    record["cell"]["suite"], record["fingerprint"] = "../../etc", "*"
    run = TrackedRun.of(record)
    assert run.experiment == f"------etc-{record['protocol_fingerprint'][:12]}"
    assert run.fingerprint == folder.cell()["fingerprint"]
