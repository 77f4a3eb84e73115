"""What is still to be done, and how much work it is."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import save_file

from bench.data.dataset import ABSENT, Split, missing
from bench.data.datasets.digits import digits
from bench.errors import BenchError, NotFound
from bench.execution.plan import Action, Rerun, check_data, plan
from bench.execution.worker import Job, execute
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.registry import DATASETS, METHODS
from bench.storage.run_folder import RunFolder
from bench.utils.environment import code_digest


def test_actions_follow_from_what_is_on_disk(load, tmp_path):
    cells = load({"seeds: [0]": "seeds: [0, 1, 2, 3, 4]"}).cells
    assert execute(Job(cells[1], tmp_path, ("cpu",), None, 1)) == "finished"
    for cell, status in zip(cells[2:], ("diverged", None, "finished"), strict=True):
        folder = RunFolder.of(cell, tmp_path)
        folder.begin(cell, {})
        if status:
            folder.finish(status)

    def actions(rerun):
        return [(item.status, item.action) for item in plan(cells, tmp_path, rerun)]

    new, done, diverged, begun = "new", "finished", "diverged", "interrupted"
    common = [(new, "run"), (done, "skip"), (diverged, "skip"), (begun, "run")]
    assert actions(Rerun.MISSING) == [*common, (done, "skip")]
    common[2] = (diverged, "resume")
    assert actions(Rerun.FAILED) == [*common, ("failed", "resume")]  # the last one says that it finished, and is empty
    assert actions(Rerun.ALL) == [(new, "run"), *((status, "restart") for status in (done, diverged, begun, done))]


def test_a_run_of_other_code_is_not_resumed(load, tmp_path):
    (cell,) = load().cells
    folder = RunFolder.of(cell, tmp_path)
    folder.begin(cell, {"code": "a" * 64})
    for status, rerun in ((None, Rerun.MISSING), ("failed", Rerun.FAILED)):
        if status:
            folder.finish(status)
        with pytest.raises(BenchError, match=rf"{folder.path} was started with other code .digest aaaaaaaaaaaa, here"):
            plan([cell], tmp_path, rerun)
    assert plan([cell], tmp_path, Rerun.ALL)[0].action == "restart"
    assert plan([cell], tmp_path)[0].action == "skip"  # a complete run is kept; the gate and the board name its code
    other = tmp_path / "other"
    RunFolder.of(cell, other).begin(cell, {"code": code_digest()})
    assert plan([cell], other)[0].action == "run"


def test_a_run_with_another_plugin_is_not_resumed(load, tmp_path, monkeypatch):
    (cell,) = load().cells
    folder = RunFolder.of(cell, tmp_path)
    folder.begin(cell, {"code": code_digest(), "plugins": {"method pgd_at": "a" * 64}})
    for here, digest in ((None, "None"), ("b" * 64, "b" * 12)):
        monkeypatch.setattr(METHODS, "digest", lambda _name, here=here: here)
        said = f"other code of the plug-in for the method pgd_at .digest {'a' * 12}, here {digest}"
        with pytest.raises(BenchError, match=rf"{folder.path} was started with {said}"):
            plan([cell], tmp_path)
    monkeypatch.setattr(METHODS, "digest", lambda _name: "a" * 64)
    assert plan([cell], tmp_path)[0].action == "run"


def test_planning_writes_nothing(load, tmp_path):
    plan(load().cells, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_images_are_looked_for_before_anything_starts(load, tmp_path):
    def find(root, _settings):
        raise missing(there, [root / "there"], root)

    there = replace(digits, name="absent", obtain="Get it.", licence="MIT", find=find)
    DATASETS.add("absent", there)
    planned = plan(load({"name: digits": "name: absent"}).cells, tmp_path / "results")
    with pytest.raises(NotFound, match=rf"^dataset 'absent' not found: looked for {tmp_path}/there\. Get it\. Lic"):
        check_data(planned, tmp_path)
    check_data([replace(item, action=Action.SKIP) for item in planned], tmp_path)  # what has ended needs no images


def test_images_that_are_asked_for_and_are_not_there_fail_before_anything_starts(load, tmp_path):
    def find(root, settings):
        found = digits.find(root, settings)
        return replace(
            found, train=Split(found.train.reader, np.where(np.arange(1297) < 900, found.train.labels, ABSENT))
        )

    DATASETS.add("partial", replace(digits, name="partial", find=find))
    planned = plan(load({"name: digits": "name: partial"}).cells, tmp_path / "results")
    with pytest.raises(BenchError, match="^397 of the training images of partial have no file"):
        check_data(planned, None)
    small = load({"name: digits": "name: partial, subset: {train: 0-899}"}).cells
    check_data(plan(small, tmp_path / "results"), None)


def test_corrupted_images_are_looked_for_before_anything_starts(load, tmp_path):
    published = load({"[clean,": "[clean, {name: corruptions, path: CIFAR-10-C},"}).cells
    with pytest.raises(NotFound, match="CIFAR-10-C does not exist; unpack the published archive there"):
        check_data(plan(published, tmp_path / "results"), tmp_path)
    check_data(plan(load({"[clean,": "[clean, corruptions,"}).cells, tmp_path / "results"), tmp_path)


def test_other_initial_weights_are_another_cell(load, tmp_path):
    network = build_network(small_cnn, digits, seed=1)
    fingerprints = set()
    for seed in (1, 2):
        save_file(build_network(small_cnn, digits, seed=seed).state_dict(), tmp_path / "w.safetensors")
        row = f"methods: [{{name: aft, params: {{initial_weights: {tmp_path / 'w.safetensors'}}}}}]"
        (cell,) = load({"methods: [pgd_at]": row}).cells
        fingerprints.add(cell.fingerprint)
        assert plan([cell], tmp_path / "results")[0].action == "run"
    assert len(fingerprints) == 2
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BenchError, match=r"method 'AFT': weights .*w\.safetensors: .*changed since"):
        plan([cell], tmp_path / "results")


def test_what_a_method_refuses_is_refused_before_anything_is_trained(load, tmp_path):
    row = f"methods: [{{name: aft, params: {{initial_weights: {tmp_path / 'none.safetensors'}}}}}]"
    with pytest.raises(BenchError, match=r"method 'AFT': weights .*none\.safetensors: no such file"):
        plan(load({"methods: [pgd_at]": row}).cells, tmp_path / "results")


def test_a_cell_that_cannot_be_shared_out_is_refused(load, tmp_path):
    with pytest.raises(BenchError, match="a batch of 64 images cannot be cut into 3 equal parts"):
        plan(load().cells, tmp_path, devices=3)
    plan(load().cells, tmp_path, devices=4)
