"""Pre-activation residual networks for small images (He et al., Identity Mappings in Deep Residual Networks, 2016).

The names of the parts (`conv1`, `layer1.0.bn1`, ..., `bn`, `linear`) are those that published robust-overfitting
checkpoints use, so that such weights load by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.architecture import Architecture, Shape


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and activation; the shortcut leaves after the first.

    Forward: [n, inputs, h, w] -> [n, outputs, h / stride, w / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(self.relu2(self.bn2(out)))
        added: Tensor = out + shortcut
        return added


class PreActResNet(nn.Module):
    """A 3x3 stem, stages of pre-activation blocks (each after the first halves the resolution), pooling, a classifier.

    Forward: [n, channels, height, width] -> logits [n, classes]; pooling is global, so any size of at least 8 works.
    """

    def __init__(self, classes: int, channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        inputs = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(PreActBlock(inputs, width, stride))
                inputs = width
            self.add_module(f"layer{stage}", layer)
        self.stages = len(widths)
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        x = F.adaptive_avg_pool2d(self.relu(self.bn(x)), 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def build_preact_resnet18(classes: int, shape: Shape) -> nn.Module:
    """Return PreActResNet-18: four stages of two blocks, 64 to 512 channels."""
    return PreActResNet(classes, shape[0], widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))


def build_preact_resnet8_32(classes: int, shape: Shape) -> nn.Module:
    """Return three stages of one block, 32 to 128 channels: 2 x 3 convolutions, the stem and the classifier make 8."""
    return PreActResNet(classes, shape[0], widths=(32, 64, 128), blocks=(1, 1, 1))


def build_preact_resnet14_16(classes: int, shape: Shape) -> nn.Module:
    """Return three stages of two blocks, 16 to 64 channels: 4 x 3 convolutions, the stem and the classifier make 14."""
    return PreActResNet(classes, shape[0], widths=(16, 32, 64), blocks=(2, 2, 2))


_REFERENCE = "He et al., Identity Mappings in Deep Residual Networks, 2016"

preact_resnet18 = Architecture(
    name="preact_resnet18",
    title="PreActResNet-18",
    reference=f"{_REFERENCE}; CIFAR form of Rice et al., 2020",
    build=build_preact_resnet18,
)

preact_resnet8_32 = Architecture(
    name="preact_resnet8_32",
    title="PreActResNet-8, 32 to 128 channels",
    reference=f"{_REFERENCE}; this size is this project's",
    build=build_preact_resnet8_32,
)

preact_resnet14_16 = Architecture(
    name="preact_resnet14_16",
    title="PreActResNet-14, 16 to 64 channels",
    reference=f"{_REFERENCE}; this size is this project's, with the widths of their CIFAR networks",
    build=build_preact_resnet14_16,
)
