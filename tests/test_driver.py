"""The driver: workers as processes, the machine shared out, the store filled, two runs bit-equal."""

import hashlib

import pytest

from bench import driver
from bench.driver import Resources, run_suite, share_out
from bench.errors import BenchError
from bench.execution.plan import Rerun
from bench.run_folder import RunFolder
from bench.store.store import Store
from bench.testing.conformance import curve


def weights(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.checkpoints.glob("*.safetensors")
    }


def test_two_cells_run_side_by_side_and_again_bit_for_bit(load, tmp_path):
    loaded = load(
        {"methods: [pgd_at]": "methods: [pgd_at, early_stopping]", "seeds: [0]": "seeds: [3]\nexecution: {threads: 1}"}
    )
    seen = []
    first = run_suite(
        loaded, results=tmp_path / "a", watch=lambda states: seen.append([state.status for state in states])
    )
    assert [state.status for state in first] == ["finished", "finished"]
    assert ["running", "running"] in seen
    with Store.of(tmp_path / "a") as store:
        assert [run.status for run in store.runs()] == ["finished", "finished"]

    second = run_suite(loaded, results=tmp_path / "b", jobs=1)
    for one, other in zip(first, second, strict=True):
        a, b = one.planned.folder, other.planned.folder
        assert weights(a) == weights(b)
        assert weights(a)
        assert curve(a.epochs()) == curve(b.epochs())
        outcomes = [{key: record["correct"] for key, record in folder.read_outcomes().items()} for folder in (a, b)]
        assert outcomes[0] == outcomes[1]

    done = [state.planned.folder.done() for state in first]
    (tmp_path / "a" / "bench.sqlite").unlink()
    again = run_suite(loaded, results=tmp_path / "a")
    assert [state.planned.action for state in again] == ["skip", "skip"]
    assert [state.planned.folder.done() for state in again] == done
    with Store.of(tmp_path / "a") as store:
        assert len(store.runs()) == 2, "the store is rebuilt from the run folders"


def test_a_diverged_cell_does_not_stop_the_others(load, tmp_path):
    (tmp_path / "plugin.py").write_text(
        "from methods.pgd_at import PGDAT\n"
        "from dataclasses import replace\n"
        "class Diverging(PGDAT):\n"
        "    info = replace(PGDAT.info, name='diverging', title='Diverging')\n"
        "    def loss(self, batch, adversarial):\n"
        "        loss, logits = super().loss(batch, adversarial)\n"
        "        return loss * float('nan'), logits\n"
        "METHODS = {'diverging': Diverging}\n"
    )
    loaded = load({"methods: [pgd_at]": "methods: [diverging, pgd_at]\nplugins: [plugin.py]"})
    states = run_suite(loaded, results=tmp_path / "results", jobs=1)
    assert [state.status for state in states] == ["diverged", "finished"]
    assert "epoch 0" in states[0].reason
    with Store.of(tmp_path / "results") as store:
        assert {run.status for run in store.runs()} == {"diverged", "finished"}
    again = run_suite(loaded, results=tmp_path / "results", jobs=1, rerun=Rerun.FAILED)
    assert [state.planned.action for state in again] == ["reopen", "skip"]


def test_a_worker_that_dies_fails_its_own_cell(load, tmp_path):
    (tmp_path / "plugin.py").write_text(
        "import os, signal\n"
        "from dataclasses import replace\n"
        "from methods.pgd_at import PGDAT\n"
        "class Dying(PGDAT):\n"
        "    info = replace(PGDAT.info, name='dying', title='Dying')\n"
        "    def begin_epoch(self, epoch):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "METHODS = {'dying': Dying}\n"
    )
    loaded = load({"methods: [pgd_at]": "methods: [dying]\nplugins: [plugin.py]"})
    states = run_suite(loaded, results=tmp_path / "results")
    assert [state.status for state in states] == ["failed"]
    assert "signal 9" in states[0].reason


def test_all_again_keeps_the_old_folders(load, tmp_path):
    loaded = load({"epochs: 2": "epochs: 1"})
    run_suite(loaded, results=tmp_path)
    folder = RunFolder.of(loaded.cells[0], tmp_path)
    old = folder.cell()["environment"], folder.path.stat().st_ino
    run_suite(loaded, results=tmp_path, rerun=Rerun.ALL)
    kept = folder.path.with_name(folder.path.name + ".aside-1")
    assert kept.stat().st_ino == old[1]
    assert folder.path.stat().st_ino != old[1]
    assert folder.status() == "finished"
    assert "taken over" not in folder.log.read_text()


def test_the_machine_is_shared_out(monkeypatch):
    monkeypatch.setattr(driver, "cores", lambda: 8)
    assert share_out("cpu", None, None, 3) == Resources("cpu", 3, 2)
    assert share_out("cpu", None, None, 100) == Resources("cpu", 8, 1)
    assert share_out("cpu", None, 4, 100) == Resources("cpu", 2, 4)
    assert share_out("cpu", 1, None, 5) == Resources("cpu", 1, 8)
    for jobs, threads, words in ((9, None, "lower --jobs"), (None, 9, "lower --threads"), (4, 4, "16 cores")):
        with pytest.raises(BenchError, match=words):
            share_out("cpu", jobs, threads, 100)
    with pytest.raises(BenchError, match="sees no NVIDIA GPU"):
        share_out("cuda", None, None, 1)
    with pytest.raises(BenchError, match="unknown device"):
        share_out("tpu!", None, None, 1)


def test_a_damaged_ending_fails_its_own_cell_and_can_be_run_again(load, tmp_path):
    loaded = load({"seeds: [0]": "seeds: [0, 1]"})
    run_suite(loaded, results=tmp_path)
    folder = RunFolder.of(loaded.cells[0], tmp_path)
    (folder.path / "done.json").write_text("{}")
    (tmp_path / "bench.sqlite").unlink()
    states = run_suite(loaded, results=tmp_path)
    assert [state.status for state in states] == ["failed", "finished"]
    assert "done.json is damaged" in states[0].reason
    states = run_suite(loaded, results=tmp_path, rerun=Rerun.FAILED)
    assert [state.status for state in states] == ["finished", "finished"]


def test_a_folder_that_is_held_is_not_set_aside(load, tmp_path):
    loaded = load({"epochs: 2": "epochs: 1"})
    run_suite(loaded, results=tmp_path)
    folder = RunFolder.of(loaded.cells[0], tmp_path)
    with folder.hold():
        (state,) = run_suite(loaded, results=tmp_path, rerun=Rerun.ALL)
    assert state.status == "busy"
    assert not list(tmp_path.glob("runs/*aside*"))


def test_a_store_that_fails_for_a_while_stops_no_training(load, tmp_path, monkeypatch):
    real, calls = Store.ingest, []

    def locked_at_first(self, folder):
        calls.append(folder)
        if len(calls) == 1:
            raise BenchError("the store is locked")
        real(self, folder)

    monkeypatch.setattr(Store, "ingest", locked_at_first)
    states = run_suite(load({"seeds: [0]": "seeds: [0, 1]"}), results=tmp_path)
    assert [state.status for state in states] == ["finished", "finished"]
    assert len(calls) == 3
    with Store.of(tmp_path) as store:
        assert len(store.runs()) == 2
