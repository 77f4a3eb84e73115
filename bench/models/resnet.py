"""Residual networks for small images (He et al., Deep Residual Learning for Image Recognition, 2016).

The CIFAR form: a 3x3 stem without pooling, then four stages. The names of the parts (`conv1`, `bn1`, `layer1.0.conv1`,
`layer1.0.bn1`, ..., `layer2.0.shortcut.0`, `layer2.0.shortcut.1`, `linear`) are those of Kuang Liu's pytorch-cifar,
which most published robust weights of this size use, so that such weights load by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.architecture import Architecture, Shape


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation; the shortcut is added before the second activation.

    Forward: [n, inputs, h, w] -> [n, outputs, h / stride, w / stride], sides rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        activated: Tensor = self.relu2(out)
        return activated


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (each after the first halves the resolution), pooling, a classifier.

    Forward: [n, channels, height, width] -> logits [n, classes]; pooling is global, so any size of at least 8 works.
    """

    def __init__(self, classes: int, channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        inputs = widths[0]
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            layer = nn.Sequential()
            for block in range(count):
                layer.append(BasicBlock(inputs, width, stride=2 if stage > 1 and block == 0 else 1))
                inputs = width
            self.add_module(f"layer{stage}", layer)
        self.stages = len(widths)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def build_resnet18(classes: int, shape: Shape) -> nn.Module:
    """Return ResNet-18: four stages of two blocks, 64 to 512 channels."""
    return ResNet(classes, shape[0], widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))


resnet18 = Architecture(
    name="resnet18",
    title="ResNet-18, CIFAR form",
    reference="He et al., Deep Residual Learning for Image Recognition, 2016; CIFAR form of Kuang Liu, pytorch-cifar",
    build=build_resnet18,
)
