"""What holds for every registered architecture, at the smallest size that makes sense for it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.models.architecture import Architecture, Family, size_of
from bench.registry import MODELS

SHAPES = {
    "small_cnn": (1, 8, 8),
    "preact_resnet8_32": (3, 16, 16),
    "preact_resnet14_16": (3, 16, 16),
    "preact_resnet18": (3, 16, 16),
    "resnet18": (3, 16, 16),
    "resnet50": (3, 64, 64),
    "vit_small": (3, 16, 16),
    "wide_resnet/28-10": (3, 8, 8),
    "wide_resnet/34-10": (3, 8, 8),
    "timm/resnet18": (3, 32, 32),
    "timm/vit_tiny_patch16_224": (3, 32, 32),
}

LARGE = {"wide_resnet/28-10", "wide_resnet/34-10", "resnet50", "preact_resnet18"}  # with tests of their own too
every_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in SHAPES]
)


def test_all_that_are_listed_are_here():
    listed = set()
    for name in MODELS.names():
        entry = MODELS.entry(name)
        assert isinstance(entry, Architecture | Family)
        assert entry.name == name
        listed |= {name} if isinstance(entry, Architecture) else {f"{name}/{variant}" for variant in entry.listed}
    assert listed == {name for name in SHAPES if not name.startswith("timm/")}


@every_architecture
def test_a_step_as_the_trainer_takes_it(name):
    """Images first, through gradients of their own, then weights; channels_last and bf16, as on a processor."""
    shape = SHAPES[name]
    torch.manual_seed(0)
    network = MODELS.get(name).build(5, shape).to(memory_format=torch.channels_last).train()
    parameters = list(network.parameters())
    images = torch.rand(2, *shape).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([1, 4])
    optimizer = torch.optim.SGD(parameters, lr=0.1)

    def loss_of(images):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = network(images)
        assert logits.shape == (2, 5)
        return F.cross_entropy(logits.float(), labels)

    network.requires_grad_(False)
    (gradient,) = torch.autograd.grad(loss_of(images.requires_grad_()), images)
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0

    network.requires_grad_(True)
    before = [parameter.detach().clone() for parameter in parameters]
    loss = loss_of((images + 0.03 * gradient.sign()).detach().clamp(0, 1))
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    optimizer.step()
    assert not torch.equal(before[0], parameters[0])
    assert not torch.equal(before[-1], parameters[-1])


@every_architecture
def test_its_size_is_what_is_built(name):
    architecture, shape = MODELS.get(name), SHAPES[name]
    with torch.device("meta"):
        built = size_of(architecture, (5, *shape))[0]  # also where the caller has chosen a device
    assert built == sum(parameter.numel() for parameter in architecture.build(5, shape).parameters())


@every_architecture
def test_the_layers_are_ones_that_methods_know(name):
    """Smooth activations take the place of modules; averages and attacks know batch normalisation by its class."""
    network = MODELS.get(name).build(5, SHAPES[name])
    kinds = {type(module) for module in network.modules()}
    assert nn.ReLU in kinds or "vit" in name
    norms = {kind for kind in kinds if "Norm" in kind.__name__}
    assert norms
    assert all(kind is nn.BatchNorm2d or issubclass(kind, nn.LayerNorm) for kind in norms)
