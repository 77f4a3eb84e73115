import copy

import pytest
import torch
import torch.nn.functional as F

from bench.data.batches import Batch
from bench.training.step import EpochMetrics, train_step


def batches(method, count):
    """Some batches in float64, in the order of the epoch."""
    found = list(method.context.batches)[:count]
    return [Batch(batch.images.double(), batch.labels, batch.index) for batch in found]


def test_each_batch_is_trained_on_several_times(start):
    """Four updates by hand: the first batch twice, the third one twice, one perturbation throughout."""
    method = start("free_at", dtype=torch.float64, replays=2)
    given = batches(method, 4)
    network = copy.deepcopy(method.model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    delta, metrics = torch.zeros_like(given[0].images), EpochMetrics(torch.device("cpu"))
    correct = losses = 0.0
    for step, batch in enumerate(given):
        trained_on = given[step - step % 2]
        x = (trained_on.images + delta).clamp(0, 1).requires_grad_()
        logits = network(x)
        loss = F.cross_entropy(logits, trained_on.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        delta = (x.detach() + 0.1 * x.grad.sign() - trained_on.images).clamp(-0.1, 0.1)
        delta = (trained_on.images + delta).clamp(0, 1) - trained_on.images
        correct += (logits.argmax(1) == trained_on.labels).sum().item()
        losses += loss.item()
        train_step(method, batch, method.optimizer, metrics)
        torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-12)
        for (name, ours), theirs in zip(method.model.state_dict().items(), network.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)
    assert metrics.read() == pytest.approx((losses / 4, correct / 64))  # of the images that were trained on


def test_an_epoch_begins_with_a_fresh_batch_and_the_perturbation_of_the_last(start):
    method = start("free_at", dtype=torch.float64, replays=8)
    first, second, third = batches(method, 3)
    metrics = EpochMetrics(torch.device("cpu"))
    for batch in (first, second):
        train_step(method, batch, method.optimizer, metrics)
        assert torch.equal(method.kept[2], first.index)
    other = start("free_at", dtype=torch.float64, replays=8)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.delta, method.delta)
    assert other.delta.abs().max() > 0
    other.begin_epoch(1)
    assert torch.equal(other.transform(third).index, third.index)
    assert torch.equal(other.perturb(third), (third.images + method.delta).clamp(0, 1))
