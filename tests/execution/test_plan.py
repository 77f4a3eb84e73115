"""What is still to be done, and how much work it is."""

from bench.execution.plan import Rerun, plan, work
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
