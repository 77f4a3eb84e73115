"""A small convolutional network for digits and tests: three convolutions with batch normalisation, one linear layer.

This project's own. Its parts are `conv1` to `conv3`, `bn1` to `bn3` and `linear`.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.architecture import Architecture, Shape


class SmallCNN(nn.Module):
    """Three 3x3 convolutions (the last two halve the resolution), average pooling, a linear classifier.

    Forward: [n, channels, height, width], both at least 4 -> logits [n, classes].
    """

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def build_small_cnn(classes: int, shape: Shape) -> nn.Module:
    """Return the network for images of `shape`, (channels, height, width), both sides at least 4."""
    return SmallCNN(classes, shape[0])


small_cnn = Architecture(
    name="small_cnn",
    title="Small CNN, three convolutions",
    reference="this project; for digits and tests, never for published comparisons",
    build=build_small_cnn,
    typical=(10, 1, 8, 8),
)
