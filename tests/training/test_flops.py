import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.attacks.pgd import cross_entropy, frozen_parameters, pgd
from bench.config.attacks import Threat
from bench.models.architecture import size_of
from bench.models.small_cnn import small_cnn
from bench.training.flops import CountedFlops


def test_products_and_convolutions_are_counted_by_hand():
    with CountedFlops() as counted:
        torch.rand(3, 4) @ torch.rand(4, 5)
        F.conv2d(torch.rand(2, 3, 8, 8), torch.rand(6, 3, 3, 3), padding=1)
        torch.rand(100).exp()
    assert counted.flops == 2 * 3 * 4 * 5 + 2 * 2 * 64 * 6 * 3 * 9


@pytest.mark.parametrize("steps", [1, 3])
def test_an_attack_step_is_two_forward_passes_and_an_update_three(steps):
    """Frozen parameters have no gradients to pay for; the first convolution's input gradient is paid for in neither."""
    _, forward = size_of(small_cnn)
    network, images, labels = small_cnn.build(10, (1, 8, 8)), torch.rand(4, 1, 8, 8), torch.arange(4)
    with CountedFlops() as counted, frozen_parameters(network):
        pgd(
            network, images, cross_entropy(labels),
            threat=Threat(norm="linf", eps=0.1), steps=steps, step_size=0.1,
        )  # fmt: skip
    assert counted.flops == steps * 2 * 4 * forward
    first = 2 * 16 * 9 * 64
    with CountedFlops() as counted:
        F.cross_entropy(network(images), labels).backward()
    assert counted.flops == 4 * (3 * forward - first)


def test_counting_changes_no_result():
    network, images = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    plain = network(images)
    with CountedFlops():
        assert torch.equal(network(images), plain)
