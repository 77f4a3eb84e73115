import importlib.util
import re
from importlib.metadata import files
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from bench.models.architecture import size_of
from bench.models.resnet import build_resnet18, resnet18
from bench.models.state_dict import load_weights


def test_the_size():
    weights, multiply_adds, places = 3 * 64 * 9 + 2 * 64, 3 * 64 * 9 * 32 * 32, 32 * 32
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        places //= 1 if inputs == outputs else 4
        convolutions = 9 * inputs * outputs + 3 * 9 * outputs * outputs
        normalised = 4 * outputs
        if inputs != outputs:
            convolutions += inputs * outputs
            normalised += outputs
        weights += convolutions + 2 * normalised
        multiply_adds += places * convolutions
    weights += 512 * 10 + 10
    multiply_adds += 512 * 10
    assert size_of(resnet18) == (weights, 2 * multiply_adds)
    assert weights == 11_173_962


def test_the_names_are_those_of_published_weights():
    block = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
    names = ["conv1.weight", "bn1.weight", "bn1.bias"]
    for stage in range(1, 5):
        names += [f"layer{stage}.0.{name}" for name in block]
        if stage > 1:
            names += [f"layer{stage}.0.shortcut.{name}" for name in ("0.weight", "1.weight", "1.bias")]
        names += [f"layer{stage}.1.{name}" for name in block]
    names += ["linear.weight", "linear.bias"]
    assert [name for name, _ in build_resnet18(10, (3, 32, 32)).named_parameters()] == names


def stirred(network):
    """Return the network with batch statistics, scales and shifts that are not those of the start, in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 20, 28)])
def test_it_is_torchvisions_with_another_stem(channels, height, width):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(num_classes=7)
    reference.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    stirred(reference)
    network = build_resnet18(7, (channels, height, width)).eval()
    renamed = {
        re.sub("^fc", "linear", name.replace("downsample", "shortcut")): value
        for name, value in reference.state_dict().items()
    }
    assert network.state_dict().keys() == renamed.keys()
    network.load_state_dict(renamed)
    images = torch.rand(2, channels, height, width)
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images))


def test_published_weights_load_by_name_and_give_the_same_logits():
    found = {Path(str(file)).name: Path(file.locate()) for file in files("pyautoattack") if "examples" in str(file)}
    if not {"resnet.py", "model_test.pt"} <= found.keys():
        pytest.skip("this pyautoattack brings no weights")
    spec = importlib.util.spec_from_file_location("resnet_of_pyautoattack", found["resnet.py"])
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    reference = theirs.ResNet18().eval()
    reference.load_state_dict(torch.load(found["model_test.pt"], map_location="cpu", weights_only=True))
    network = build_resnet18(10, (3, 32, 32)).eval()
    load_weights(network, found["model_test.pt"])
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images))
        assert len({tuple(row.tolist()) for row in network(images)}) == 4
