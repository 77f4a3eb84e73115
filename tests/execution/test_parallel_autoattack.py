"""AutoAttack on several devices: the outcomes of one. The devices are processes on the CPU."""

import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from bench.execution import parallel_autoattack
from bench.execution.worker import Job, WorkerLost, execute
from bench.storage.run_folder import RunFolder

FINAL = "final: [clean, {name: pgd, steps: 3, step_size: 0.05}]"
ATTACK = "final: [clean, {name: autoattack, images: 11, batch_size: 2, attacks: [apgd-ce]}]"


@pytest.fixture
def cell(load):
    return load({FINAL: ATTACK}).cells[0]


class InThisProcess:
    """A pool that computes what is submitted at once, and remembers it."""

    def __init__(self, _count, _context, start, arguments):
        start(*arguments)
        self.submitted = []

    def submit(self, function, *arguments):
        self.submitted.append(arguments)
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures):
        assert cancel_futures


@pytest.fixture
def pools(monkeypatch):
    made = []

    def make(*arguments):
        made.append(InThisProcess(*arguments))
        return made[-1]

    monkeypatch.setattr(parallel_autoattack, "ProcessPoolExecutor", make)
    yield made
    parallel_autoattack._prepared.cache_clear()


@pytest.fixture
def evaluated(cell, tiny_results, tmp_path):
    """Evaluate the cell, which is trained, on so many devices; return the outcomes without their times."""

    def evaluated(devices):
        folder = tmp_path / str(devices)
        if not folder.exists():
            shutil.copytree(tiny_results, folder)
        assert execute(Job(cell, folder, ("cpu",) * devices, None, 1)) == "finished"
        stored = RunFolder.of(cell, folder).read_outcomes()
        return {key: {name: part for name, part in one.items() if name != "seconds"} for key, one in stored.items()}

    return evaluated


def test_outcomes_are_those_of_one_device(evaluated, pools):
    one = evaluated(1)
    assert not pools
    assert evaluated(3) == one
    (pool,) = pools
    batches = [(checkpoint, name, tuple(index)) for checkpoint, _, name, index in pool.submitted]
    assert len(batches) == len(set(batches)) > 3, "no batch is attacked twice"


@pytest.mark.slow
def test_outcomes_of_two_processes_are_those_of_one(evaluated):
    assert evaluated(2) == evaluated(1)


@pytest.mark.slow
def test_a_batch_that_is_too_large_is_halved(evaluated, pools, monkeypatch):
    attack = parallel_autoattack._attack

    def small(checkpoint, settings, name, index):
        if len(index) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attack(checkpoint, settings, name, index)

    monkeypatch.setattr(parallel_autoattack, "_attack", small)
    found = [record["attack"] for (_, key), record in evaluated(2).items() if key.startswith("autoattack")]
    assert found
    assert {attack["reduced_batch_size"] for attack in found} == {1}


def test_a_process_that_dies_loses_the_cell_which_resumes(evaluated, pools, monkeypatch):
    attack, calls = parallel_autoattack._attack, []

    def dying(*arguments):
        calls.append(arguments[2:])
        if len(calls) == 3:
            raise BrokenProcessPool("terminated abruptly")
        return attack(*arguments)

    monkeypatch.setattr(parallel_autoattack, "_attack", dying)
    with pytest.raises(WorkerLost, match="a process of AutoAttack died"):
        evaluated(2)
    assert evaluated(2) == evaluated(1)
    assert all(tuple(first[1]) != tuple(calls[0][1]) for first in calls[3:]), "the first batch was on disk"
