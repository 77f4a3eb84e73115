"""Cells that use the networks of others: planned first, loaded, recorded, counted."""

import copy
import re

import pytest
import torch

from bench.config.suite import teachers_of
from bench.errors import BenchError
from bench.execution import driver
from bench.execution.driver import RetryPolicy, run_planned, run_suite
from bench.execution.executor import Executor, ExecutorSettings, Paths
from bench.execution.local import LocalHandle
from bench.execution.plan import Action, Rerun, plan
from bench.execution.worker import Job, WorkerResult, execute
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import CellStatus, RunFolder
from bench.storage.store import Store
from bench.training.trainer import Trainer

PLUGIN = '''
"""Methods that start from the network of another cell, and one whose network has another shape."""
from dataclasses import replace

from torch import nn

from bench import MethodParams, Teacher, hyperparameter
from methods.pgd_at import PGDAT


class Params(MethodParams):
    start: Teacher = hyperparameter(Teacher(method="pgd_at"), unit="-", provenance="declared", note="initial weights")


class Taught(PGDAT):
    info = replace(PGDAT.info, name="taught", title="Taught")
    Params = Params
    data_parallel = True

    def initialise(self, network):
        network.load_state_dict(self.context.teachers["start"].state_dict())


class First(Taught):
    info = replace(PGDAT.info, name="first", title="First")

    class Params(MethodParams):
        start: Teacher = hyperparameter(Teacher(method="second"), unit="-", provenance="declared", note="a circle")


class Second(Taught):
    info = replace(PGDAT.info, name="second", title="Second")

    class Params(MethodParams):
        start: Teacher = hyperparameter(Teacher(method="first"), unit="-", provenance="declared", note="a circle")


class Wider(PGDAT):
    info = replace(PGDAT.info, name="wider", title="Wider")

    def build(self, network):
        network.head = nn.Linear(2, 2)
        return network


METHODS = {"taught": Taught, "first": First, "second": Second, "wider": Wider}
'''


@pytest.fixture
def taught(load, tmp_path):
    """Load the tiny suite with these methods, and more of its text replaced."""
    (tmp_path / "taught.py").write_text(PLUGIN)

    def taught(methods, changes=None):
        return load({"methods: [pgd_at]": f"methods: [{methods}]\nplugins: [taught.py]", **(changes or {})})

    return taught


def work(cell, results):
    return execute(Job(cell, results, ("cpu",), None, 1))


def names(states):
    return [str(state.cell) for state in states]


def test_teachers_are_planned_first_and_once(taught, tmp_path):
    nested = "{name: taught, label: Twice, params: {start: {method: taught, seed: 7, checkpoint: last}}}"
    cells = taught(f"taught, {{name: pgd_at, label: Ours}}, {nested}", {"seeds: [0]": "seeds: [0, 1]"}).cells
    states = plan(cells, tmp_path)
    assert names(states) == [
        "Ours seed 0", "Taught seed 0", "Ours seed 1", "Taught seed 1",
        "PGD-AT seed 7", "Taught seed 7", "Twice seed 0", "Twice seed 1",
    ]  # fmt: skip
    assert [names(state.teachers) for state in states[-3:]] == [["PGD-AT seed 7"], ["Taught seed 7"], ["Taught seed 7"]]
    (teacher, checkpoint) = teachers_of(cells[-1])["start"]
    assert (teacher.seed, checkpoint, teacher.protocol) == (7, "last", cells[0].protocol)


def test_a_teacher_is_part_of_the_identity(taught):
    def prints(params):
        return taught(f"{{name: taught, params: {{start: {params}}}}}").cells[0].fingerprint

    same = {"{method: pgd_at}", "{method: pgd_at, seed: same, checkpoint: best, params: {}}"}
    assert len({prints(params) for params in same}) == 1
    others = ["{method: pgd_at, seed: 0}", "{method: pgd_at, checkpoint: last}", "{method: trades}"]
    others += ["{method: trades, params: {beta: 1}}"]
    assert len({prints(params) for params in (*same, *others)}) == 5
    (cell,) = taught("taught").cells
    assert cell.method.params["start"]["version"] == 1
    assert not cell.method.custom


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("first", "teachers form a circle: first -> second -> first"),
        ("{name: taught, params: {start: {method: pdg_at}}}", "unknown method 'pdg_at'; did you mean 'pgd_at'?"),
        (
            "{name: taught, params: {start: {method: trades, params: {beta: -1}}}}",
            "start.params.beta: must be at",
        ),
        (
            "{name: taught, params: {start: {method: pgd_at, seed: other}}}",
            "start.seed: must be a whole number",
        ),
    ],
)
def test_a_wrong_teacher(taught, method, sentence):
    with pytest.raises(BenchError, match=re.escape(sentence)):
        taught(method)


def test_a_teacher_of_another_architecture(taught, tmp_path):
    cells = taught("{name: taught, params: {start: {method: wider}}}").cells
    with pytest.raises(BenchError, match="^method 'Taught': the teacher 'start' has another architecture"):
        plan(cells, tmp_path)


def test_a_cell_starts_from_its_teacher_records_it_and_counts_its_cost(taught, tmp_path, monkeypatch):
    (cell,) = taught("taught").cells
    teacher, _ = teachers_of(cell)["start"]
    folder = RunFolder.of(cell, tmp_path)
    assert work(cell, tmp_path) == "failed"
    assert "the teacher PGD-AT seed 0 has not been trained; run the suite again" in folder.result()["reason"]
    assert work(teacher, tmp_path) == "finished"
    trained = RunFolder.of(teacher, tmp_path)
    weights, begun = Checkpoints(trained.checkpoints).load("best"), []
    resume = Trainer._resume

    def watched(trainer):
        begun.append(copy.deepcopy(trainer.method.model.state_dict()))
        resume(trainer)

    monkeypatch.setattr(Trainer, "_resume", watched)
    folder.reopen()
    assert work(cell, tmp_path) == "finished"
    assert all(torch.equal(value, weights[name]) for name, value in begun[0].items() if "num_batches" not in name)
    data = folder.cell()["environment"]["data"]
    assert data["teachers"] == {"start": Checkpoints(trained.checkpoints).entries["best"].sha256}
    for name in ("train_pflop", "train_seconds"):
        own = sum(record[name] for record in folder.epochs())
        assert folder.result()[name] == pytest.approx(own + trained.result()[name])
    assert names(plan([cell], tmp_path)) == ["Taught seed 0"]  # nothing to run, so no teacher
    assert [(str(s.cell), s.action) for s in plan([cell], tmp_path, Rerun.ALL)] == [
        ("PGD-AT seed 0", Action.SKIP),
        ("Taught seed 0", Action.RESTART),
    ]

    other = RunFolder.of(cell, tmp_path)
    other.record_data({**data, "teachers": {"start": "0" * 64}})
    (folder.path / "done.json").unlink()
    assert work(cell, tmp_path) == "failed"
    assert "used other weights of its teachers" in folder.result()["reason"]


class Cluster(Executor):
    """Runs one cell at a time, with a given result for each."""

    def __init__(self, results, ends):
        self.results, self.ends, self.handed, self.running = results, ends, [], []

    def room(self):
        return 2

    def submit(self, cells):
        self.handed.append([str(cell) for cell in cells]) if cells else None
        self.running += [LocalHandle(Job(cell, self.results, ("cpu",), None, 1), None, None) for cell in cells]
        return self.running[len(self.running) - len(cells) :]

    def wait(self, _seconds):
        if not self.running:
            return []
        handle = self.running.pop(0)
        handle.result = lambda: WorkerResult(CellStatus(self.ends.get(str(handle.job.cell), "finished")))
        return [handle]

    def close(self):
        pass


def ran(taught, tmp_path, monkeypatch, **ends):
    monkeypatch.setattr(driver, "POLL_SECONDS", 0)
    monkeypatch.setattr(Store, "ingest", lambda *_: None)
    cluster = Cluster(tmp_path, ends)
    nested = "{name: taught, label: Twice, params: {start: {method: taught}}}"
    states = plan(taught(f"{nested}, trades").cells, tmp_path)
    run_planned(states, cluster, Paths(tmp_path, None), None, RetryPolicy(), lambda _states: None)
    return cluster.handed, {str(state.cell): (state.status, state.reason) for state in states}


def test_a_cell_waits_for_its_teachers(taught, tmp_path, monkeypatch):
    handed, states = ran(taught, tmp_path, monkeypatch)
    assert handed == [["PGD-AT seed 0", "TRADES seed 0"], ["Taught seed 0"], ["Twice seed 0"]]
    assert {status for status, _ in states.values()} == {"finished"}


@pytest.mark.parametrize("end", ["failed", "diverged", "locked"])
def test_a_cell_whose_teacher_does_not_finish_is_not_run(taught, tmp_path, monkeypatch, end):
    handed, states = ran(taught, tmp_path, monkeypatch, **{"PGD-AT seed 0": end})
    assert handed == [["PGD-AT seed 0", "TRADES seed 0"]]
    expected = "locked" if end == "locked" else "failed"
    assert states["Taught seed 0"] == (expected, f"its teacher PGD-AT seed 0 is {end}")
    assert states["Twice seed 0"] == (expected, f"its teacher Taught seed 0 is {expected}")


def test_slurm_without_a_driver_cannot_wait_for_teachers(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_executor", lambda *_: Cluster(tmp_path, {}))
    with pytest.raises(BenchError, match="^--detach cannot wait for teachers to be trained; run without it"):
        run_suite(taught("taught"), results=tmp_path, settings=ExecutorSettings(executor="slurm"), detach=True)


@pytest.mark.slow
def test_a_suite_trains_the_teachers_that_it_needs(taught, tmp_path):
    states = run_suite(taught("taught"), results=tmp_path / "results")
    assert [(str(state.cell), state.status) for state in states] == [
        ("PGD-AT seed 0", "finished"),
        ("Taught seed 0", "finished"),
    ]
