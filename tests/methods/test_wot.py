import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from bench.data.batches import Batch, to_float


def held_out(method, count=32):
    """Some training images as held-out batches of 16, in float64."""
    images = method.context.batches.images
    index = torch.arange(count).split(16)
    return [
        Batch(to_float(pixels).double(), images.labels[places], places)
        for places, pixels in zip(index, images.read(index), strict=True)
    ]


@pytest.fixture
def refined(start, trained, monkeypatch):
    """Return a method after two intervals and one refinement, the weights before, and its held-out batches."""

    def refined(blocks, epoch=9, **params):
        method = start("wot", epochs=20, dtype=torch.float64, blocks=blocks, images=16, passes=3, **params)
        given = held_out(method)
        monkeypatch.setattr(type(method.context), "held_out", lambda _context: iter(given))
        method.attack = lambda batch, _objective, batch_norm: (batch.images + 0.1).clamp(max=1)  # not what is tested
        method.origin = method.last = method.weights()
        points = [copy.deepcopy(method.model)]
        for _ in range(2):
            trained(method.model)
            now = method.weights()
            method.kept.append([a - b for a, b in zip(now, method.last, strict=True)])
            method.last = now
            points.append(copy.deepcopy(method.model))
        method.optimizer.state[next(method.model.parameters())] = {"momentum_buffer": torch.ones(1)}
        return method, points, given

    return refined


@pytest.mark.parametrize(("blocks", "train"), [("whole", False), ("stages", True)])
def test_the_factors_follow_projected_momentum(refined, blocks, train):
    """By hand: one factor per change and block, clipped to [0, 1], momentum from zero in each pass."""
    method, points, given = refined(blocks)
    method.context.random.start_epoch(9)
    names = [name for name, _ in points[0].named_parameters()]
    group = {name: "first" if blocks == "stages" and "conv1" in name else "rest" for name in names}
    changes = [
        {n: (b.get_parameter(n) - a.get_parameter(n)).detach() for n in names} for a, b in itertools.pairwise(points)
    ]
    factors = {(j, g): 0.0 for j in range(2) for g in set(group.values())}
    network = copy.deepcopy(points[-1]).train(train)

    def combine():
        with torch.no_grad():
            for name in names:
                total = points[0].get_parameter(name).clone()
                for j in range(2):
                    total += factors[j, group[name]] * changes[j][name]
                network.get_parameter(name).copy_(total)

    for _ in range(3):
        speed = dict.fromkeys(factors, 0.0)
        for batch in given:
            combine()
            live = copy.deepcopy(network)
            loss = F.cross_entropy(live((batch.images + 0.1).clamp(max=1)), batch.labels)
            gradients = dict(zip(names, torch.autograd.grad(loss, list(live.parameters())), strict=True))
            for j, g in factors:
                slope = sum((gradients[n] * changes[j][n]).sum().item() for n in names if group[n] == g)
                speed[j, g] = 0.9 * speed[j, g] + slope
            factors = {key: min(1.0, max(0.0, value - 0.1 * speed[key])) for key, value in factors.items()}
    combine()
    assert any(0 < value < 1 for value in factors.values())
    method.refine(train=train)
    for name in names:
        torch.testing.assert_close(
            method.model.get_parameter(name), network.get_parameter(name), rtol=1e-5, atol=1e-7, msg=name
        )
    assert not method.optimizer.state
    assert not method.kept
    assert all(torch.equal(a, b) for a, b in zip(method.origin, method.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "blocks"),
    [("preact_resnet8_32", "conv1 layer1 layer2 layer3 rest"), ("wide_resnet/10-1", "block1 block2 block3 conv1 rest")],
)
def test_every_stage_has_factors_of_its_own(start, model, blocks):
    method = start("wot", model=model, images=16)
    names = [name.split(".")[1] for name, _ in method.model.named_parameters()]
    expected = [name if name in blocks.split() else "rest" for name in names]
    assert [blocks.split()[block] for block in method.block_of] == expected


def test_when_it_refines(start, monkeypatch):
    method, calls = start("wot", epochs=200, images=16), []
    monkeypatch.setattr(method, "refine", lambda *, train: (calls.append((epoch, train)), method.kept.clear()))
    for epoch in range(200):
        method.end_epoch(epoch)
    assert [epoch for epoch, _ in calls] == [*range(103, 200, 4)]
    assert [epoch for epoch, train in calls if train] == [*range(151, 200, 4)]
    calls.clear()
    short = start("wot", epochs=6, images=16)
    monkeypatch.setattr(short, "refine", lambda *, train: calls.append((epoch, len(short.kept))))
    for epoch in range(6):
        short.end_epoch(epoch)
    assert calls == [(5, 3)]  # fewer changes, at the end of training


def test_images_that_it_keeps(start):
    params = type(start("wot", images=16)).Params
    assert params().held_out == 1000
    assert params.canonical("digits", "multi_step")["images"].value == 100
