import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench.config.protocol import Crop, Flip, Rotate
from bench.data.augmentation import augment

RANDOM_PIXELS = torch.randint(0, 256, (50, 3, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def one_by_one(pixels, index, steps, random):
    """Augment image by image, with torch's padding and the same draws: for a crop all offsets down, then right."""
    n = len(index)
    images = list(pixels[index])
    for step in steps:
        if isinstance(step, Crop):
            down, right = torch.randint(-step.padding, step.padding + 1, (2, n, 1), generator=random).squeeze(2)
            for i, image in enumerate(images):
                p, (height, width) = step.padding, image.shape[1:]
                mode = "reflect" if step.mode == "reflect" else "constant"
                padded = F.pad(image.float(), (p, p, p, p), mode=mode).to(torch.uint8)
                top, left = p + int(down[i]), p + int(right[i])
                images[i] = padded[:, top : top + height, left : left + width]
        elif isinstance(step, Rotate):
            draws = torch.rand((n, 1, 1), generator=random).flatten()
            images = [
                turned(image, (2 * float(draw) - 1) * step.degrees) for image, draw in zip(images, draws, strict=True)
            ]
        else:
            flipped = (torch.rand((n, 1), generator=random) < 0.5).squeeze(1)
            images = [image.flip(2) if flip else image for image, flip in zip(images, flipped, strict=True)]
    return torch.stack(images).to(torch.uint8)


def turned(image, degrees):
    """Turn one image against the clock, pixel by pixel: each shows the nearest one of those it was turned from."""
    height, width = image.shape[1:]
    middle_y, middle_x, angle = (height - 1) / 2, (width - 1) / 2, math.radians(degrees)
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row - middle_y, column - middle_x
            from_column = round(x * math.cos(angle) - y * math.sin(angle) + middle_x)
            from_row = round(x * math.sin(angle) + y * math.cos(angle) + middle_y)
            if 0 <= from_row < height and 0 <= from_column < width:
                result[:, row, column] = image[:, from_row, from_column]
    return result


ROTATE = Rotate(degrees=40)
REFLECT, ZERO, FLIP = Crop(padding=4, mode="reflect"), Crop(padding=3, mode="zero"), Flip()


@pytest.mark.parametrize(
    "steps",
    [
        (REFLECT,),
        (ZERO,),
        (FLIP,),
        (REFLECT, FLIP),
        (FLIP, REFLECT),
        (ZERO, FLIP),
        (FLIP, ZERO),
        (ZERO, REFLECT),
        (REFLECT, ZERO, FLIP, FLIP),
        (ZERO, FLIP, ZERO),
        (Crop(padding=7, mode="reflect"),),
        (Crop(padding=12, mode="zero"),),
        (ROTATE,),
        (ZERO, FLIP, ROTATE),
        (ROTATE, REFLECT, FLIP),
        (ROTATE, ZERO, ROTATE),
    ],
    ids=lambda steps: "-".join(getattr(step, "mode", step.name) for step in steps),
)
def test_augmentation_equals_padding_and_cutting_every_image(steps):
    index = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(1))
    ours = augment(RANDOM_PIXELS[index], steps, torch.Generator().manual_seed(2))
    reference = one_by_one(RANDOM_PIXELS, index, steps, torch.Generator().manual_seed(2))
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, reference)
    assert not torch.equal(ours, RANDOM_PIXELS[index])


def test_without_steps_the_pixels_are_as_they_were():
    index = torch.tensor([3, 0, 3])
    assert torch.equal(augment(RANDOM_PIXELS[index], (), torch.Generator()), RANDOM_PIXELS[index])


def test_the_originals_are_not_touched():
    before = RANDOM_PIXELS.clone()
    augment(RANDOM_PIXELS, (ZERO, FLIP), torch.Generator().manual_seed(0))
    assert torch.equal(RANDOM_PIXELS, before)


def test_every_offset_is_equally_likely():
    # every pixel holds its own position, so the middle one tells the offset: rows and columns, -2 to 2 each
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    cut = augment(pixels.expand(5000, 1, 8, 8), (Crop(padding=2),), torch.Generator().manual_seed(0))
    middle = cut[:, 0, 4, 4].long()
    places, counts = torch.stack([middle // 8 - 4, middle % 8 - 4]).unique(dim=1, return_counts=True)
    assert places.shape == (2, 25)
    assert (places.min(), places.max()) == (-2, 2)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_half_of_the_images_are_flipped():
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    cut = augment(pixels.expand(5000, 1, 8, 8), (FLIP,), torch.Generator().manual_seed(0))
    flipped = int((cut[:, 0, 0, 0] == 7).sum())
    assert stats.binomtest(flipped, 5000, 0.5).pvalue > 0.001
    assert int((cut[:, 0, 0, 0] == 0).sum()) == 5000 - flipped


def test_angles_are_uniform_and_both_ways():
    # a single bright pixel right of the middle tells the angle by where it is seen
    pixels = torch.zeros(1, 1, 201, 201, dtype=torch.uint8)
    pixels[0, 0, 98:103, 196:201] = 255
    seen = augment(pixels.expand(1000, 1, 201, 201), (Rotate(degrees=90),), torch.Generator().manual_seed(0))[:, 0] > 0
    places = [image.nonzero().double().mean(0) - 100 for image in seen]
    angles = [math.degrees(math.atan2(-float(y), float(x))) for y, x in places]
    assert stats.kstest(angles, stats.uniform(-90, 180).cdf).pvalue > 0.001


def test_rotation_is_that_of_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = torch.rand((30, 1, 1), generator=torch.Generator().manual_seed(1)).flatten()
    ours = augment(images, (Rotate(degrees=15),), torch.Generator().manual_seed(1))
    theirs = torch.stack(
        [functional.rotate(image, (2 * float(draw) - 1) * 15) for image, draw in zip(images, draws, strict=True)]
    )
    assert (ours == theirs).double().mean() > 0.999  # where two pixels are equally near, rounding may differ
