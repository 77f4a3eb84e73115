from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.data.datasets.digits import digits
from bench.models.architecture import Architecture, Network, build_network, size_of
from bench.models.preact_resnet import preact_resnet18
from bench.models.small_cnn import small_cnn


def test_the_network_normalises_every_channel():
    network = Network(nn.Identity(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    images = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(images[:, 0] - 0.1) / 0.5, (images[:, 1] - 0.2) / 0.25, images[:, 2] - 0.3], dim=1)
    torch.testing.assert_close(network(images), expected)


def test_normalisation_travels_with_the_weights_and_is_not_trained():
    one = Network(nn.Identity(), mean=(0.1,), std=(0.5,))
    other = Network(nn.Identity(), mean=(0.9,), std=(0.9,))
    other.load_state_dict(one.state_dict())
    assert (other.mean.item(), other.std.item()) == pytest.approx((0.1, 0.5))
    assert list(one.parameters()) == []


def weights(seed):
    return build_network(small_cnn, digits, seed).state_dict()


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    second = weights(0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["body.conv1.weight"], weights(1)["body.conv1.weight"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    weights(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_fits_its_dataset():
    dataset = replace(digits, classes=7, shape=(2, 12, 12), mean=(0.1, 0.2), std=(0.3, 0.4))
    network = build_network(small_cnn, dataset, 0)
    assert network(torch.rand(3, 2, 12, 12)).shape == (3, 7)
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize(("architecture", "channels", "size"), [(small_cnn, 1, 8), (small_cnn, 3, 32)])
def test_any_small_image_fits(architecture, channels, size):
    assert architecture.build(10, (channels, size, size)).eval()(torch.rand(2, channels, size, size)).shape == (2, 10)


def test_a_multiply_add_counts_as_two_operations():
    def build(classes, shape):
        channels, height, width = shape
        return nn.Sequential(nn.Conv2d(channels, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * height * width, classes))

    architecture = Architecture("x", "X", "none", build, typical=(4, 2, 6, 7))
    parameters = (5 * 2 * 9 + 5) + (5 * 6 * 7 * 4 + 4)
    assert size_of(architecture) == (parameters, 2 * (6 * 7 * 5 * 2 * 9 + 5 * 6 * 7 * 4))
    assert size_of(architecture, (8, 2, 6, 7))[0] == parameters + 5 * 6 * 7 * 4 + 4
    assert size_of(architecture, (4, 2, 3, 7))[1] == size_of(architecture)[1] // 2


class Attention(nn.Module):
    """One head over the places of an image; a token of its own goes through a layer, as in some vision transformers."""

    def __init__(self, classes, channels):
        super().__init__()
        self.rates = torch.linspace(0, 0.5, 3).tolist()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.cat([self.norm(self.token.expand(len(x), -1, -1)), x.flatten(2).mT], dim=1)
        return self.linear(nn.functional.scaled_dot_product_attention(x, x, x)[:, 0])


def test_attention_is_counted():
    architecture = Architecture("x", "X", "none", lambda classes, shape: Attention(classes, shape[0]))
    tokens = 1 + 5 * 5
    products = 2 * tokens * tokens * 8
    assert size_of(architecture, (4, 8, 5, 5)) == (8 + 2 * 8 + 8 * 4 + 4, 2 * (products + 8 * 4))


def test_numbers_that_a_network_is_built_with_are_kept():
    built = []
    architecture = Architecture("x", "X", "none", lambda *size: built.append(Attention(10, 8)) or built[-1])
    size_of(architecture, (10, 8, 5, 5))
    assert built[0].rates == [0, 0.25, 0.5]
    assert built[0].token.is_meta
    assert torch.linspace(0, 1, 2, device="meta").is_meta


def test_the_size_of_small_cnn():
    convolutions = 64 * 16 * 9 + 16 * 32 * 16 * 9 + 4 * 64 * 32 * 9  # 8x8, 4x4, 2x2 places
    assert size_of(small_cnn) == (24_058, 2 * (convolutions + 64 * 10))


def test_measuring_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    size_of(preact_resnet18)
    assert torch.equal(torch.get_rng_state(), before)
