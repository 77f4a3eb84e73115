"""Every operation has the bits of torchvision's."""

import pytest
import torch

from bench.config.augmentation import Enhance, Tones
from bench.data.augmentation import augment
from bench.data.colour import ENHANCEMENTS, TONES

functional = pytest.importorskip("torchvision.transforms.v2").functional

RANDOM = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (60, 3, 20, 16), dtype=torch.uint8, generator=RANDOM)
NARROW = PIXELS // 3 + 20  # of a range that can be stretched
NARROW[0] = 7  # of a single value
FACTORS = 2 * torch.rand(60, generator=RANDOM)
FACTORS[:2] = torch.tensor([0, 1])


@pytest.mark.parametrize("images", [PIXELS, PIXELS[:, :1], NARROW, PIXELS[..., :2, :]], ids=lambda i: str(i.shape))
@pytest.mark.parametrize("name", ENHANCEMENTS)
def test_an_enhancement_is_that_of_torchvision(name, images):
    theirs = getattr(functional, f"adjust_{name}")
    expected = torch.stack([theirs(image, float(factor)) for image, factor in zip(images, FACTORS, strict=True)])
    assert torch.equal(ENHANCEMENTS[name](images, FACTORS), expected)


@pytest.mark.parametrize("images", [PIXELS, PIXELS[:, :1], NARROW], ids=lambda i: str(i.shape))
@pytest.mark.parametrize("name", TONES)
def test_tones_are_those_of_torchvision(name, images):
    expected = torch.stack([getattr(functional, name)(image) for image in images])
    assert torch.equal(TONES[name](images), expected)


@pytest.mark.parametrize(
    "step",
    [Enhance(name="contrast", factors=(0.2, 0.8), probability=0.5), Tones(name="equalize")],
    ids=lambda s: s.name,
)
def test_each_image_is_chosen_with_the_probability_and_draws_its_own_factor(step):
    same = PIXELS[:1].expand(400, -1, -1, -1)
    changed = augment(same, (step,), torch.Generator().manual_seed(1))
    untouched = (changed == same).flatten(1).all(1).sum()
    assert 150 < untouched < 250
    assert len(changed.flatten(1).unique(dim=0)) > (50 if step.name == "contrast" else 1)
