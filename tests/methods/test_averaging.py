import torch

from bench.data.batches import TrainingBatches
from bench.utils.rng import RngStreams


def values(network):
    return [value.detach().double().clone() for value in network.parameters()]


def statistics(network):
    return [value.double().clone() for value in network.buffers() if value.is_floating_point()]


def close(one, other):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_ema_is_a_weighted_sum_of_all_steps(start, trained):
    """a_n is the sum of w_i (1 - d_i) d_(i+1) ... d_n; w_0 is the initial network, d_t is min((1+t)/(10+t), decay)."""
    method = start("ema", decay=0.25)
    seen, averaged = [values(method.model)], [statistics(method.model)]
    decays = [1 / 10, 2 / 11, 0.25, 0.25, 0.25]  # 3/12 is the decay itself
    for _ in decays:
        trained(method.model)
        method.after_step()
        seen.append(values(method.model))
        averaged.append(statistics(method.model))
    shares = [1.0]
    for decay in decays:
        shares = [share * decay for share in shares] + [1 - decay]
    assert abs(sum(shares) - 1) < 1e-12
    for kept, found in ((seen, values(method.average)), (averaged, statistics(method.average))):
        close(found, [sum(s * v for s, v in zip(shares, column, strict=True)) for column in zip(*kept, strict=True)])
    assert method.evaluated_model() is method.average
    assert not method.average.training


def test_ema_remembers_a_thousand_steps_in_the_end(start, trained):
    method = start("ema")
    method.steps = 100_000
    before = values(method.average)
    trained(method.model)
    method.after_step()
    close(values(method.average), [0.999 * a + 0.001 * w for a, w in zip(before, values(method.model), strict=True)])


def test_swa_is_the_mean_of_the_epochs_since_its_start(start, trained):
    method = start("swa", epochs=20)  # the first of them is round(0.275 * 20)
    seen = []
    for epoch in range(12):
        method.context.random.start_epoch(epoch)
        trained(method.model)
        assert method.evaluated_model() is (method.average if epoch > 6 else method.model)
        method.end_epoch(epoch)
        if epoch >= 6:
            seen.append(values(method.model))
            close(values(method.average), [sum(column) / len(seen) for column in zip(*seen, strict=True)])
    assert method.averaged == len(seen) == 6
    assert round(start("swa").params.start * 200) == 55


def test_swa_has_statistics_of_its_own(start, trained):
    """They are those of one pass over the epoch's clean batches: mean of batch means, mean of unbiased variances."""
    method = start("swa", epochs=20)
    for epoch in (6, 7, 8):
        method.context.random.start_epoch(epoch)
        trained(method.model)
        method.end_epoch(epoch)
    random = RngStreams(0)
    random.start_epoch(8)
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
