import copy

import pytest
import torch
import torch.nn.functional as F

from bench.config.hyperparameters import CanonicalValue
from bench.registry import METHODS
from bench.training.step import EpochMetrics, train_step


def step_by_hand(network, optimizer, images, labels, gamma):
    """One update of AWP with a copy of the network for the ascent, as the paper describes it."""
    proxy = copy.deepcopy(network)
    F.cross_entropy(proxy(images), labels).backward()
    moved = {}
    for name, parameter in proxy.named_parameters():
        if parameter.dim() > 1:
            moved[name] = gamma * parameter.detach().norm() * parameter.grad / parameter.grad.norm()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, change in moved.items():
            parameters[name] += change
    optimizer.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    with torch.no_grad():
        for name, change in moved.items():
            parameters[name] -= change
    return moved


@pytest.mark.parametrize("gamma", [0.01, 0.2])
def test_a_step_equals_one_written_by_hand(start, first_batch, gamma):
    method = start("awp", dtype=torch.float64, gamma=gamma)
    network = copy.deepcopy(method.model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batch = first_batch(method)
    for _ in range(3):
        adversarial = (batch.images + 0.1).clamp(max=1)
        moved = step_by_hand(network, optimizer, adversarial, batch.labels, gamma)
        method.backward(batch, adversarial)
        method.optimizer.step()
        method.optimizer.zero_grad()
        method.after_step()
        for (name, ours), theirs in zip(method.model.state_dict().items(), network.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)  # running statistics too
    assert list(moved) == ["body.conv1.weight", "body.conv2.weight", "body.conv3.weight", "body.linear.weight"]


def test_the_weights_are_perturbed_between_gradient_and_withdrawal(start, first_batch):
    method = start("awp", gamma=0.05)
    batch = first_batch(method)
    before = {name: value.detach().clone() for name, value in method.model.named_parameters()}
    method.backward(batch, batch.images)
    for name, value in method.model.named_parameters():
        length, gamma = (value - before[name]).norm(), 0.05 if value.dim() > 1 else 0
        assert length.item() == pytest.approx(gamma * before[name].norm().item(), rel=1e-3)
    method.after_step()
    for name, value in method.model.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)


def test_it_warms_up_without_perturbation(start, first_batch):
    method = start("awp", epochs=200, warm_up=0.025, epoch=4)
    batch = first_batch(method)
    before = method.model.body.conv1.weight.detach().clone()
    method.backward(batch, batch.images)
    method.after_step()
    assert torch.equal(method.model.body.conv1.weight, before)
    method.begin_epoch(5)
    method.backward(batch, batch.images)
    assert not torch.equal(method.model.body.conv1.weight, before)


def test_the_first_forward_leaves_the_running_statistics_alone(start, first_batch):
    method = start("awp")
    batch = first_batch(method)
    method.backward(batch, batch.images)
    assert method.model.get_buffer("body.bn1.num_batches_tracked") == 1


def test_the_published_value_and_a_whole_step(start, first_batch):
    method = start("awp")
    assert method.params.model_dump() == {"gamma": 0.01, "warm_up": 0.0}
    assert METHODS.get("awp").Params.canonical("svhn", "multi_step")["warm_up"] == CanonicalValue(5 / 200, "code")
    before = method.model.body.conv1.weight.detach().clone()
    train_step(method, first_batch(method), method.optimizer, EpochMetrics(torch.device("cpu")))
    assert not torch.equal(method.model.body.conv1.weight, before)
