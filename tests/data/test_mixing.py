"""mixup and CutMix against their formulas, image by image."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench.config.augmentation import Mix
from bench.data.batches import TrainingBatches
from bench.data.dataset import ImageSet
from bench.data.mixing import mix
from bench.testing.recorded_graph import record
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import RngStreams

COUNT, CLASSES = 400, 7
IMAGES = torch.rand(COUNT, 3, 9, 12, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
LABELS = torch.arange(COUNT) % CLASSES


def mixed(step, group=SINGLE_PROCESS, images=IMAGES, labels=LABELS):
    return mix(step, images, labels, CLASSES, torch.Generator().manual_seed(1), group)


def partners():
    """Return the share that stays, and each image's partner, as `mix` draws them first with alpha 1."""
    random = torch.Generator().manual_seed(1)
    kept = torch._sample_dirichlet(torch.ones(COUNT, 2), generator=random)[:, 0]
    return kept, torch.randperm(COUNT, generator=random)


def check_labels(labels, soft, kept, partner):
    for i in range(COUNT):
        expected = torch.zeros(CLASSES)
        expected[LABELS[i]] += kept[i]
        expected[LABELS[partner[i]]] += 1 - kept[i]
        assert soft[i] == pytest.approx(expected, abs=1e-6)
        assert expected[labels[i]] == expected.max()


def test_mixup_is_the_weighted_mean_of_two_images():
    images, labels, soft = mixed(Mix(name="mixup"))
    kept, partner = partners()
    weight = kept[:, None, None, None]
    torch.testing.assert_close(images, weight * IMAGES + (1 - weight) * IMAGES[partner])
    assert stats.kstest(kept.numpy(), stats.uniform.cdf).pvalue > 0.001
    check_labels(labels, soft, kept, partner)


def test_cutmix_shows_a_rectangle_of_another_image():
    images, labels, soft = mixed(Mix(name="cutmix"))
    drawn, partner = partners()
    kept = torch.empty(COUNT)
    for i in range(COUNT):
        other = (images[i] != IMAGES[i]).any(0)
        assert torch.equal(images[i], torch.where(other, IMAGES[partner[i]], IMAGES[i]))
        rows, columns = other.any(1).nonzero().flatten(), other.any(0).nonzero().flatten()
        if len(rows):
            assert other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        size = (1 - float(drawn[i])) ** 0.5
        assert len(rows) <= 9 * size
        assert len(columns) <= 12 * size
        kept[i] = 1 - other.float().mean() if partner[i] != i else drawn[i]
    same = partner == torch.arange(COUNT)
    check_labels(labels, soft, torch.where(same, 1.0, kept), partner)
    assert kept.std() > 0.1


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_each_image_is_mixed_with_the_probability(name):
    *_, soft = mixed(Mix(name=name, alpha=8, probability=0.25))
    untouched = int((soft.amax(1) == 1).sum())
    assert 0.72 < untouched / COUNT < 0.9  # three quarters, and mixtures with the same class
    assert torch.equal(mixed(Mix(name=name, probability=1e-9))[0], IMAGES)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_processes_of_a_group_mix_with_the_whole_batch(name):
    whole = mixed(Mix(name=name))
    for rank in range(2):

        def gather(tensor):
            whole = {5: IMAGES, 3: F.one_hot(LABELS, CLASSES), 2: LABELS}[tensor.dim()]
            tensor.copy_(whole.view(tensor.shape))

        group = ProcessGroup(rank, 2, gather)
        part = mixed(Mix(name=name), group, group.shard(IMAGES), group.shard(LABELS))
        assert all(torch.equal(ours, group.shard(full)) for ours, full in zip(part, whole, strict=True))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_batches_are_mixed_after_their_augmentation(name):
    random = RngStreams(0)
    images = ImageSet((IMAGES * 255).to(torch.uint8), LABELS)
    for batch in TrainingBatches(images, 100, (Mix(name=name),), random, classes=CLASSES):
        assert batch.soft_labels.shape == (100, CLASSES)
        assert batch.soft_labels.sum(1) == pytest.approx(1)
        assert batch.targets is batch.soft_labels
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    record(lambda: mixed(Mix(name=name)), [])  # nothing waits for the device
