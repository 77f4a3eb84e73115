"""Wide residual networks for small images (Zagoruyko and Komodakis, Wide Residual Networks, 2016).

`wide_resnet/<depth>-<width>`, such as `wide_resnet/34-10`: pre-activation, three stages of n blocks for depth 6n + 4,
with 16, 32 and 64 times `width` channels. The form is that of TRADES (Zhang et al., 2019) and of RobustBench: no
dropout, and the shortcut of a stage's first block leaves after the activation. So are the initial weights and the names
of the parts (`conv1`, `block1.layer.0.bn1`, `.conv1`, `.bn2`, `.conv2`, `.convShortcut`, ..., `bn1`, `fc`): published
weights load by name. Those with a `sub_block1`, which the network of that file never runs, need it left out.
"""

from __future__ import annotations

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.architecture import Architecture, Family, Shape


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and activation.

    Forward: [n, inputs, h, w] -> [n, outputs, h / stride, w / stride], sides rounded up. Where inputs and outputs
    differ in number, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        # a first stage of width 1 keeps the 16 channels of the stem, and has no convolution here
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(self.relu2(self.bn2(self.conv1(out))))
        added: Tensor = out + shortcut
        return added


class WideStage(nn.Module):
    """`count` blocks, the first with the stage's stride, in `layer`: a name that published weights have.

    Forward: [n, inputs, h, w] -> [n, outputs, h / stride, w / stride], sides rounded up.
    """

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride))
        for _ in range(count - 1):
            self.layer.append(WideBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """A 3x3 stem, three stages (the last two halve the resolution), pooling, a classifier.

    Forward: [n, channels, height, width] -> logits [n, classes]; pooling is global, so any size of at least 4 works.
    Convolutions start as in TRADES: normal, with variance 2 / (9 outputs) for 3x3 and 2 / outputs for 1x1.
    """

    def __init__(self, classes: int, channels: int, depth: int, width: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(count, 16, 16 * width, stride=1)
        self.block2 = WideStage(count, 16 * width, 32 * width, stride=2)
        self.block3 = WideStage(count, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(self.relu(self.bn1(x)), 1).flatten(1)
        logits: Tensor = self.fc(x)
        return logits


def build_wide_resnet(depth: int, width: int, classes: int, shape: Shape) -> nn.Module:
    """Return WideResNet-`depth`-`width` for images of `shape`, (channels, height, width)."""
    return WideResNet(classes, shape[0], depth, width)


def member(variant: str) -> Architecture:
    """Return `wide_resnet/<variant>`.

    Raises:
        BenchError: `variant` is not `<depth>-<width>` with a depth of 6n + 4 up to 994 and a width up to 999.
    """
    name = f"wide_resnet/{variant}"
    match = re.fullmatch(r"([1-9][0-9]{0,2})-([1-9][0-9]{0,2})", variant, re.ASCII)
    if match is None:
        raise BenchError(f"unknown model '{name}': a variant is <depth>-<width>; did you mean '{_nearest(variant)}'?")
    depth, width = int(match[1]), int(match[2])
    if (depth - 4) % 6 or depth < 10:
        near = max(10, 6 * round((depth - 4) / 6) + 4)
        raise BenchError(
            f"unknown model '{name}': a depth is 6n + 4, such as 10, 16, 28 or 34; "
            f"did you mean 'wide_resnet/{near}-{width}'?"
        )
    return Architecture(
        name=name,
        title=f"WideResNet-{depth}-{width}",
        reference="Zagoruyko and Komodakis, Wide Residual Networks, 2016; form of TRADES, Zhang et al., 2019",
        build=partial(build_wide_resnet, depth, width),
    )


def _nearest(variant: str) -> str:
    """Return the member that someone who wrote `28x10`, `WRN-28-10` or nothing of the kind may mean."""
    numbers = [number for number in re.findall(r"[0-9]+", variant) if re.fullmatch(r"[1-9][0-9]{0,2}", number)]
    return f"wide_resnet/{'-'.join(numbers)}" if len(numbers) == 2 else f"wide_resnet/{wide_resnet.listed[0]}"


wide_resnet = Family(
    name="wide_resnet", title="WideResNet", written="<depth>-<width>", member=member, listed=("28-10", "34-10")
)
