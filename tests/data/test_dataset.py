from dataclasses import replace

import pytest
import torch

from bench.data.dataset import ImageSet
from bench.data.digits import digits
from bench.errors import BenchError


def numbered(start, count):
    labels = torch.arange(start, start + count)
    return ImageSet(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), labels)


@pytest.fixture
def dataset():
    """A dataset whose labels number the images, training and test images apart."""
    return replace(digits, train_images=100, test_images=10, load=lambda _root: (numbered(0, 100), numbered(1000, 10)))


def test_the_parts_are_disjoint_and_complete(dataset):
    splits = dataset.splits(None, 30, split_seed=0)
    train, validation = splits.train.labels.tolist(), splits.validation.labels.tolist()
    assert (len(train), len(validation)) == (70, 30)
    assert sorted(train + validation) == list(range(100))
    assert splits.test.labels.tolist() == list(range(1000, 1010))
    assert validation != sorted(validation)  # a random part, not the first images


def test_the_split_depends_on_its_seed_alone(dataset):
    def validation(seed):
        return dataset.splits(None, 30, seed).validation.labels.tolist()

    torch.manual_seed(0)
    first = validation(0)
    torch.manual_seed(1)
    assert validation(0) == first
    assert validation(1) != first


def test_images_and_labels_stay_together():
    splits = digits.splits(None, 200, split_seed=0)
    train, _ = digits.load(None)
    known = {(image.numpy().tobytes(), int(label)) for image, label in zip(train.pixels, train.labels, strict=True)}
    for part in (splits.train, splits.validation):
        pairs = {(image.numpy().tobytes(), int(label)) for image, label in zip(part.pixels, part.labels, strict=True)}
        assert pairs <= known


@pytest.mark.parametrize("validation", [100, 5000])
def test_some_images_must_be_left_to_train_on(dataset, validation):
    with pytest.raises(BenchError, match=rf"^{validation} validation images leave none to train on: digits has 100 "):
        dataset.splits(None, validation, 0)
    assert len(dataset.splits(None, 99, 0).train) == 1


def test_take():
    taken = numbered(0, 10).take(torch.tensor([7, 2, 2]))
    assert taken.labels.tolist() == [7, 2, 2]
    assert len(taken) == len(taken.pixels) == 3
