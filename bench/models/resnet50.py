"""ResNet-50 for images of about 224x224 (He et al., Deep Residual Learning for Image Recognition, 2016).

The network is torchvision's: stride in the 3x3 convolutions (version 1.5), parts named `conv1`, `bn1`,
`layer1.0.conv1`, ..., `layer1.0.downsample.0`, ..., `fc`, as in the robust weights published for ImageNet.
"""

from __future__ import annotations

from torch import nn

from bench.errors import BenchError
from bench.models.architecture import Architecture, Shape


def build_resnet50(classes: int, shape: Shape) -> nn.Module:
    """Return torchvision's ResNet-50 for images of `shape`, (channels, height, width), with its initial weights.

    Raises:
        BenchError: the images do not have three channels.
    """
    if shape[0] != 3:
        raise BenchError(f"resnet50 takes images of 3 channels, not {shape[0]}")
    from torchvision.models import resnet50  # here, since it takes a second to import

    network: nn.Module = resnet50(weights=None, num_classes=classes)
    return network


resnet50 = Architecture(
    name="resnet50",
    title="ResNet-50 of torchvision",
    reference="He et al., Deep Residual Learning for Image Recognition, 2016; torchvision.models.resnet50",
    build=build_resnet50,
    typical=(9, 3, 224, 224),
)
