"""What is still to be done, and how much work it is."""

import pytest
from safetensors.torch import save_file

from bench.data.digits import digits
from bench.errors import BenchError
from bench.execution.plan import Rerun, plan, work
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.run_folder import RunFolder


def test_actions_follow_from_what_is_on_disk(load, tmp_path):
    cells = load({"seeds: [0]": "seeds: [0, 1, 2, 3]"}).cells
    for cell, status in zip(cells[1:], ("finished", "diverged", None), strict=True):
        folder = RunFolder.of(cell, tmp_path)
        folder.begin(cell, {})
        if status:
            folder.finish(status)

    def actions(rerun):
        return [(item.status, item.action) for item in plan(cells, tmp_path, rerun)]

    new, done, diverged, begun = "new", "finished", "diverged", "interrupted"
    assert actions(Rerun.MISSING) == [(new, "run"), (done, "skip"), (diverged, "skip"), (begun, "run")]
    assert actions(Rerun.FAILED) == [(new, "run"), (done, "skip"), (diverged, "reopen"), (begun, "run")]
    assert actions(Rerun.ALL) == [(new, "run"), (done, "anew"), (diverged, "anew"), (begun, "anew")]


def test_planning_writes_nothing(load, tmp_path):
    plan(load().cells, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_work_is_counted_by_hand(load):
    steps = {"steps: 2, step_size: 0.1}\nevaluation": "steps: 4}\nevaluation"}
    protocol = load({"model: small_cnn": "model: preact_resnet18", **steps}).suite.protocol
    found = work(protocol)
    # On 8x8 images PreActResNet-18 needs a sixteenth of what it needs on 32x32, but for the classifier.
    forward = 1.111e9 / 16 / 1e15
    epochs, trained, tracked, test = 2, 1097, 700, 500
    expected = {
        "training": forward * epochs * trained * (2 * 4 + 3),
        "tracking": forward * epochs * tracked * (2 * 2 + 2),
        "final": forward * 3 * test * (1 + (2 * 3 + 1)),
    }
    for part, value in expected.items():
        assert abs(found[part] / value - 1) < 0.02, part


def test_natural_training_has_no_attack_to_pay_for(load):
    natural = load({"attack: {name: pgd, steps: 2, step_size: 0.1}\nevaluation": "attack: none\nevaluation"})
    assert work(load().suite.protocol)["training"] / work(natural.suite.protocol)["training"] == 7 / 3


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
