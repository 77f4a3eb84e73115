import pytest
import torch

from bench.config.protocol import Track, Training
from bench.training.lr_schedule import protocol_schedule, tracked_epochs


def schedule(epochs, settings, lr=0.1):
    return protocol_schedule(Training(epochs=epochs, schedule=settings, optimizer={"lr": lr}))


@pytest.mark.parametrize(
    ("epoch", "step", "rate"),
    [
        (0, 0, 0.1),
        (99, 388, 0.1),
        (99, 389, 0.01),
        (100, 0, 0.01),
        (149, 388, 0.01),
        (149, 389, 0.001),
        (199, 389, 0.001),
    ],
)
def test_the_rate_falls_on_the_last_step_before_the_milestone(epoch, step, rate):
    # Rice et al., train_cifar.py: `lr_schedule(epoch + (i + 1) / len(train_batches))` with `t / args.epochs < 0.5`
    plan = schedule(200, "piecewise")
    assert plan.rate(epoch + (step + 1) / 390) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("epochs", [10, 30, 50, 100, 110, 200])
def test_milestones_in_hundredths_fall_where_they_are_written(epochs):
    # 0.55 * 200 is 110.00000000000001: a schedule that multiplies falls one step too late
    for percent in range(1, 100):
        if percent * epochs % 100 == 0:
            plan, epoch = (
                schedule(epochs, {"name": "piecewise", "milestones": [percent / 100]}),
                percent * epochs // 100,
            )
            assert plan.rate(epoch) == pytest.approx(0.01), percent
            assert plan.rate(epoch - 1e-3) == 0.1
            assert plan.first_drop == epoch


@pytest.mark.parametrize(
    ("epochs", "settings", "first_drop"),
    [
        (200, "piecewise", 100),
        (5, "piecewise", 3),  # falls in the middle of epoch 2
        (1, "piecewise", 1),
        (7, {"name": "piecewise", "milestones": []}, 7),
        (7, "constant", 7),
        (10, "cyclic", 5),
        (5, "cyclic", 3),
        (30, {"name": "cyclic", "peak": 0.4}, 12),
        (10, "one_cycle", 3),
        (10, "cosine", 5),
        (5, {"name": "cosine", "warmup": 2}, 3),
    ],
)
def test_the_first_epoch_after_the_rate_has_begun_to_fall(epochs, settings, first_drop):
    plan = schedule(epochs, settings)
    assert plan.epochs == epochs
    assert plan.first_drop == first_drop
    if first_drop < epochs:
        assert plan.rate(first_drop + 0.01) < max(plan.rate(t / 100) for t in range(1, 100 * epochs))


def test_constant():
    assert {schedule(3, "constant", lr=0.3).rate(t) for t in (0.1, 1.5, 3)} == {0.3}


@pytest.mark.parametrize(
    ("t", "rate"), [(0, 0.0), (3, 0.05), (6, 0.1), (12, 0.2), (21, 0.1), (30, 0.0), (29, 0.2 / 18)]
)
def test_cyclic_rises_to_the_peak_and_falls_to_zero(t, rate):
    plan = schedule(30, {"name": "cyclic", "peak": 0.4}, lr=0.2)
    assert plan.rate(t) == pytest.approx(rate, abs=1e-12)


def test_the_factor_applies_at_each_milestone():
    plan = schedule(8, {"name": "piecewise", "milestones": [0.25, 0.5, 0.75], "factor": 0.5}, lr=1)
    assert [plan.rate(t) for t in (1.9, 2, 4, 6, 8)] == [1, 0.5, 0.25, 0.125, 0.125]


def test_a_cosine_falls_from_the_end_of_the_warm_up_to_zero():
    plan = schedule(10, {"name": "cosine", "warmup": 2}, lr=0.4)
    assert [plan.rate(t) for t in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    assert [schedule(4, "cosine").rate(t) for t in (0, 1, 4)] == pytest.approx([0.1, 0.1 * (2 + 2**0.5) / 4, 0])


@pytest.mark.parametrize("name", ["piecewise", "constant"])
def test_a_warm_up_scales_the_rate(name):
    plan, plain = schedule(10, {"name": name, "warmup": 6}), schedule(10, name)
    for t in (0.5, 3, 5.5, 6, 9):  # as dat-2022/dat, main.py: (step + 1) / (warm-up steps)
        assert plan.rate(t) == pytest.approx(plain.rate(t) * min(1, t / 6))
    assert plan.first_drop == plain.first_drop


def test_one_cycle_is_that_of_torch():
    steps, epochs = 100, 10
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps * epochs + 1)
    plan = schedule(epochs, "one_cycle", lr=0.3)
    step_of_peak = (steps * epochs + 1) * 0.3 - 1  # torch counts steps from 0 to one before the last
    for step in range(steps * epochs):
        share = (
            step / step_of_peak * 0.3
            if step < step_of_peak
            else 0.3 + 0.7 * (step - step_of_peak) / (steps * epochs - step_of_peak)
        )
        assert plan.rate(share * epochs) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("settings", "drops"),
    [
        ("piecewise", [10, 15]),
        ({"name": "piecewise", "milestones": [0.5], "factor": 0.6}, [10]),  # the first drop, though it is no half
        ({"name": "piecewise", "milestones": [0.05, 0.95], "warmup": 1}, [1, 19]),
        ("cosine", [10]),
        ("cyclic", [10]),
        ("constant", [20]),
    ],
)
def test_drops_are_the_epochs_after_the_rate_has_fallen(settings, drops):
    assert schedule(20, settings).drops() == drops


def test_epochs_are_tracked_regularly_around_drops_and_at_the_end():
    plan = schedule(18, {"name": "piecewise", "milestones": [0.5]})
    assert tracked_epochs(plan, Track()) == {*range(18)}
    assert tracked_epochs(plan, Track(every=5)) == {4, 9, 14} | {7, 8, 9, 10} | {17}
    assert tracked_epochs(plan, Track(every=5, around=0)) == {4, 9, 14, 17}
    assert tracked_epochs(schedule(3, "constant"), Track(every=50)) == {1, 2}  # the drop that never comes is the end
