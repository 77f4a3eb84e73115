import re

import pytest
import torch

from bench.errors import BenchError
from bench.models.architecture import size_of
from bench.models.resnet50 import build_resnet50, resnet50

STAGES = ((64, 64, 3, 56), (256, 128, 4, 28), (512, 256, 6, 14), (1024, 512, 3, 7))  # inputs, inside, blocks, side


def test_the_size():
    weights, multiply_adds = 3 * 64 * 49 + 2 * 64, 3 * 64 * 49 * 112 * 112
    for inputs, inside, blocks, side in STAGES:
        outputs = 4 * inside
        for block in range(blocks):
            first = inputs if block == 0 else outputs
            shortcut = first * outputs if block == 0 else 0
            weights += first * inside + 9 * inside * inside + inside * outputs + shortcut
            weights += 2 * (2 * inside + outputs + (outputs if block == 0 else 0))
            before = (2 * side) ** 2 if block == 0 and inside > 64 else side**2  # the 3x3 convolution has the stride
            multiply_adds += before * first * inside + side**2 * (9 * inside * inside + inside * outputs + shortcut)
    weights += 2048 * 9 + 9
    multiply_adds += 2048 * 9
    assert size_of(resnet50) == (weights, 2 * multiply_adds)
    assert weights == 25_557_032 - 991 * 2049  # torchvision's documentation, for 1,000 classes
    assert multiply_adds == pytest.approx(4.09e9, rel=0.001)


def test_a_photograph_fits():
    network = build_resnet50(9, (3, 224, 224)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 224, 224)).shape == (1, 9)


def test_images_of_another_kind_are_refused():
    with pytest.raises(BenchError, match=re.escape("resnet50 takes images of 3 channels, not 1")):
        build_resnet50(9, (1, 224, 224))
