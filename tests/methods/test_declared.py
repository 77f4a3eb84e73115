"""The methods of which only the abstract could be read: they do what their pages declare."""

import copy

import pytest
import torch
import torch.nn.functional as F

from bench.attacks.pgd import frozen_parameters


def test_moat_cycles_through_three_kinds_of_images(start, first_batch):
    attack = {"name": "pgd", "steps": 3, "step_size": 0.05, "random_start": False}
    method = start("moat", epochs=50, attack=attack)
    batch, kinds, seen = first_batch(method), [], []
    method.model.register_forward_hook(lambda *_: seen.append(1))
    for epoch in range(10):
        method.begin_epoch(epoch)
        seen.clear()
        clean = method.perturb(batch) is batch.images
        kinds.append(len(seen))
        assert clean == (len(seen) == 0)
    assert kinds == [0, 1, 1, 3, 3] * 2
    method.begin_epoch(1)
    method.context.random.start_epoch(1)
    one = method.perturb(batch)
    assert not torch.equal(one, method.perturb(batch))  # its one step has a random start, whatever the protocol's has


def test_the_shortest_cycle_has_every_stage(start, first_batch):
    method, seen = start("moat", epochs=6), []
    batch = first_batch(method)
    method.model.register_forward_hook(lambda *_: seen.append(1))
    counts = []
    for epoch in range(6):
        method.begin_epoch(epoch)
        seen.clear()
        method.perturb(batch)
        counts.append(len(seen))
    assert counts == [0, 1, 3] * 2


def test_the_stages_of_a_cycle_leave_no_negative_share(start):
    with pytest.raises(ValueError, match="leave of a cycle"):
        start("moat", benign=0.7, single=0.4)
    start("moat", benign=0.6, single=0.4)  # nothing is left for the protocol's attack


def test_the_single_step_is_that_of_fgsm_rs(start, first_batch):
    images = []
    for name in ("moat", "fgsm_rs"):
        method = start(name, epoch=1)
        with frozen_parameters(method.model):
            images.append(method.perturb(first_batch(method)))
    assert torch.equal(*images)


@pytest.mark.parametrize("penalty", [1.0, 0.2])
def test_doubly_robust_weights_grow_with_the_loss(start, follows, trained, penalty):
    def formula(network, batch, images):
        losses = F.cross_entropy(network(images), batch.labels, reduction="none")
        weights = (losses.detach() / penalty).exp()
        return (weights / weights.sum() * losses).sum()

    method = start("doubly_robust", penalty=penalty)
    trained(method.model)
    follows(method, formula)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_gaat_adds_the_largest_first_order_increase(start, follows, trained, weight):
    def formula(network, batch, images):
        x = images.clone().requires_grad_()
        losses = F.cross_entropy(network(x), batch.labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        return losses.mean() + weight * 0.1 * gradient.abs().sum((1, 2, 3)).mean()

    method = start("gaat", weight=weight)
    trained(method.model)
    follows(method, formula)


def test_gaat_attacks_nothing(start, first_batch):
    method = start("gaat")
    batch = first_batch(method)
    assert method.perturb(batch) is batch.images


def test_persistency_estimates_the_lipschitz_constant(start, trained):
    """The largest ‖Δg‖ / ‖Δw‖ of two epochs, each on the images of one batch."""
    method, found = start("persistency", epochs=20), []
    method.model.double()
    method.before = method.weights()
    for epoch in range(2):
        before = copy.deepcopy(method.model)
        trained(method.model)
        images = {}
        method.perturb = lambda batch, images=images: images.setdefault("x", batch.images.double() + 0.01)
        labels = {}
        gradient = method.gradient
        method.gradient = lambda w, batch, x, labels=labels, gradient=gradient: (
            labels.update(y=batch.labels) or gradient(w, batch, x)
        )
        method.end_epoch(epoch)
        method.gradient = gradient
        both = [
            torch.autograd.grad(F.cross_entropy(network(images["x"]), labels["y"]), list(network.parameters()))
            for network in (copy.deepcopy(method.model), before.train())
        ]
        apart = sum((a - b).square().sum() for a, b in zip(*both, strict=True)).sqrt()
        pairs = zip(method.model.parameters(), before.parameters(), strict=True)
        moved = sum((a - b).square().sum() for a, b in pairs).sqrt()
        found.append((apart / moved).item())
        assert method.lipschitz == pytest.approx(max(found), rel=1e-6)
    method.end_epoch(2)  # the first epoch that does not estimate
    assert method.lipschitz == pytest.approx(max(found), rel=1e-6)


@pytest.mark.parametrize(("lipschitz", "rate"), [(20.0, 0.05), (4.0, 0.25), (1e9, 0.025), (0.0, 0.4)])
def test_the_rate_is_one_over_the_constant_within_bounds(start, lipschitz, rate):
    method = start("persistency", epochs=20)
    assert [method.lr_schedule.rate(t) for t in (1, 12)] == pytest.approx([0.1, 0.01])
    method.lipschitz = lipschitz
    method.begin_epoch(1)
    assert method.lr_schedule.rate(2) == pytest.approx(0.1)
    method.begin_epoch(2)
    assert [method.lr_schedule.rate(t) for t in (3, 12)] == pytest.approx([rate, rate / 10])


def test_crafting_is_untouched(start, first_batch):
    """Both weight and rate leave PGD-AT's images alone."""
    images = []
    for name in ("pgd_at", "doubly_robust", "persistency"):
        method = start(name)
        with frozen_parameters(method.model):
            images.append(method.perturb(first_batch(method)))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
