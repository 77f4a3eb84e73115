import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.attacks.pgd import frozen_parameters, pgd, project, random_start, train_mode
from bench.config.attacks import Threat
from bench.models.low_precision import weights_converted
from bench.models.small_cnn import SmallCNN

LINF, L2 = Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.6)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])


def draws(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def against(labels):
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SmallCNN(classes=10, channels=1)
    network(draws(64, 1, 8, 8))  # running statistics of its own
    return network.eval()


def inside(adversarial, images, threat):
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    perturbation = (adversarial - images).flatten(1)
    size = perturbation.abs().amax(1) if threat.norm == "linf" else torch.linalg.vector_norm(perturbation, dim=1)
    assert size.max() <= threat.eps + 1e-6
    return size


# --- the algorithm ----------------------------------------------------------------------------------------------------


def reference(images, labels, start, weight, bias, threat, steps, step_size):
    """PGD on softmax regression in numpy, with the gradient written out: x @ (softmax - one-hot) @ weight."""
    shape, x, origin = images.shape, start.reshape(len(start), -1).copy(), images.reshape(len(images), -1)
    for _ in range(steps):
        logits = x @ weight.T + bias
        softmax = np.exp(logits - logits.max(1, keepdims=True))
        softmax /= softmax.sum(1, keepdims=True)
        softmax[np.arange(len(x)), labels] -= 1
        gradient = softmax @ weight
        if threat.norm == "linf":
            x = x + step_size * np.sign(gradient)
            x = np.minimum(np.maximum(x, origin - threat.eps), origin + threat.eps)
        else:
            x = x + step_size * gradient / np.sqrt((gradient**2).sum(1, keepdims=True))
            for row, centre in zip(x, origin, strict=True):
                distance = np.sqrt(((row - centre) ** 2).sum())
                row[:] = centre + (row - centre) * min(1, threat.eps / distance)
        x = np.clip(x, 0, 1)
    return x.reshape(shape)


@BOTH
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("share", [0.3, 0.9], ids=["small steps", "large steps"])
def test_it_equals_an_implementation_in_numpy(threat, steps, share):
    torch.manual_seed(0)
    linear = nn.Linear(2 * 4 * 4, 5).double()
    model = nn.Sequential(nn.Flatten(), linear)
    images, labels = draws(6, 2, 4, 4, dtype=torch.float64), torch.arange(6) % 5
    start = random_start(images, threat, torch.Generator().manual_seed(1))
    step_size = share * threat.eps
    ours = pgd(model, images, against(labels), threat=threat, steps=steps, step_size=step_size, start=start)
    arrays = (array.detach().numpy() for array in (images, labels, start, linear.weight, linear.bias))
    theirs = reference(*arrays, threat, steps, step_size)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)
    assert not ours.requires_grad


@BOTH
def test_without_a_start_it_begins_at_the_images(network, threat):
    images, labels = draws(4, 1, 8, 8), torch.arange(4)

    def attack(start):
        return pgd(network, images, against(labels), threat=threat, steps=2, step_size=0.03, start=start)

    assert torch.equal(attack(None), attack(images))


@BOTH
@pytest.mark.parametrize(("steps", "step_size"), [(1, 10.0), (5, 0.5), (20, 0.01)])
def test_it_stays_inside_the_ball_and_the_pixel_range(network, threat, steps, step_size):
    images = draws(32, 1, 8, 8)
    images[:8], images[8:16] = images[:8].round(), images[8:16] * 0.05  # at and near the edges of the range
    before = images.clone()
    start = random_start(images, threat, torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 10
    adversarial = pgd(network, images, against(labels), threat=threat, steps=steps, step_size=step_size, start=start)
    inside(adversarial, images, threat)
    assert torch.equal(images, before)
    with torch.no_grad():
        rise = F.cross_entropy(network(adversarial), labels) - F.cross_entropy(network(images), labels)
    assert rise > 0.001


@BOTH
def test_images_do_not_interact(network, threat):
    images, labels = draws(6, 1, 8, 8), torch.arange(6)
    settings = {"threat": threat, "steps": 3, "step_size": 0.05}
    together = pgd(network.double(), images.double(), against(labels), **settings)
    alone = [pgd(network, images[i : i + 1].double(), against(labels[i : i + 1]), **settings) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)


@BOTH
def test_a_zero_gradient_moves_nothing(threat):
    images = draws(2, 1, 4, 4)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(flat[1].weight)
    assert torch.equal(pgd(flat, images, against(torch.tensor([0, 1])), threat=threat, steps=3, step_size=0.1), images)


def test_projection_is_the_nearest_point():
    far = torch.tensor([3.0, -4.0]).view(1, 1, 1, 2)
    near = far / 100
    assert project(far, Threat(norm="linf", eps=0.5)).flatten().tolist() == [0.5, -0.5]
    torch.testing.assert_close(project(far, Threat(norm="l2", eps=0.5)).flatten(), torch.tensor([0.3, -0.4]))
    for norm in ("linf", "l2"):
        assert torch.equal(project(near, Threat(norm=norm, eps=0.5)), near)


# --- where it starts --------------------------------------------------------------------------------------------------


@BOTH
def test_a_random_start_is_inside(threat):
    images = draws(200, 1, 8, 8)
    images[:100] = images[:100].round()
    inside(random_start(images, threat, torch.Generator().manual_seed(0)), images, threat)
    assert images[:100].unique().tolist() == [0, 1]  # not changed in place


def test_an_linf_start_is_uniform_in_the_cube():
    images = torch.full((100, 1, 8, 8), 0.5)
    noise = (random_start(images, LINF, torch.Generator().manual_seed(0)) - images).flatten()
    assert stats.kstest(noise.numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 0.001


def test_an_l2_start_has_a_uniform_radius_and_direction():
    images = torch.full((2000, 1, 4, 4), 0.5)
    noise = (random_start(images, L2, torch.Generator().manual_seed(0)) - images).flatten(1)
    radius = torch.linalg.vector_norm(noise, dim=1)
    assert stats.kstest((radius / 0.6).numpy(), "uniform").pvalue > 0.001
    # a component of a uniform direction in d dimensions: (1 + x) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2)
    component = (noise / radius[:, None])[:, 5]
    assert stats.kstest(((1 + component) / 2).numpy(), stats.beta(7.5, 7.5).cdf).pvalue > 0.001


@BOTH
def test_a_start_depends_on_its_generator_alone(threat):
    images = draws(4, 1, 8, 8)
    torch.manual_seed(0)
    first = random_start(images, threat, torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    assert torch.equal(first, random_start(images, threat, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, random_start(images, threat, torch.Generator().manual_seed(4)))


# --- what it leaves alone ---------------------------------------------------------------------------------------------


def test_frozen_restores_each_parameter(network):
    network.conv2.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with frozen_parameters(network):
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == before
    with pytest.raises(RuntimeError, match="in between"), frozen_parameters(network):
        raise RuntimeError("in between")
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == before


@pytest.mark.parametrize("train", [True, False])
def test_mode_restores_each_module(network, train):
    network.train(not train)
    network.bn2.train(train)
    before = {name: module.training for name, module in network.named_modules()}
    assert len(set(before.values())) == 2
    with train_mode(network, enabled=train):
        assert {module.training for module in network.modules()} == {train}
    assert {name: module.training for name, module in network.named_modules()} == before
    with pytest.raises(RuntimeError, match="in between"), train_mode(network, enabled=train):
        raise RuntimeError("in between")
    assert {name: module.training for name, module in network.named_modules()} == before


class Backwards(TorchDispatchMode):
    """Notes for each backward of a convolution whether it computes the gradients of (input, weight, bias)."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


@BOTH
def test_only_input_gradients_are_computed(network, threat):
    images, labels = draws(4, 1, 8, 8), torch.arange(4)
    with Backwards() as backwards, frozen_parameters(network):
        pgd(network, images, against(labels), threat=threat, steps=3, step_size=0.05)
    assert backwards.masks == [[True, False, False]] * (3 * 3)
    with Backwards() as backwards:  # without `frozen` there would be more
        pgd(network, images, against(labels), threat=threat, steps=1, step_size=0.05)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(("train", "batches"), [(True, 3), (False, 0)])
def test_train_mode_updates_running_statistics_and_eval_mode_does_not(network, train, batches):
    known = {name: value.clone() for name, value in network.named_buffers()}
    images, labels = draws(4, 1, 8, 8), torch.arange(4)
    with train_mode(network, enabled=train), frozen_parameters(network):
        pgd(network, images, against(labels), threat=LINF, steps=3, step_size=0.05)
    for name, value in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert value == known[name] + batches
        else:
            assert torch.equal(value, known[name]) != train


def test_it_works_where_gradients_are_off(network):
    images, labels = draws(4, 1, 8, 8), torch.arange(4)
    settings = {"threat": LINF, "steps": 2, "step_size": 0.05}
    expected = pgd(network, images, against(labels), **settings)
    with torch.no_grad():
        assert torch.equal(pgd(network, images, against(labels), **settings), expected)


class Conversions(TorchDispatchMode):
    """Counts the conversions of a network's weights to bfloat16."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.found = {parameter.data_ptr() for parameter in model.parameters()}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
            self.found += args[0].data_ptr() in self.weights
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen", [True, False])
def test_weights_are_converted_once_and_give_the_bits_of_autocast(network, frozen, monkeypatch):
    images, labels = draws(4, 1, 8, 8), torch.arange(4)
    found, results = [], []
    for convert in (weights_converted, lambda _model, _device: nullcontext()):
        monkeypatch.setattr("bench.attacks.pgd.weights_converted", convert)
        model = copy.deepcopy(network).train()
        with (
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
            Conversions(model) as conversions,
            frozen_parameters(model) if frozen else nullcontext(),
        ):
            adversarial = pgd(model, images, against(labels), threat=LINF, steps=3, step_size=0.05)
        found.append(conversions.found)
        results.append([adversarial, *model.state_dict().values()])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert found == [5, 5 * 3]  # three convolutions without a bias, and a linear layer with one


def test_weights_that_another_layer_computes_with_are_not_converted(network):
    class Scaled(nn.Conv2d):
        def forward(self, x):
            assert self.weight.dtype == torch.float32
            return super().forward(x)

    model = nn.Sequential(Scaled(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with torch.autocast("cpu", torch.bfloat16), weights_converted(model, torch.device("cpu")):
        model(draws(4, 1, 8, 8))
        assert model[2].weight.dtype == torch.bfloat16
    with weights_converted(model, torch.device("cpu")):
        assert model[2].weight.dtype == torch.float32
