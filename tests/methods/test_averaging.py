from dataclasses import replace

import torch

from bench.data.batches import TrainingBatches
from bench.utils.rng import RngStreams
from methods.averaging import first_averaged


def values(network):
    return [value.detach().double().clone() for value in network.parameters()]


def statistics(network):
    return [value.double().clone() for value in network.buffers() if value.is_floating_point()]


def close(one, other):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def averages(begin, trained, epochs, **params):
    """Return what a method saw, what it averaged and its average after five steps, one in each of `epochs`."""
    method = begin("ema", epochs=20, **params)  # the rate drops at epoch 10
    seen, counted = [values(method.model)], [statistics(method.model)]
    for epoch in epochs:
        method.begin_epoch(epoch)
        trained(method.model)
        method.after_step()
        seen.append(values(method.model))
        counted.append(statistics(method.model))
    assert method.evaluated_model() is method.average
    assert not method.average.training
    return method, seen, counted


def weighted(kept, decays):
    """Return the sum of w_i (1 - d_i) d_(i+1) ... d_n, with d_0 = 0, per tensor."""
    shares = [1.0]
    for decay in decays:
        shares = [share * decay for share in shares] + [1 - decay]
    assert abs(sum(shares) - 1) < 1e-12
    return [sum(s * v for s, v in zip(shares, column, strict=True)) for column in zip(*kept, strict=True)]


def test_rebats_average_starts_after_the_first_drop_and_includes_the_statistics(start, trained):
    method, seen, counted = averages(start, trained, [8, 9, 10, 11, 12], start=0.05, decay=0.25)
    decays = [0, 0, 0, 0.25, 0.25]  # a copy up to epoch 10 + round(0.05 * 20)
    close(values(method.average), weighted(seen, decays))
    close(statistics(method.average), weighted(counted, decays))
    method = start("ema", epochs=200)
    method.begin_epoch(104)
    assert not method.started
    method.begin_epoch(105)
    assert method.started


def test_deepminds_average_keeps_less_at_first_and_copies_the_statistics(start, trained):
    method, seen, counted = averages(start, trained, range(5), recipe="deepmind", decay=0.25)
    close(values(method.average), weighted(seen, [1 / 10, 2 / 11, 0.25, 0.25, 0.25]))  # 3/12 is the decay itself
    close(statistics(method.average), counted[-1])


def test_swa_is_the_mean_of_the_epochs_since_its_start(start, trained):
    method = start("swa", epochs=20, start=0.1)  # the rate drops at epoch 10
    seen = []
    for epoch in range(16):
        method.context.random.start_epoch(epoch)
        trained(method.model)
        assert method.evaluated_model() is (method.average if epoch > 12 else method.model)
        method.end_epoch(epoch)
        if epoch >= 12:
            seen.append(values(method.model))
            close(values(method.average), [sum(column) / len(seen) for column in zip(*seen, strict=True)])
    assert method.averaged == len(seen) == 4


def test_swa_starts_five_epochs_of_200_after_the_first_drop(start):
    method = start("swa", epochs=200)
    assert first_averaged(method) == 105
    method.lr_schedule = replace(method.lr_schedule, first_drop=50)  # as in the released recipe
    assert first_averaged(method) == 55


def test_swa_has_statistics_of_its_own(start, trained):
    """They are those of one pass over the epoch's clean batches: mean of batch means, mean of unbiased variances."""
    method = start("swa", epochs=20, start=0.0)
    for epoch in (10, 11, 12):
        method.context.random.start_epoch(epoch)
        trained(method.model)
        method.end_epoch(epoch)
    random = RngStreams(0)
    random.start_epoch(12)
    inputs = {name: [] for name in ("bn1", "bn2", "bn3")}
    handles = [
        getattr(method.average.body, name).register_forward_hook(lambda _m, args, _o, into=into: into.append(args[0]))
        for name, into in inputs.items()
    ]
    kept = statistics(method.average)
    method.average.train()
    with torch.no_grad():
        for batch in TrainingBatches(method.context.batches.images, 16, (), random):
            method.average(batch.images)
    for handle in handles:
        handle.remove()
    expected = []
    for into in inputs.values():
        flat = [x.double().transpose(0, 1).flatten(1) for x in into]
        expected += [sum(x.mean(1) for x in flat) / 4, sum(x.var(1) for x in flat) / 4]
    close(kept[2:], expected)  # after the mean and the standard deviation of the input
