import itertools

import pytest
import torch
import torch.nn.functional as F

SOON = 1e-9


@pytest.fixture
def gradients():
    random = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 4, generator=random, dtype=torch.float64)
    return centres[torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])] + 0.1 * torch.randn(
        8, 4, generator=random, dtype=torch.float64
    )


def test_craig_takes_one_batch_of_each_cluster(start, gradients):
    weights = start("coreset_craig").choose(gradients, 3)
    chosen = weights.nonzero()[:, 0].tolist()
    assert [sum(place in part for place in chosen) for part in ((0, 1, 2), (3, 4), (5, 6, 7))] == [1, 1, 1]
    assert sorted(weights[chosen].tolist()) == [2, 3, 3]  # the sizes of the clusters
    distances = (gradients[:, None] - gradients[None]).square().sum(2)
    cost = {c: distances[:, list(c)].min(1).values.sum() for c in itertools.combinations(range(8), 3)}
    assert cost[tuple(chosen)] < 1.2 * min(cost.values())  # the greedy choice, against all choices


def test_gradmatch_matches_the_sum_of_all(start, gradients):
    method = start("coreset_gradmatch")
    weights = method.choose(gradients, 6)
    assert (weights > 0).sum() == 6
    matched = [place for place in range(8) if weights[place] not in (0, 1)]
    error = gradients.sum(0) - weights[matched].double() @ gradients[matched]
    assert error.norm() < 0.05 * gradients.sum(0).norm()
    one = method.choose(gradients, 1)  # least squares along the gradient that fits best
    (place,) = one.nonzero()[:, 0].tolist()
    target = gradients.sum(0)
    assert place == max(range(8), key=lambda i: gradients[i] @ target)
    assert one[place].item() == pytest.approx((gradients[place] @ target / gradients[place].square().sum()).item())


@pytest.mark.parametrize("name", ["coreset_craig", "coreset_gradmatch"])
def test_gradients_of_the_last_layer(start, trained, name):
    """Those of autograd, on the same adversarial images."""
    method = start(name, attack="none")
    trained(method.model)
    before = {key: value.clone() for key, value in method.model.state_dict().items()}
    index = list(torch.arange(32).split(16))
    found = list(method.gradients(index))
    assert all(torch.equal(value, before[key]) for key, value in method.model.state_dict().items())
    images = method.context.batches.images
    for places, ours in zip(index, found, strict=True):
        (pixels,) = images.read([places])
        logits = method.model(pixels.float() / 255)
        loss = F.cross_entropy(logits, images.labels[places])
        layer = method.model.body.linear
        of_weight, of_bias = torch.autograd.grad(loss, (layer.weight, layer.bias))
        expected = torch.cat((of_weight.flatten(), of_bias)) if name == "coreset_gradmatch" else of_bias
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
        method.model.load_state_dict(before)  # the passes above have moved the running statistics


def test_phases_and_rate(start):
    """Of 120 epochs: 30 on all images, 30 left out, 60 on half of them, chosen every 20."""
    method = start("coreset_craig", epochs=120)
    plan = method.lr_schedule
    assert (plan.epochs, plan.first_drop) == (90, 30)
    rates = [plan.rate(t) for t in (1, 30, 30 + SOON, 60 - SOON, 60, 90)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])  # the protocol's, which drops at 60 and 90
    assert method.select(29) is None
    choices = []
    method.choose = lambda gradients, count: choices.append((len(gradients), count)) or torch.tensor([0.0, 3, 1, 0])
    for epoch in range(30, 90):
        index, weights = method.select(epoch)
    assert choices == [(4, 2)] * 3
    assert index.tolist() == list(range(16, 48))
    assert weights.tolist() == [3] * 16 + [1] * 16


def test_extra_images_are_not_chosen(start):
    method = start("coreset_craig", attack="none")
    method.context.batches.own = 32  # as if the other 32 were extra images
    index, _ = method.select(3)
    assert len(index) == 16
    assert index.max() < 32
