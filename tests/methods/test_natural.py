import pytest
import torch.nn.functional as F


def test_natural_training_attacks_nothing(start, first_batch, follows):
    method = start("natural")
    batch = first_batch(method)
    assert method.perturb(batch) is batch.images
    follows(method, lambda network, batch, images: F.cross_entropy(network(images), batch.labels))


@pytest.mark.parametrize(("epochs", "share", "first"), [(200, 0.5, 100), (6, 0.25, 2), (10, 0.0, 0)])
def test_natural_first_changes_once(start, first_batch, epochs, share, first):
    method = start("natural_first", epochs=epochs, start=share)
    batch = first_batch(method)
    for epoch in {0, max(0, first - 1), first, epochs - 1}:
        method.begin_epoch(epoch)
        assert (method.perturb(batch) is batch.images) == (epoch < first), epoch
    assert method.lr_schedule.epochs == epochs
