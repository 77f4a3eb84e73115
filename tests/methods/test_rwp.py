import copy

import pytest
import torch
import torch.nn.functional as F


def perturbation_by_hand(network, images, labels, threshold, steps=10, rate=0.01, gamma=0.01):
    """Climb on a copy, gather what changed, and scale it to gamma times the norm of the weights."""
    names = [name for name, value in network.named_parameters() if "weight" in name and value.dim() > 1]
    original = {name: network.get_parameter(name).detach().clone() for name in names}
    gathered = {name: torch.zeros_like(value) for name, value in original.items()}
    length = gamma * sum(value.square().sum() for value in original.values()).sqrt()
    scaled = gathered
    for _ in range(steps):
        proxy = copy.deepcopy(network)
        with torch.no_grad():
            for name in names:
                proxy.get_parameter(name).copy_(original[name] + scaled[name])
        losses = F.cross_entropy(proxy(images), labels, reduction="none")
        selected = torch.stack([loss if loss < threshold else 0 * loss for loss in losses]).sum() / len(losses)
        selected.backward()
        for name in names:
            gathered[name] = gathered[name] + rate * proxy.get_parameter(name).grad
        whole = sum(value.square().sum() for value in gathered.values()).sqrt()
        scaled = {name: value * length / (whole + 1e-20) for name, value in gathered.items()}
    return scaled


@pytest.mark.parametrize("name", ["rwp", pytest.param("mlcat_wp", marks=pytest.mark.slow)])
def test_two_updates_equal_those_by_hand(start, follows, trained, name):
    method = start(name, dtype=torch.float64, threshold=2.3)
    trained(method.model)
    follows(
        method,
        lambda network, batch, adversarial: F.cross_entropy(network(adversarial), batch.labels),
        atol=1e-12,
        perturbation=lambda network, batch, adversarial: perturbation_by_hand(network, adversarial, batch.labels, 2.3),
    )


def length(tensors):
    return sum(value.square().sum() for value in tensors).sqrt().item()


@pytest.mark.parametrize(("rank", "full"), [(0, False), (1, True), (16, True)])
def test_one_image_below_the_threshold_gives_the_full_length(start, first_batch, rank, full):
    """Discontinuous: none gives no perturbation, one the whole of it."""
    method = start("rwp", dtype=torch.float64)
    batch = first_batch(method)
    losses = F.cross_entropy(copy.deepcopy(method.model)(batch.images), batch.labels, reduction="none").sort().values
    threshold = losses[0] / 2 if rank == 0 else losses[rank - 1] + 1e-9
    method = start("rwp", dtype=torch.float64, threshold=threshold.item(), ascents=1)
    method.backward(batch, batch.images)
    weights = [weight - change for weight, change in zip(method.moved, method.perturbation, strict=True)]
    assert length(method.perturbation) == pytest.approx(0.01 * length(weights) if full else 0)


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("rwp", "cifar10", (1.7, 0.0)),
        ("rwp", "cifar100", (4.0, 0.0)),
        ("rwp", "svhn", (1.7, 0.025)),
        ("mlcat_wp", "cifar100", (1.5, 0.0)),
        ("mlcat_wp", "svhn", (1.5, 0.0)),
    ],
)
def test_the_published_values(start, name, dataset, expected):
    values = type(start(name)).Params.canonical(dataset, "multi_step")
    assert (values["threshold"].value, values["warm_up"].value) == expected
    assert [values[key].value for key in ("gamma", "ascents", "rate")] == [0.01, 10, 0.01]
