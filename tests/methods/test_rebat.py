import copy

import pytest
import torch
import torch.nn.functional as F

SOON = 1e-9  # before an epoch


def test_the_rate_drops_less(start):
    for name, divisor in (("rebat", 1.5), ("rebat_pp", 1.7)):
        plan = start(name, epochs=200).lr_schedule
        assert plan.first_drop == 100
        rates = [plan.rate(t) for t in (1, 100 - SOON, 100, 150 - SOON, 150, 200)]
        assert rates == pytest.approx([0.1, 0.1] + 2 * [0.1 / divisor] + 2 * [0.1 / divisor**2])


@pytest.mark.parametrize("name", ["rebat", "bag_of_tricks", "kd_swa"])
def test_drops_of_its_own_keep_the_protocols_warm_up(start, name):
    plan = start(name, epochs=200, training={"schedule": {"name": "cosine", "warmup": 5}}).lr_schedule
    assert [plan.rate(t) for t in (1, 2.5, 5, 49)] == pytest.approx([0.02, 0.05, 0.1, 0.1])


def test_the_network_is_pulled_towards_its_average(start, first_batch, trained):
    """Average, loss and two updates; the average is a copy until epoch 105 of 200."""
    method = start("rebat", epochs=200, dtype=torch.float64, decay=0.9, memory=None)
    method.average.double()
    trained(method.model)
    batch = first_batch(method)
    adversarial = (batch.images + 0.1).clamp(max=1)
    for epoch in (0, 104):
        method.begin_epoch(epoch)
        method.after_step()
        assert method.loss(batch, adversarial)[0].item() == pytest.approx(
            F.cross_entropy(copy.deepcopy(method.model)(adversarial), batch.labels).item()
        )
    method.begin_epoch(105)
    method.after_step()
    trained(method.model)
    network, average = copy.deepcopy(method.model), copy.deepcopy(method.average)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        logits = network(adversarial)
        p, q = average(adversarial).softmax(1).detach(), logits.softmax(1)
        expected = F.cross_entropy(logits, batch.labels) + (p * (p / q).log()).sum(1).mean()
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        loss, _ = method.backward(batch, adversarial)
        method.optimizer.step()
        method.optimizer.zero_grad()
        method.after_step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for (name, ours), theirs in zip(method.model.state_dict().items(), network.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)
        with torch.no_grad():
            for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * value if mean.is_floating_point() else value)
    for ours, theirs in zip(method.average.state_dict().values(), average.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert method.evaluated_model() is method.average


def test_a_larger_ball_from_the_drop_on(start, first_batch):
    method = start("rebat_pp", epochs=200)
    batch, seen = first_batch(method), []
    method.model.register_forward_hook(lambda *_: seen.append(1))
    for epoch, radius, steps in ((99, 0.1, 3), (100, 0.125, 4)):
        method.begin_epoch(epoch)
        seen.clear()
        farthest = (method.perturb(batch) - batch.images).abs().max().item()
        assert farthest == pytest.approx(radius, rel=1e-5)
        assert len(seen) == steps
    assert method.params.training_radius == 1.25


def test_a_smaller_ball_is_refused(start):
    with pytest.raises(ValueError, match="radius"):
        start("rebat_pp", radius=0.9)
