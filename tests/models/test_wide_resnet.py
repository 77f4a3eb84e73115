import importlib.util
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.errors import BenchError
from bench.models.architecture import size_of
from bench.models.state_dict import load_weights
from bench.models.wide_resnet import WideResNet, member, wide_resnet


def size_by_hand(depth, width):
    """Return the parameters and the multiply-adds of a network of `depth` and `width` for ten classes at 32x32."""
    weights, multiply_adds, places, inputs = 3 * 16 * 9, 3 * 16 * 9 * 32 * 32, 32 * 32, 16
    for stage in range(3):
        outputs = 16 * width * 2**stage
        places //= 4 if stage else 1
        for _ in range((depth - 4) // 6):
            shortcut = inputs * outputs if inputs != outputs else 0
            weights += 9 * inputs * outputs + 9 * outputs * outputs + shortcut + 2 * (inputs + outputs)
            multiply_adds += places * (9 * inputs * outputs + 9 * outputs * outputs + shortcut)
            inputs = outputs
    return weights + 2 * inputs + inputs * 10 + 10, multiply_adds + inputs * 10


@pytest.mark.parametrize("variant", ["28-10", "34-10", "16-4", "10-1"])
def test_the_size(variant):
    weights, multiply_adds = size_by_hand(*map(int, variant.split("-")))
    assert size_of(member(variant)) == (weights, 2 * multiply_adds)


def test_the_sizes_that_papers_state():
    assert size_of(member("34-10"))[0] == pytest.approx(46.2e6, rel=0.002)
    assert size_of(member("28-10"))[0] == pytest.approx(36.5e6, rel=0.002)
    assert size_of(member("28-10"))[1] == pytest.approx(2 * 5.25e9, rel=0.002)


@pytest.fixture(scope="module")
def robustbench():
    """The module of RobustBench's architecture, read from its file: importing the package needs far more."""
    try:
        known = [Path(file.locate()) for file in files("robustbench") if file.name == "wide_resnet.py"]
    except PackageNotFoundError:
        known = []
    if not known:
        pytest.skip("RobustBench is not installed")
    spec = importlib.util.spec_from_file_location("wide_resnet_of_robustbench", known[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stir(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)


@pytest.mark.parametrize("variant", ["16-2", "10-1", "28-10"])
def test_it_is_that_of_robustbench(robustbench, tmp_path, variant):
    depth, width = map(int, variant.split("-"))
    torch.manual_seed(0)
    reference = robustbench.WideResNet(depth=depth, widen_factor=width).eval()
    stir(reference)
    torch.save({"state_dict": {f"module.{k}": v for k, v in reference.state_dict().items()}}, tmp_path / "weights.pt")
    network = member(variant).build(10, (3, 32, 32)).eval()
    load_weights(network, tmp_path / "weights.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = reference(images)
        torch.testing.assert_close(network(images), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_training_differs_by_nothing_either(robustbench):
    torch.manual_seed(0)
    reference = robustbench.WideResNet(depth=10, widen_factor=2).double()
    network = WideResNet(10, 3, 10, 2).double()
    network.load_state_dict(reference.state_dict())
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for one in (reference, network):
        one.train()(images).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name))


def test_it_starts_as_in_robustbench(robustbench):
    torch.manual_seed(0)
    reference = dict(robustbench.WideResNet(depth=16, widen_factor=4).named_parameters())
    for name, parameter in WideResNet(10, 3, 16, 4).named_parameters():
        if reference[name].unique().numel() == 1:  # shifts and scales
            assert torch.equal(parameter, reference[name]), name
        else:
            assert parameter.std().item() == pytest.approx(reference[name].std().item(), rel=0.1), name


def test_the_names_are_those_of_published_weights():
    names = ["conv1.weight"]
    for stage in (1, 2, 3):
        for block in (0, 1):
            parts = ["bn1.weight", "bn1.bias", "conv1.weight", "bn2.weight", "bn2.bias", "conv2.weight"]
            parts += ["convShortcut.weight"] if block == 0 else []
            names += [f"block{stage}.layer.{block}.{part}" for part in parts]
    names += ["bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    assert [name for name, _ in WideResNet(10, 3, depth=16, width=2).named_parameters()] == names


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 16, 24)])
def test_other_images_fit(channels, height, width):
    network = member("10-1").build(7, (channels, height, width)).eval()
    assert network(torch.rand(2, channels, height, width)).shape == (2, 7)


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("28x10", "a variant is <depth>-<width>; did you mean 'wide_resnet/28-10'?"),
        ("WRN-34-20", "a variant is <depth>-<width>; did you mean 'wide_resnet/34-20'?"),
        ("", "a variant is <depth>-<width>; did you mean 'wide_resnet/28-10'?"),
        ("028-10", "a variant is <depth>-<width>; did you mean 'wide_resnet/28-10'?"),
        ("28-10\n", "a variant is <depth>-<width>; did you mean 'wide_resnet/28-10'?"),
        ("٢٨-١٠", "a variant is <depth>-<width>; did you mean 'wide_resnet/28-10'?"),
        ("9999-9999", "a variant is <depth>-<width>; did you mean 'wide_resnet/28-10'?"),
        ("30-10", "a depth is 6n + 4, such as 10, 16, 28 or 34; did you mean 'wide_resnet/28-10'?"),
        ("32-4", "a depth is 6n + 4, such as 10, 16, 28 or 34; did you mean 'wide_resnet/34-4'?"),
        ("4-1", "a depth is 6n + 4, such as 10, 16, 28 or 34; did you mean 'wide_resnet/10-1'?"),
    ],
)
def test_another_variant_is_one_sentence(variant, problem):
    with pytest.raises(BenchError) as error:
        member(variant)
    assert str(error.value) == f"unknown model 'wide_resnet/{variant}': {problem}".replace("\n", " ")


def test_what_is_listed_is_there():
    assert wide_resnet.listed == ("28-10", "34-10")
    assert [member(variant).name for variant in wide_resnet.listed] == ["wide_resnet/28-10", "wide_resnet/34-10"]
