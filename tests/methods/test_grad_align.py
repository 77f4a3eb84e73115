import copy

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters
from bench.utils.rng import generator


def by_hand(network, batch, adversarial, first, noise, weight):
    """Cross-entropy plus the penalty, image by image."""
    loss = F.cross_entropy(network(adversarial), batch.labels)
    noisy = (batch.images + noise).requires_grad_()
    each = F.cross_entropy(network(noisy), batch.labels, reduction="sum")
    (second,) = torch.autograd.grad(each, noisy, create_graph=True)
    cosines = [torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm()) for a, b in zip(first, second, strict=True)]
    return loss + weight * (1 - sum(cosines) / len(cosines))


def test_loss_and_two_updates_follow_the_formula(start, first_batch, trained):
    """The second derivative passes through batch normalisation in train mode."""
    method = start("grad_align", dtype=torch.float64, weight=3.0)
    trained(method.model)
    batch = first_batch(method)
    network = copy.deepcopy(method.model).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    random = generator(0, "attack")
    for _ in range(2):
        images = batch.images.contiguous().requires_grad_()
        (first,) = torch.autograd.grad(F.cross_entropy(network(images), batch.labels, reduction="sum"), images)
        adversarial = (batch.images + (0.125 * first.sign()).clamp(-0.1, 0.1)).clamp(0, 1)
        noise = torch.empty_like(batch.images).uniform_(-0.1, 0.1, generator=random)
        expected = by_hand(network, batch, adversarial, first, noise, 3.0)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        with frozen_parameters(method.model):
            found = method.perturb(batch)
        torch.testing.assert_close(found, adversarial, rtol=0, atol=1e-12)
        loss, _ = method.backward(batch, found)
        method.optimizer.step()
        method.optimizer.zero_grad()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        for (name, ours), theirs in zip(method.model.state_dict().items(), network.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11, msg=name)


def test_images_without_a_gradient_do_not_count(start, first_batch, monkeypatch):
    method = start("grad_align", dtype=torch.float64)
    batch = first_batch(method)
    with frozen_parameters(method.model):
        adversarial = method.perturb(batch)
    losses = []
    for zeros in (slice(0, 0), slice(0, 8), slice(0, 16)):
        method.gradient[zeros] = 0
        method.context.random.start_epoch(0)
        loss, _ = method.loss(batch, adversarial)
        assert torch.isfinite(loss)
        losses.append(loss.item())
    natural = F.cross_entropy(method.model(adversarial), batch.labels).item()
    assert losses[2] == pytest.approx(natural + 0.2)  # nothing is aligned
    assert losses[0] < losses[2]
    assert losses[1] < losses[2]


@pytest.mark.slow
def test_second_derivatives_of_a_network_with_channels_last(start, first_batch):
    """Convolutions and batch normalisation of PreActResNet-18 in channels_last, against contiguous float64."""
    method = start("grad_align", model="preact_resnet18")
    batch = first_batch(method)
    grads = []
    for dtype, layout in ((torch.float32, torch.channels_last), (torch.float64, torch.contiguous_format)):
        network = copy.deepcopy(method.model).to(dtype).to(memory_format=layout)
        x = batch.images.to(dtype).contiguous(memory_format=layout).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), batch.labels), x, create_graph=True)
        grads.append(torch.autograd.grad(gradient.square().sum(), list(network.parameters()), allow_unused=True))
    for ours, theirs in zip(*grads, strict=True):
        if theirs is not None and theirs.norm() > 0:
            assert (ours.double() - theirs).norm() / theirs.norm() < 1e-3
