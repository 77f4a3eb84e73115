import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.models.batch_counters import BatchCounters


class Additions(TorchDispatchMode):
    """Counts additions to integers."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        into = args[0][0] if isinstance(args[0], list) else args[0]
        self.found += "add" in func._schema.name and into.dtype == torch.int64
        return func(*args, **(kwargs or {}))


def test_counters_advance_in_one_operation_and_layers_without_momentum_count_by_themselves():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3))
    model[3].eval()
    counters, images = BatchCounters(model), torch.randn(4, 3)
    found = []
    for _ in range(3):
        with Additions() as additions, counters.counted_once():
            model(images)
            model(images)
        found.append((additions.found, [layer.state_dict()["num_batches_tracked"].item() for layer in model]))
    assert found == [(6, [2, 2, 2, 0]), (3, [4, 4, 4, 0]), (3, [6, 6, 6, 0])]
    model(images)
    assert model[0].num_batches_tracked == 7


def test_layers_count_again_after_an_error():
    model, images = nn.BatchNorm1d(3), torch.randn(4, 3)
    counters = BatchCounters(model)
    with counters.counted_once():
        model(images)
    with pytest.raises(KeyError), counters.counted_once():
        raise KeyError
    model(images)
    assert model.num_batches_tracked == 2


def test_a_network_without_batch_normalisation_has_no_counters():
    with Additions() as additions, BatchCounters(nn.Linear(2, 2)).counted_once():
        pass
    assert additions.found == 0
