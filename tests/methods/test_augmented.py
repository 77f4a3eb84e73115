"""Methods that change images before the attack: CutMix with averaging, and IDBH."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torchvision.transforms import functional

from bench.attacks.pgd import frozen_parameters
from methods.idbh import crop_shift


def test_cutmix_mixes_images_and_labels_in_proportion(start, first_batch):
    method = start("cutmix_ema")
    batch = first_batch(method)
    mixed = method.transform(batch)
    own = F.one_hot(batch.labels, 10).float()
    shares = (mixed.images == batch.images).all(1).float().mean((1, 2))
    kept = mixed.soft_labels.gather(1, batch.labels[:, None])[:, 0]
    two = kept < 1
    assert two.any()
    assert (kept[two] <= shares[two] + 1e-6).all()  # pixels of both may be equal
    assert not torch.equal(mixed.soft_labels, own)
    torch.testing.assert_close(mixed.soft_labels.sum(1), torch.ones(16))
    assert ((mixed.soft_labels > 0).sum(1) <= 2).all()


def test_cutmix_loss_and_two_updates_follow_the_formula(start, first_batch, trained, follows):
    method = start("cutmix_ema")
    method.average.double()
    trained(method.model)
    mixed = method.transform(first_batch(method))
    targets = mixed.soft_labels.double()

    def formula(network, batch, adversarial):
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        p = functional_call(network, buffers, (batch.images,)).softmax(1)  # leaves running statistics alone
        q = network(adversarial).softmax(1)
        return -(targets * p.log()).sum(1).mean() + 6 * (p * (p / q).log()).sum(1).mean()

    inner = method.loss
    method.loss = lambda batch, adversarial: inner(
        type(batch)(batch.images, batch.labels, batch.index, targets), adversarial
    )
    follows(method, formula, rtol=1e-5)


def test_the_attack_raises_the_mixed_cross_entropy(start, first_batch, trained):
    method = start("cutmix_ema", dtype=torch.float64)
    trained(method.model)
    batch = method.transform(first_batch(method))
    network = copy.deepcopy(method.model)
    with frozen_parameters(method.model):
        adversarial = method.perturb(batch)
    for name, value in network.state_dict().items():
        assert torch.equal(value, method.model.state_dict()[name]), name  # running statistics too
    values = [F.cross_entropy(network(x), batch.soft_labels.double()) for x in (batch.images, adversarial)]
    assert values[1] > values[0]


def test_the_published_average(start):
    """Decay 0.995 in 400 epochs of 48 steps."""
    method = start("cutmix_ema")
    assert method.params.decay_in(19_200) == pytest.approx(0.995)
    assert method.params.recipe == "deepmind"


# --- IDBH -------------------------------------------------------------------------------------------------------------


def test_crop_shift_moves_a_window_onto_zeros():
    """By hand: three rows and columns go, two of them columns; the window is cut at (1, 0) and put at (0, 2)."""
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    draws = torch.tensor([[0.99], [0.7], [0.6], [0.1], [0.2], [0.9]])
    found = crop_shift(image, 3 / 8, draws)[0, 0]
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[0:7, 2:8] = image[0, 0, 1:8, 0:6]
    assert torch.equal(found, expected)
    assert torch.equal(crop_shift(image, 0.0, draws), image)


def test_one_of_eight_changes_is_drawn(start):
    """The limits of the intervals of the first draw, and what stays where it says so."""
    method = start("idbh")
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 16, 16), generator=random, dtype=torch.uint8)
    kinds = {}
    for name, chosen in (
        ("saturation", 0.05), ("brightness", 0.2), ("contrast", 0.3), ("sharpness", 0.4),
        ("autocontrast", 0.55), ("equalize", 0.7), ("shear", 0.8), ("rotate", 0.95),
    ):  # fmt: skip
        kinds[name] = method.colour_shape(pixels, torch.tensor([[chosen], [0.9], [0.6]]))
    assert len({tuple(value.flatten().tolist()) for value in kinds.values()}) >= 7  # autocontrast may change nothing
    assert torch.equal(kinds["brightness"], (pixels * (0.5 + 1.4 * 0.9)).clamp(max=255).to(torch.uint8))


@pytest.mark.parametrize(("sign", "direction", "axis"), [(0.1, -1, 0), (0.3, -1, 1), (0.6, 1, 0), (0.9, 1, 1)])
def test_shear_and_rotation_are_torchvisions(start, sign, direction, axis):
    """By 0.14 radians along rows or columns, and by 9.1 degrees, to either side, with zeros around."""
    method = start("idbh")
    pixels = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sheared, turned = (method.colour_shape(pixels, torch.tensor([[chosen], [0.9], [sign]])) for chosen in (0.8, 0.95))
    shear = [0.0, 0.0]
    shear[axis] = direction * math.degrees(0.14)
    assert torch.equal(sheared, functional.affine(pixels, 0.0, [0, 0], 1.0, shear))
    assert torch.equal(turned, functional.rotate(pixels, direction * 9.1))


def test_the_released_values(start):
    params = type(start("idbh")).Params.canonical
    weak, svhn = params("cifar10", "multi_step"), params("svhn", "multi_step")
    assert [weak[key].value for key in ("shift", "shapes", "erasing", "area")] == [10 / 32, 0.25, 0.5, 0.33]
    assert {value.provenance for values in (weak, svhn) for value in values.values()} == {"code"}
    assert [svhn[key].value for key in ("shift", "shapes", "erasing", "area")] == [8 / 32, 0.6, 1.0, 0.5]


def test_images_stay_images(start, first_batch, follows):
    method = start("idbh")
    batch = first_batch(method)
    changed = method.transform(batch).images
    assert changed.shape == batch.images.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert not torch.equal(changed, batch.images)
    follows(method, lambda network, batch, x: F.cross_entropy(network(x), batch.labels))
