import numpy as np
import torch
from sklearn.datasets import load_digits

from bench.data.datasets.digits import digits, load


def test_the_images_are_those_of_scikit_learn():
    train, test = load()
    ours = torch.cat([train.pixels, test.pixels]).squeeze(1).numpy()
    theirs = load_digits()
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, np.rint(theirs.images * 255 / 16))
    assert np.array_equal(torch.cat([train.labels, test.labels]).numpy(), theirs.target)


def test_it_is_what_it_states():
    train, test = load()
    assert (len(train), len(test)) == (digits.train_images, digits.test_images) == (1297, 500)
    assert tuple(train.pixels.shape[1:]) == tuple(test.pixels.shape[1:]) == digits.shape
    assert train.labels.dtype == torch.int64
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(digits.classes))


def test_mean_and_std_are_those_of_the_training_images():
    pixels = load()[0].pixels.double() / 255
    assert digits.mean == (round(pixels.mean().item(), 4),)
    assert digits.std == (round(pixels.std().item(), 4),)
