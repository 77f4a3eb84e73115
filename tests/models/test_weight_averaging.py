import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.models.weight_averaging import frozen_copy, move_towards, recompute_statistics, running_statistics_kept


def network(seed, momentum=0.1):
    torch.manual_seed(seed)
    built = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 2))
    with torch.no_grad():
        built[1].running_mean.uniform_(-1, 1)
        built[1].running_var.uniform_(1, 2)
        built[1].num_batches_tracked.fill_(seed)
    return built


def test_a_copy_is_frozen_and_its_own():
    model = network(1)
    copied = frozen_copy(model)
    assert not copied.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(copied[0].weight, model[0].weight)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_moving_towards_a_model(share, buffers):
    average, model = network(1), network(2)
    before = {name: value.clone().double() for name, value in average.state_dict().items()}
    move_towards(average, model, share, buffers=buffers)
    for name, value in average.state_dict().items():
        target = model.state_dict()[name].double()
        if "tracked" in name or ("running" in name and buffers == "copy"):
            expected = target
        else:
            expected = (1 - share) * before[name] + share * target
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    assert average[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_two_operations_give_the_bits_of_one_for_every_tensor(buffers):
    average, model = network(1), network(2)
    expected = {name: value.clone() for name, value in average.state_dict().items()}
    for name, value in model.state_dict().items():
        if "tracked" in name or ("running" in name and buffers == "copy"):
            expected[name].copy_(value)
        else:
            expected[name].lerp_(value, 0.3)
    with Operations() as operations:
        move_towards(average, model, 0.3, buffers=buffers)
    assert all(torch.equal(value, expected[name]) for name, value in average.state_dict().items())
    assert operations.names == ["aten::_foreach_lerp_", "aten::_foreach_copy_"]
    stateless = nn.ReLU()
    move_towards(stateless, stateless, 0.3, buffers=buffers)


def test_running_statistics_can_be_kept():
    model, images = network(1), torch.randn(8, 3)
    before = [buffer.clone() for buffer in model.buffers()]
    with running_statistics_kept(model):
        inside = model(images)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before, strict=True))
    torch.testing.assert_close(model(images), inside)  # batch statistics both times
    assert not torch.equal(model[1].running_mean, before[0])
    with pytest.raises(KeyError), running_statistics_kept(model):
        raise KeyError
    assert model[1].track_running_stats


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("train", [True, False])
def test_recomputed_statistics_are_those_of_a_fresh_pass(momentum, train):
    model = network(1, momentum).train(train)
    batches = [torch.randn(8, 3) * scale + scale for scale in (1.0, 2.0, 5.0)]
    recompute_statistics(model, batches)
    inputs = [model[0](batch).detach().double() for batch in batches]
    mean = sum(x.mean(0) for x in inputs) / 3
    variance = sum(x.var(0, unbiased=True) for x in inputs) / 3
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert model[1].momentum == momentum
    assert {module.training for module in model.modules()} == {train}


def test_without_batch_normalisation_nothing_is_passed_through():
    recompute_statistics(nn.Linear(3, 2), iter([None]))


def test_recomputing_reads_no_number_from_the_device():
    with NoReads():
        recompute_statistics(network(1), [torch.randn(8, 3), torch.randn(8, 3)])


class Operations(TorchDispatchMode):
    """Names the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class NoReads(TorchDispatchMode):
    """Fails where an operation brings a number to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
