"""The driver: workers as processes, the machine shared out, the store filled, two runs bit-equal."""

import errno
import hashlib
import re

import pytest
import torch

from bench.errors import BenchError
from bench.execution import driver, executor, local
from bench.execution.driver import RetryPolicy, run_planned, run_suite
from bench.execution.executor import Executor, ExecutorSettings, Paths
from bench.execution.local import LocalHandle, allocate
from bench.execution.plan import Rerun, plan
from bench.execution.worker import Job, WorkerResult
from bench.storage.run_folder import RunFolder
from bench.storage.store import Store
from bench.testing.conformance import curve
from bench.training.compiled import check_compiler


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

    second = run_suite(loaded, results=tmp_path / "b", settings=ExecutorSettings(jobs=1))
    for one, other in zip(first, second, strict=True):
        a, b = one.folder, other.folder
        assert weights(a) == weights(b)
        assert weights(a)
        assert curve(a.epochs()) == curve(b.epochs())
        outcomes = [{key: record["correct"] for key, record in folder.read_outcomes().items()} for folder in (a, b)]
        assert outcomes[0] == outcomes[1]

    done = [state.folder.result() for state in first]
    (tmp_path / "a" / "bench.sqlite").unlink()
    again = run_suite(loaded, results=tmp_path / "a")
    assert [state.action for state in again] == ["skip", "skip"]
    assert [state.folder.result() for state in again] == done
    with Store.of(tmp_path / "a") as store:
        assert len(store.runs()) == 2, "the store is rebuilt from the run folders"


def test_a_new_label_is_shown_without_running_again(load, tmp_path):
    """Also for a store that was written in between, and for a run that is not finished."""
    named = {"methods: [pgd_at]": "methods: [{name: pgd_at, label: Old}]"}
    first = run_suite(load(named), results=tmp_path)
    environment = first[0].folder.cell()["environment"]
    for label in ("New", "Newer"):
        named = {"methods: [pgd_at]": f"methods: [{{name: pgd_at, label: {label}}}]"}
        (again,) = run_suite(load(named), results=tmp_path)
        assert again.action == "skip"
        with Store.of(tmp_path) as store:
            assert [run.label for run in store.runs()] == [label]
    cell = again.folder.cell()
    assert (cell["fingerprint"], cell["environment"]) == (first[0].cell.fingerprint, environment)
    again.folder.relabel("Written, but not imported")
    run_suite(load(named), results=tmp_path)
    (tmp_path / "bench.sqlite").unlink()
    again.folder.begin(load({"methods: [pgd_at]": "methods: [{name: pgd_at, label: Resumed}]"}).cells[0], {})
    with Store.of(tmp_path) as store:
        store.ingest(again.folder)
        assert [run.label for run in store.runs()] == ["Resumed"]


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
    states = run_suite(loaded, results=tmp_path / "results", settings=ExecutorSettings(jobs=1))
    assert [state.status for state in states] == ["diverged", "finished"]
    assert "epoch 0" in states[0].reason
    with Store.of(tmp_path / "results") as store:
        assert {run.status for run in store.runs()} == {"diverged", "finished"}
    again = run_suite(loaded, results=tmp_path / "results", settings=ExecutorSettings(jobs=1), rerun=Rerun.FAILED)
    assert [state.action for state in again] == ["resume", "skip"]


MISFORTUNE = """
import errno, os, signal, time
from dataclasses import replace
from pathlib import Path
from methods.pgd_at import PGDAT

class Unlucky(PGDAT):
    info = replace(PGDAT.info, name="unlucky", title="Unlucky")
    def begin_epoch(self, epoch):
        with Path(__file__).with_name("begun").open("a") as begun:
            begun.write(f"{epoch}\\n")
        times = len(Path(__file__).with_name("begun").read_text().splitlines())
        MISFORTUNE

METHODS = {"unlucky": Unlucky}
"""


@pytest.fixture
def unlucky(load, tmp_path):
    """Run a suite of a method that meets with a misfortune at the beginning of an epoch, and of PGD-AT after it.

    Returns the states, the folder of the unlucky one, and the epochs that it began.
    """

    def run(misfortune, **settings):
        (tmp_path / "plugin.py").write_text(MISFORTUNE.replace("MISFORTUNE", misfortune))
        loaded = load({"methods: [pgd_at]": "methods: [unlucky, pgd_at]\nplugins: [plugin.py]"})
        states = run_suite(loaded, results=tmp_path / "results", settings=ExecutorSettings(jobs=1), **settings)
        begun = list(map(int, (tmp_path / "begun").read_text().split()))
        return states, RunFolder.of(loaded.cells[0], tmp_path / "results"), begun

    return run


def test_a_worker_that_dies_is_tried_three_times_and_fails_its_own_cell(unlucky):
    states, folder, begun = unlucky("os.kill(os.getpid(), signal.SIGKILL)")
    assert [state.status for state in states] == ["failed", "finished"]
    assert states[0].reason.startswith("the worker died: killed (signal 9)")
    assert states[0].reason.endswith("(attempt 3 of 3)")
    assert begun == [0, 0, 0]
    assert folder.result() == {"status": "failed", "reason": states[0].reason}
    assert [incident[-16:] for incident in folder.incidents()] == [
        "(attempt 1 of 3)",
        "(attempt 2 of 3)",
        "(attempt 3 of 3)",
    ]
    with Store.of(folder.path.parents[1]) as store:
        assert store.show_run("unlucky")["incidents"] == folder.incidents()


def test_a_worker_that_is_lost_goes_on_where_it_was(unlucky):
    states, folder, begun = unlucky("if times == 2: os.kill(os.getpid(), signal.SIGTERM)")
    assert [state.status for state in states] == ["finished", "finished"]
    assert states[0].reason == ""
    assert begun == [0, 1, 1]
    assert folder.incidents() == ["the worker died: signal 15 (attempt 1 of 3)"]


def test_a_worker_without_memory_is_lost(unlucky):
    states, folder, begun = unlucky("if times == 1: raise MemoryError('of 1 TiB')")
    assert [state.status for state in states] == ["finished", "finished"]
    (incident,) = folder.incidents()
    assert incident.startswith("out of memory: of 1 TiB; run fewer cells at a time (--jobs); ")
    assert incident.endswith(" (attempt 1 of 3)")
    assert begun == [0, 0, 1]


def test_a_worker_that_hangs_is_ended(unlucky):
    states, _, begun = unlucky(
        "if times == 2: time.sleep(600)", retry=RetryPolicy(max_attempts=1, heartbeat_timeout=0.2)
    )
    assert [state.status for state in states] == ["failed", "finished"]
    assert re.fullmatch(r"the worker hung: no heartbeat for 0\.2\d* minutes \(attempt 1 of 1\)", states[0].reason)
    assert begun == [0, 1]


def test_a_full_disk_stops_the_run_and_the_same_call_goes_on(unlucky):
    misfortune = "if times == 2: raise OSError(errno.ENOSPC, 'No space left on device', 'epochs.jsonl')"
    with pytest.raises(BenchError, match=r"^epochs\.jsonl: No space left on device; fix this and rerun"):
        unlucky(misfortune)
    states, folder, begun = unlucky(misfortune)
    assert [state.status for state in states] == ["finished", "finished"]
    assert begun == [0, 1, 1]
    assert folder.incidents() == []
    assert "resumed after epoch 0" in folder.log.read_text()


def test_a_disk_error_in_one_folder_stops_no_other_cell(unlucky):
    misfortune = "if times == 1: raise OSError(errno.EIO, 'Input/output error', 'index.json')"
    states, folder, _ = unlucky(misfortune)
    assert [state.status for state in states] == ["interrupted", "finished"]
    assert states[0].reason == "index.json: Input/output error"
    assert folder.result() is None
    states, _, _ = unlucky(misfortune)
    assert [state.status for state in states] == ["finished", "finished"]


def test_a_disk_error_of_the_driver_is_one_sentence(load, tmp_path, monkeypatch):
    def fail(_self):
        raise OSError(errno.EIO, "Input/output error", "results/runs/x/done.json")

    monkeypatch.setattr(RunFolder, "status", fail)
    with pytest.raises(BenchError, match=r"^results/runs/x/done\.json: Input/output error; fix this"):
        run_suite(load(), results=tmp_path)


def test_silence_is_counted_only_while_the_driver_is_awake(load, tmp_path, monkeypatch):
    class Process:
        exitcode = None
        killed = False

        def kill(self):
            self.killed = True

    now, process = 1000.0, Process()
    monkeypatch.setattr(executor.time, "monotonic", lambda: now)
    cell = load().cells[0]
    folder = RunFolder.of(cell, tmp_path)
    folder.begin(cell, {})
    handle = LocalHandle(Job(cell, tmp_path, ("cpu",), None, 1), process, None)
    now += 1e6  # the machine slept
    handle.check_heartbeat(5)
    assert not process.killed
    assert not handle.started
    for second in range(20):
        now += 1
        if second % 4 == 0:
            folder.progress(force=True, phase="training")
        handle.check_heartbeat(5)
        assert handle.started
        assert not process.killed
    now += 3
    for _ in range(6):
        now += 1
        handle.check_heartbeat(5)
    assert process.killed


class Cluster(Executor):
    """Takes one cell at first, refuses once what comes after it, and says that each has finished."""

    def __init__(self):
        self.handed, self.running, self.refusals = [], [], 0

    def room(self):
        return 1 if not self.handed else 2**31

    def submit(self, cells):
        if self.handed and cells and not self.refusals:
            self.refusals += 1
            raise BenchError("the cluster takes no more jobs")
        if not cells:
            return []
        self.handed += [cell.seed for cell in cells]
        handles = [LocalHandle(Job(cell, self.results, ("cpu",), None, 1), None, None) for cell in cells]
        for handle in handles:
            handle.result = lambda: WorkerResult("finished")
        self.running += handles
        return handles

    def wait(self, _seconds):
        if self.refusals or len(self.handed) > 1:
            ended, self.running = self.running, []
            return ended
        return []

    def close(self):
        assert not self.running, "none is ended for what another one was refused"


def test_a_cluster_that_takes_no_more_for_a_while_ends_nothing_that_runs(load, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "RESUBMIT_SECONDS", 0)
    monkeypatch.setattr(Store, "ingest", lambda *_: None)
    cluster = Cluster()
    cluster.results = tmp_path
    states = plan(load({"seeds: [0]": "seeds: [0, 1, 2]"}).cells, tmp_path)
    run_planned(states, cluster, Paths(tmp_path, None), None, RetryPolicy(), lambda _states: None)
    assert [state.status for state in states] == ["finished"] * 3
    assert (cluster.handed, cluster.refusals) == ([0, 1, 2], 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ExecutorSettings(slurm={"partition": "gpu"}), "needs --executor slurm"),
        (ExecutorSettings(address="auto"), "needs --executor ray"),
    ],
)
def test_options_of_another_executor_are_refused(load, tmp_path, settings, words):
    with pytest.raises(BenchError, match=words):
        run_suite(load(), results=tmp_path, settings=settings)
    with pytest.raises(BenchError, match="--detach needs --executor slurm"):
        run_suite(load(), results=tmp_path, detach=True)


def test_compiling_is_refused_before_anything_runs_where_it_cannot_be(load, tmp_path, monkeypatch):
    loaded, results = load({"seeds: [0]": "seeds: [0]\nexecution: {compile: true}"}), tmp_path / "results"
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(
        BenchError, match=r"needs a C\+\+ compiler, g\+\+ or clang\+\+; install one, or use --no-compile"
    ):
        run_suite(loaded, results=results)
    with pytest.raises(BenchError, match="on several devices cannot be compiled; use --no-compile"):
        run_suite(loaded, results=results, settings=ExecutorSettings(devices=2))
    twice = load({"methods: [pgd_at]": "methods: [pgd_at, grad_align]"})
    with pytest.raises(BenchError, match="'grad_align' cannot be compiled: it differentiates twice; use --no-compile"):
        run_suite(twice, results=results, settings=ExecutorSettings(compile=True))
    assert not results.exists()
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    check_compiler(torch.device("cpu"))
    with pytest.raises(BenchError, match="for a GPU needs the package triton"):
        check_compiler(torch.device("cuda"))


def test_the_command_decides_about_compiling_before_the_suite(load):
    by_default, compiling = load(), load({"seeds: [0]": "seeds: [0]\nexecution: {compile: true}"})
    wanted = {
        (loaded is compiling, said): driver.by_suite(ExecutorSettings(compile=said), loaded).compile
        for loaded in (by_default, compiling)
        for said in (None, True, False)
    }
    assert wanted == {
        (False, None): False, (False, True): True, (False, False): False,
        (True, None): True, (True, True): True, (True, False): False,
    }  # fmt: skip
    assert by_default.cells[0].fingerprint == compiling.cells[0].fingerprint


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
    assert "reused the same training" not in folder.log.read_text()


def test_the_machine_is_shared_out(monkeypatch):
    def shares(cells, **settings):
        found = allocate(ExecutorSettings(**settings), cells)
        return [slot if len(slot) > 1 else slot[0] for slot in found.slots], found.threads

    monkeypatch.setattr(local, "cores", lambda: 8)
    assert shares(3) == (["cpu"] * 3, 2)
    assert shares(100) == (["cpu"] * 8, 1)
    assert shares(100, threads=4) == (["cpu"] * 2, 4)
    assert shares(5, jobs=1) == (["cpu"], 8)
    assert shares(5, devices=2) == ([("cpu", "cpu")] * 4, 1)
    assert shares(1, devices=2) == ([("cpu", "cpu")], 4)
    for settings, words in (
        ({"jobs": 9}, "lower --jobs"),
        ({"threads": 9}, "lower --threads"),
        ({"jobs": 4, "threads": 4}, "16 cores"),
        ({"devices": 9}, "9 threads each need 9 cores"),
        ({"device": "cuda"}, "sees no NVIDIA GPU"),
        ({"gpus": (0,)}, "sees no NVIDIA GPU"),
        ({"gpus": (0,), "device": "cpu"}, "leave one of them out"),
        ({"jobs_per_gpu": 2}, "needs a GPU"),
        ({"device": "tpu!"}, "unknown device"),
    ):
        with pytest.raises(BenchError, match=words):
            shares(100, **settings)

    monkeypatch.setattr(local.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 3)
    assert shares(100) == (["cuda:0", "cuda:1", "cuda:2"], 2)
    assert shares(2) == (["cuda:0", "cuda:1"], 4)
    assert shares(100, device="cpu") == (["cpu"] * 8, 1)
    assert shares(100, device="cuda:1") == (["cuda:1"], 8)
    assert shares(100, gpus=(2, 0), jobs_per_gpu=2) == (["cuda:2", "cuda:0", "cuda:2", "cuda:0"], 2)
    assert shares(100, devices=2) == ([("cuda:0", "cuda:1")], 4)
    for settings, words in (
        ({"gpus": (3,)}, "there are 3 GPUs"),
        ({"jobs": 4}, "raise --jobs-per-gpu"),
        ({"devices": 4}, "there are 3 GPUs to use"),
        ({"jobs_per_gpu": 3, "threads": 1}, "9 cores"),
    ):
        with pytest.raises(BenchError, match=words):
            shares(100, **settings)


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
    with folder.lock():
        (state,) = run_suite(loaded, results=tmp_path, rerun=Rerun.ALL)
    assert state.status == "locked"
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
