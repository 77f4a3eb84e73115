"""One cell on several devices: what it computes, and how it ends. The devices are processes on the CPU, with gloo."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.data.batches import TrainingBatches
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.execution.distributed import _portable, check_devices
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings
from bench.execution.worker import Job, execute, work_in_process
from bench.models.sync_batchnorm import shared_statistics
from bench.storage.checkpoints import Checkpoints
from bench.training.trainer import Diverged
from bench.utils.distributed import ProcessGroup
from bench.utils.rng import RngStreams

HERE = Path(__file__).parent
PLUGIN = "seeds: [0]\nplugins: [parts.py]"


def in_two_processes(folder, *parts):
    """Return what `two_processes.py` computes: the parts' results of each process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    commands = [[sys.executable, HERE / "two_processes.py", folder, str(rank), *parts] for rank in range(2)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        assert [process.wait(900) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def forward(tmp_path_factory):
    """Batch statistics and tracking, of each process."""
    return in_two_processes(tmp_path_factory.mktemp("forward"), "statistics", "tracking")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """All methods and resuming, of each process."""
    return in_two_processes(tmp_path_factory.mktemp("training"), "methods", "plain", "small_cnn")


@pytest.fixture(autouse=True)
def parts(tmp_path):
    """The plug-in beside the suite, where its processes leave marks."""
    shutil.copy(HERE / "parts.py", tmp_path)


@pytest.fixture
def started(load, tmp_path):
    """Return the job of a method of `parts.py` on two devices, its folder made; and a path that its processes know."""

    def started(method):
        cell = load({"methods: [pgd_at]": f"methods: [{method}]", "seeds: [0]": PLUGIN}).cells[0]
        return Job(cell, tmp_path, ("cpu", "cpu"), None, 1), tmp_path / "mark"

    return started


# --- what is computed -------------------------------------------------------------------------------------------------


def test_batch_statistics_and_their_gradients_are_those_of_the_whole_batch(forward):
    """In double precision: outputs, gradients of images and weights, running statistics, of two steps."""
    for one in forward:
        assert len(one["statistics"]) == 5
        assert max(one["statistics"].values()) < 1e-13, one["statistics"]


@pytest.mark.slow
def test_every_method_trains_as_with_one_process(training):
    """In double precision, where rounding decides no step of an attack: weights, averages, memories, losses."""
    apart = training[0]["methods"] | training[1]["methods"]
    declared = {name for name in registry.METHODS.names() if vars(registry.METHODS.get(name)).get("data_parallel")}
    assert set(apart) == declared
    assert len(declared) > 30
    for name, (weights, metrics) in apart.items():
        assert weights < 1e-11, name
        assert metrics < 1e-5, name  # MART's loss is computed in fp32


@pytest.mark.slow
def test_what_began_on_one_device_goes_on_on_two_and_back(training):
    plain, with_statistics = training[0]["plain"], training[0]["small_cnn"]
    assert set(plain) == {"1-2", "2-1"}
    for weights, numbers, same_work in plain.values():
        assert weights < 1e-5
        assert numbers < 1e-5
        assert same_work
    for weights, numbers, _ in with_statistics.values():
        assert weights < 1e-3  # fp32: rounding turns some signs of gradients, and statistics carry that to all images
        assert numbers < 0.03


def test_tracking_is_shared_out_with_the_same_draws(forward):
    for one in forward:
        assert len(one["tracking"]) == 2
        for equal, count, right in one["tracking"]:
            assert equal
            assert count > 2 * 500
            assert 0 < right < count


@pytest.mark.parametrize("augmentation", ["[]", "[{name: crop, padding: 2}, flip, {name: rotate, degrees: 15}]"])
def test_parts_of_a_batch_are_the_batch(load, augmentation):
    cell = load({"batch_size: 64": f"batch_size: 64\n  augmentation: {augmentation}"}).cells[0]
    images = dataset_of(cell.protocol.dataset).splits(None).train
    kinds = cell.protocol.training.augmentation
    whole = next(iter(TrainingBatches(images, 64, kinds, RngStreams(0))))
    parts = [next(iter(TrainingBatches(images, 64, kinds, RngStreams(0), ProcessGroup(rank, 4)))) for rank in range(4)]
    assert {len(part) for part in parts} == {16}
    for name in ("images", "labels", "index"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_outside_of_training_nothing_is_shared():
    layer, images = torch.nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)

    def never(_tensor):
        raise AssertionError("asked the others")

    with shared_statistics(ProcessGroup(1, 2, never)):
        assert torch.equal(layer.eval()(images), layer(images))
        with pytest.raises(AssertionError, match="asked"):
            layer.train()(images)


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_that_lost_a_process_goes_on_and_ends_as_on_one_device(load, tmp_path):
    loaded = load({"methods: [pgd_at]": "methods: [unlucky]", "seeds: [0]": PLUGIN, "small_cnn": "plain"})
    (state,) = run_suite(
        loaded, results=tmp_path / "two", settings=ExecutorSettings(device="cpu", devices=2, threads=1)
    )
    assert (state.status, state.attempts) == ("finished", 1)
    folder = state.folder
    (incident,) = folder.incidents()
    assert "a training process died: killed (signal 9)" in incident
    assert "resumed after epoch 0" in folder.log.read_text()
    alone = Job(loaded.cells[0], tmp_path / "one", ("cpu",), None, 1)
    assert execute(alone) == "finished"
    ours, theirs = (Checkpoints(one.checkpoints).load("last") for one in (folder, alone.folder))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.linalg.vector_norm(ours[name] - value) <= 1e-5 * torch.linalg.vector_norm(value), name
    assert [line["train_pflop"] for line in folder.epochs()] == [line["train_pflop"] for line in alone.folder.epochs()]


@pytest.mark.slow
def test_a_full_disk_ends_all_processes_as_it_ends_one(started):
    job, _ = started("full")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="there") as error:
        execute(job)
    assert error.value.errno == errno.ENOSPC
    assert job.folder.status() == "interrupted"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_worker_leaves_no_process_behind(started):
    job, mark = started("slow")
    _told, tell = get_context("spawn").Pipe(duplex=False)
    worker = get_context("spawn").Process(target=work_in_process, args=(job, tell))
    worker.start()
    deadline = time.monotonic() + 60
    while len(pids := [path.suffix[1:] for path in mark.parent.glob("mark.*")]) < 2:
        assert time.monotonic() < deadline
        assert worker.is_alive()
        time.sleep(0.05)
    assert all(map(alive, pids))
    worker.kill()
    worker.join()
    deadline = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_process_raises_can_be_told():
    class Unheard(Exception):
        pass

    error = pickle.loads(pickle.dumps(_portable(Diverged(3))))
    assert (type(error), error.epoch, str(error)) == (Diverged, 3, str(Diverged(3)))
    error = pickle.loads(pickle.dumps(_portable(Unheard("of"))))
    assert (type(error), str(error)) == (RuntimeError, "Unheard: of")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_method_must_say_that_it_trains_on_several_devices(started):
    job, _ = started("heir")
    check_devices([job.cell], 1)
    with pytest.raises(BenchError, match=r"method 'heir' cannot train on several devices; remove 'devices' from"):
        check_devices([job.cell], 2)
    assert execute(job) == "failed"
    assert "cannot train on several devices" in job.folder.result()["reason"]


def test_a_batch_must_be_divisible(load):
    (cell,) = load().cells
    check_devices([cell], 4)
    with pytest.raises(BenchError, match="a batch of 64 images cannot be cut into 3 equal parts; change 'devices'"):
        check_devices([cell], 3)
    with pytest.raises(BenchError, match="a batch of 64 images cannot be cut into 3 equal parts"):
        TrainingBatches(dataset_of(cell.protocol.dataset).splits(None).train, 64, (), RngStreams(0), ProcessGroup(0, 3))


def test_devices_are_no_part_of_an_identity(load):
    (cell,) = load({"seeds: [0]": "seeds: [0]\nexecution: {devices: 2}"}).cells
    assert cell.fingerprint == load().cells[0].fingerprint
