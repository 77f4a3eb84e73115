import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import BenchError
from bench.models.activations import ACTIVATIONS, SmoothReLU, replace_relu
from bench.registry import MODELS

POINTS = torch.linspace(-5, 5, 101, dtype=torch.float64)

# --- SmoothReLU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [20.0, 3.0, 1.0])
def test_smooth_relu_is_its_definition(raw):
    b = raw**2
    by_hand = [max(0.0, x - math.log(b * abs(x) + 1) / b) for x in POINTS.tolist()]
    found = SmoothReLU(raw).double()(POINTS)
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("raw", [20.0, 3.0, 1.0])
def test_smooth_relu_has_a_continuous_derivative(raw):
    x = POINTS.clone().requires_grad_()
    SmoothReLU(raw).double()(x).sum().backward()
    b = raw**2
    torch.testing.assert_close(x.grad, torch.where(POINTS > 0, b * POINTS / (b * POINTS + 1), 0.0))
    assert x.grad[50] == 0  # at 0


def test_smooth_relus_gradients_agree_with_differences():
    smooth = SmoothReLU(2.0).double()
    x = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, raw: torch.func.functional_call(smooth, {"raw": raw}, (x,)), (x, smooth.raw)
    )


def test_the_sharpness_is_learned():
    smooth = SmoothReLU()
    smooth(torch.ones(3)).sum().backward()
    assert smooth.raw.item() == 20
    assert smooth.raw.grad != 0


# --- the others ------------------------------------------------------------------------------------------------------

DEFINITIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "softplus": lambda x: torch.log(1 + torch.exp(10 * x)) / 10,
    "mish": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_is_its_definition(name):
    torch.testing.assert_close(ACTIVATIONS[name]().double()(POINTS), DEFINITIONS[name](POINTS), rtol=1e-7, atol=1e-8)


def test_all_are_tested():
    assert set(ACTIVATIONS) == {*DEFINITIONS, "smooth_relu"}


# --- replacement -----------------------------------------------------------------------------------------------------


class ReLUCalls(TorchDispatchMode):
    """Counts what the forward pass computes with ReLU, as a module or as a function."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in {torch.ops.aten.relu, torch.ops.aten.relu_, torch.ops.aten.threshold}
        return func(*args, **(kwargs or {}))


def relu_calls(network, images):
    with ReLUCalls() as calls, torch.no_grad():
        assert network.eval()(images).shape == (1, 10)
    return calls.count


WITH_RELU = (
    "small_cnn",
    "preact_resnet18",
    "preact_resnet8_32",
    "preact_resnet14_16",
    "resnet18",
    "resnet50",
    "wide_resnet/10-1",
)

NETWORKS = {
    **{name: lambda name=name: (MODELS.get(name).build(10, (3, 32, 32)), 32) for name in WITH_RELU},
    **{
        name: lambda name=name: (timm.create_model(name, pretrained=False, num_classes=10), 64)
        for name in ("resnet18", "regnetx_002")
    },
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("activation", ["silu", "smooth_relu"])
def test_every_relu_of_a_network_is_replaced(name, activation):
    network, size = NETWORKS[name]()
    images = torch.rand(1, 3, size, size)
    assert relu_calls(network, images) > 0
    found = sum(isinstance(module, nn.ReLU) for module in network.modules())
    if name in WITH_RELU and name != "resnet50":  # torchvision's blocks call one module three times
        assert found == relu_calls(network, images)
    assert replace_relu(network, ACTIVATIONS[activation]) == found
    assert relu_calls(network, images) == 0


def test_every_registered_model_is_among_them_or_has_no_relu():
    (transformer,) = set(MODELS.names()) - {name.partition("/")[0] for name in WITH_RELU} - {"timm"}
    with pytest.raises(BenchError, match=r"^no ReLU to replace in VisionTransformer: "):
        replace_relu(MODELS.get(transformer).build(10, (3, 16, 16)), nn.SiLU)


def test_a_module_in_several_places_gets_an_activation_in_each():
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(4, 4), relu, nn.Sequential(nn.Linear(4, 10), relu), relu)
    assert replace_relu(network, SmoothReLU) == 3
    assert {type(module) for module in (network[1], network[3], network[2][1])} == {SmoothReLU}
    assert sum(name.endswith("raw") for name, _ in network.named_parameters()) == 3


@pytest.mark.parametrize("network", [nn.Sequential(nn.Linear(2, 2), nn.SiLU()), nn.Sequential(nn.ReLU6())])
def test_a_network_without_relu_is_refused(network):
    with pytest.raises(BenchError, match=r"^no ReLU to replace in Sequential: "):
        replace_relu(network, nn.SiLU)


def test_the_wrapped_network_is_searched_too():
    network = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)))
    replace_relu(network, nn.SiLU)
    torch.testing.assert_close(network(torch.ones(2)), F.silu(torch.ones(2)))
