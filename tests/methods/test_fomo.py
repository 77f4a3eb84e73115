import copy
import math

import pytest
import torch
import torch.nn.functional as F

import methods.fomo
from bench.training.step import EpochMetrics, train_step
from bench.utils.rng import generator
from methods.fomo import forget, later_layers

LATER = {
    "small_cnn": ["conv2", "conv3", "linear"],
    "preact_resnet18": [
        *("layer3.0.conv1", "layer3.0.conv2", "layer3.0.shortcut.0", "layer3.1.conv1", "layer3.1.conv2"),
        *("layer4.0.conv1", "layer4.0.conv2", "layer4.0.shortcut.0", "layer4.1.conv1", "layer4.1.conv2"),
        "linear",
    ],
}
STEP = 0.2  # probability of averaging after a step


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# --- forgetting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", LATER)
def test_it_forgets_the_stated_share_of_the_later_weights_and_nothing_else(start, first_batch, model):
    method = start("fomo", model=model, attack="none")
    train_step(
        method, first_batch(method), method.optimizer, EpochMetrics(torch.device("cpu"))
    )  # so that there is momentum
    assert [name for name, _ in later_layers(method.model, 3)] == LATER[model]
    forgets = {f"body.{name}.weight" for name in LATER[model]}
    with torch.no_grad():
        for name in forgets:
            method.model.get_parameter(name).fill_(100)  # a value that no initialisation draws
    before, stable = snapshot(method.model), snapshot(method.stable)
    momentum = {key: state["momentum_buffer"].clone() for key, state in method.optimizer.state.items()}
    method.begin_epoch(3)
    for name, value in method.model.state_dict().items():
        if name not in forgets:
            assert torch.equal(value, before[name]), name
            continue
        fresh = value[value != 100]
        assert len(fresh) == round(0.035 * value.numel()), name
        bound = 1 / math.sqrt(value[0].numel())  # torch's default for convolutions and linear layers
        assert fresh.abs().max() <= bound
        assert fresh.abs().max() > 0.8 * bound
        assert fresh.mean().abs() < bound * 4 / math.sqrt(3 * len(fresh))  # four standard errors
    assert all(torch.equal(value, stable[name]) for name, value in method.stable.state_dict().items())
    assert momentum
    assert all(torch.equal(method.optimizer.state[key]["momentum_buffer"], kept) for key, kept in momentum.items())


def test_the_places_are_new_each_time_and_the_same_for_a_seed(start):
    method = start("fomo", fraction=0.3)
    with torch.no_grad():
        method.model.body.conv2.weight.fill_(100)
    found = []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for seed in (1, 2, 1):
        network = copy.deepcopy(method.model)
        forget(network, method.params, seed)
        found.append(network.body.conv2.weight.detach())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0] == 100, found[1] == 100)


@pytest.mark.parametrize(
    ("epochs", "relearning", "expected"),
    [
        (200, 0.025, list(range(100, 200, 5))),
        (20, 0.1, [10, 12, 14, 16, 18]),
        (20, 0.025, list(range(10, 20))),  # one epoch at least
        (20, 1.0, [10]),
    ],
)
def test_it_forgets_at_the_first_drop_and_then_regularly(start, monkeypatch, epochs, relearning, expected):
    method, found, seeds = start("fomo", epochs=epochs, relearning=relearning), [], set()
    monkeypatch.setattr(
        methods.fomo, "forget", lambda model, _params, seed: (found.append(epoch), seeds.add(seed), model)
    )
    for epoch in range(epochs):
        method.context.random.start_epoch(epoch)
        method.begin_epoch(epoch)
    assert found == expected
    assert len(seeds) == len(expected)


def test_without_a_rate_drop_it_never_forgets(start, monkeypatch):
    method = start("fomo")
    object.__setattr__(method.lr_schedule, "first_drop", 6)  # what a constant rate gives
    monkeypatch.setattr(methods.fomo, "forget", lambda *_: pytest.fail("forgot"))
    for epoch in range(6):
        method.begin_epoch(epoch)
        assert not method.relearning


# --- relearning ------------------------------------------------------------------------------------------------------


def divergence(guide, output):
    """KL(guide ‖ output), the mean over the batch."""
    total = 0.0
    for p, q in zip(guide.softmax(1), output.softmax(1), strict=True):
        total += sum((a * (a.log() - b.log())).item() for a, b in zip(p, q, strict=True))
    return total / len(guide)


@pytest.mark.parametrize(("clean_weight", "robust_weight"), [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_the_loss_while_relearning(start, first_batch, trained, clean_weight, robust_weight):
    method = start("fomo", epoch=3, clean_consistency=clean_weight, robust_consistency=robust_weight)
    trained(method.stable)
    batch = first_batch(method)
    adversarial = (batch.images + 0.1).clamp(max=1)
    working, stable = copy.deepcopy(method.model).double(), copy.deepcopy(method.stable).double()
    clean, robust = (working(images.double()).detach() for images in (batch.images, adversarial))
    expected = F.cross_entropy(robust, batch.labels).item()
    for images, output, weight in ((batch.images, clean, clean_weight), (adversarial, robust, robust_weight)):
        expected += weight * divergence(stable(images.double()).detach(), output)
    loss, logits = method.loss(batch, adversarial)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(logits.double(), robust, rtol=1e-4, atol=1e-5)
    assert not method.stable.training
    loss.backward()
    assert all(parameter.grad is None for parameter in method.stable.parameters())
    assert all(parameter.grad is not None for parameter in method.model.parameters())


def test_the_loss_while_learning_is_plain(start, first_batch, trained):
    method = start("fomo", epoch=2)
    trained(method.stable)
    batch = first_batch(method)
    loss, logits = method.loss(batch, batch.images)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item())


# --- consolidation ---------------------------------------------------------------------------------------------------


def test_the_stable_model_is_an_average_with_a_growing_memory(start, trained):
    method = start("fomo", consolidation=1.0, decay=0.6)
    expected = [parameter.detach().double() for parameter in method.stable.parameters()]
    for decay in (1 / 2, 0.6, 0.6):  # min(1 - 1/(t + 1), 0.6) for t = 1, 2, 3
        trained(method.model)
        weights = [parameter.detach().double() for parameter in method.model.parameters()]
        expected = [decay * mean + (1 - decay) * weight for mean, weight in zip(expected, weights, strict=True)]
        method.after_step()
        for mean, stable in zip(expected, method.stable.parameters(), strict=True):
            torch.testing.assert_close(stable.double(), mean, rtol=1e-6, atol=1e-7)
        for kept, current in zip(method.stable.buffers(), method.model.buffers(), strict=True):
            assert torch.equal(kept, current)


def test_the_average_counts_all_steps(start, trained):
    """Step t keeps 1 - 1/(t + 1), whether the steps before it were averaged or not."""
    method = start("fomo", consolidation=1e-9, decay=0.999)
    for _ in range(7):
        method.after_step()  # hardly ever averages
    object.__setattr__(method.params, "consolidation", 1.0)
    before = [parameter.double() for parameter in method.stable.parameters()]
    trained(method.model)
    method.after_step()
    for old, new, mean in zip(before, method.model.parameters(), method.stable.parameters(), strict=True):
        torch.testing.assert_close(mean.double(), (8 * old + new.double()) / 9, rtol=1e-5, atol=1e-6)


def test_a_step_consolidates_with_the_stated_probability(start, trained):
    method = start("fomo", epoch=2)
    random, count = generator(0, "fomo/consolidation", 2), 0
    for _ in range(60):
        trained(method.model)
        before = snapshot(method.stable)
        method.after_step()
        drawn = torch.rand((), generator=random).item() < STEP
        count += drawn
        changed = any(not torch.equal(value, before[name]) for name, value in method.stable.state_dict().items())
        assert changed == drawn
    assert 4 <= count <= 22


@pytest.mark.parametrize(("evaluate", "model"), [("stable", "stable"), ("working", "model")])
def test_both_models_can_be_reported(start, evaluate, model):
    method = start("fomo", evaluate=evaluate)
    assert method.evaluated_model() is getattr(method, model)
