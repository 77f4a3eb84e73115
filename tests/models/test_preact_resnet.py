import pytest
import torch
import torch.nn.functional as F

from bench.models.architecture import size_of
from bench.models.preact_resnet import (
    PreActResNet,
    build_preact_resnet18,
    preact_resnet8_32,
    preact_resnet14_16,
    preact_resnet18,
)

STAGES = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))  # inputs, outputs, stride of the first block


def test_the_size_of_preact_resnet18():
    # 11,171,146 parameters without the batch normalisation before the classifier, as in the models of Liu Kuang;
    # Rice et al. have it (`bn`), which makes 2 x 512 more. Forward: 0.555 G multiply-adds at 32x32, 1.11 GFLOP.
    assert size_of(preact_resnet18)[0] == 11_171_146 + 2 * 512
    multiply_adds, places = 3 * 64 * 9 * 32 * 32, 32 * 32
    for inputs, outputs, stride in STAGES:
        places //= stride**2
        shortcut = inputs * outputs if stride == 2 else 0
        multiply_adds += places * (9 * inputs * outputs + 3 * 9 * outputs * outputs + shortcut)
    multiply_adds += 512 * 10
    assert size_of(preact_resnet18)[1] == 2 * multiply_adds
    assert size_of(preact_resnet18)[1] == pytest.approx(1.11e9, rel=0.001)


@pytest.mark.parametrize(
    ("architecture", "width", "blocks", "parameters", "gflops"),
    [(preact_resnet8_32, 32, 1, 308_266, 0.0982), (preact_resnet14_16, 16, 2, 175_066, 0.0533)],
)
def test_the_sizes_of_the_small_ones(architecture, width, blocks, parameters, gflops):
    weights, multiply_adds, places = 3 * width * 9, 3 * width * 9 * 32 * 32, 32 * 32
    for stage in range(3):
        outputs = width * 2**stage
        inputs = outputs // 2 if stage else outputs
        places //= 4 if stage else 1
        convolutions = 9 * inputs * outputs + (2 * blocks - 1) * 9 * outputs * outputs + (stage > 0) * inputs * outputs
        weights += convolutions + 2 * (inputs + (2 * blocks - 1) * outputs)  # two numbers a channel normalised
        multiply_adds += places * convolutions
    weights += 2 * 4 * width + 4 * width * 10 + 10
    multiply_adds += 4 * width * 10
    assert size_of(architecture) == (weights, 2 * multiply_adds)
    assert weights == parameters
    assert 2 * multiply_adds == pytest.approx(gflops * 1e9, rel=1e-3)


def test_the_names_are_those_of_published_weights():
    block = ["bn1.weight", "bn1.bias", "conv1.weight", "bn2.weight", "bn2.bias", "conv2.weight"]
    names = ["conv1.weight"]
    for stage in range(1, 5):
        names += [f"layer{stage}.0.{name}" for name in block]
        names += [f"layer{stage}.0.shortcut.0.weight"] if stage > 1 else []
        names += [f"layer{stage}.1.{name}" for name in block]
    names += ["bn.weight", "bn.bias", "linear.weight", "linear.bias"]
    assert [name for name, _ in build_preact_resnet18(10, (3, 32, 32)).named_parameters()] == names


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_small_images_fit(channels, size):
    network = build_preact_resnet18(10, (channels, size, size)).eval()
    assert network(torch.rand(2, channels, size, size)).shape == (2, 10)


def test_the_forward_pass_is_that_of_the_paper():
    """Written out once more: normalise, activate, convolve; the shortcut leaves after the first activation."""
    torch.manual_seed(0)
    network = PreActResNet(classes=5, channels=2, widths=(4, 6, 8), blocks=(2, 1, 2)).double().eval()
    for name, value in network.state_dict().items():
        if "running_var" in name or name.endswith(("bn1.weight", "bn2.weight", "bn.weight")):
            value.uniform_(0.5, 2)
        elif "running_mean" in name or ("bn" in name and name.endswith("bias")):
            value.normal_()
    known = network.state_dict()

    def norm(x, name):
        parts = (known[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *parts))

    images = torch.rand(3, 2, 16, 16, dtype=torch.float64)
    x = F.conv2d(images, known["conv1.weight"], padding=1)
    for block, stride in (("layer1.0", 1), ("layer1.1", 1), ("layer2.0", 2), ("layer3.0", 2), ("layer3.1", 1)):
        out = norm(x, f"{block}.bn1")
        shortcut = f"{block}.shortcut.0.weight"
        x = F.conv2d(out, known[shortcut], stride=stride) if shortcut in known else x
        out = F.conv2d(out, known[f"{block}.conv1.weight"], stride=stride, padding=1)
        x = x + F.conv2d(norm(out, f"{block}.bn2"), known[f"{block}.conv2.weight"], padding=1)
    logits = norm(x, "bn").mean((2, 3)) @ known["linear.weight"].T + known["linear.bias"]
    torch.testing.assert_close(network(images), logits)
