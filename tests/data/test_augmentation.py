import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench.config.augmentation import Crop, Cutout, Enhance, Flip, RandomErasing, Rotate, Tones
from bench.data.augmentation import augment
from bench.testing.recorded_graph import record
from bench.utils.distributed import ProcessGroup

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


# --- cutout and erasing -----------------------------------------------------------------------------------------------


def holes(step, count=2000, shape=(3, 9, 12)):
    """Return the rectangle of every image that is black afterwards: [count, 4], top, left, bottom, right."""
    white = torch.full((count, *shape), 255, dtype=torch.uint8)
    black = augment(white, (step,), torch.Generator().manual_seed(0)) == 0
    assert (black == black[:, :1]).all()
    edges = []
    for image in black[:, 0]:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        if not len(rows):
            edges.append([0, 0, 0, 0])
            continue
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        assert image[top:bottom, left:right].all()
        edges.append([top, left, bottom, right])
    return torch.tensor(edges)


@pytest.mark.parametrize("size", [4, 5])
def test_cutout_blackens_a_square_about_every_pixel(size):
    found = holes(Cutout(size=size))
    middles = [(row, column) for row in range(9) for column in range(12)]
    before = size // 2
    expected = {
        (max(0, r - before), max(0, c - before), min(9, r - before + size), min(12, c - before + size))
        for r, c in middles
    }
    assert set(map(tuple, found.tolist())) == expected


def test_erasing_draws_area_ratio_and_place():
    step = RandomErasing(probability=0.5, area=(0.1, 0.4), ratio=(0.5, 2))
    found = holes(step)
    height, width = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    erased = height > 0
    assert stats.binomtest(int(erased.sum()), 2000, 0.5).pvalue > 0.001
    area = (height * width)[erased] / (9 * 12)
    assert area.min() > 0.1 - 0.05
    assert area.max() < 0.4 + 0.06
    assert stats.kstest(area.numpy(), stats.uniform(0.1, 0.3).cdf).statistic < 0.1  # sides are whole numbers
    ratio = (height / width)[erased]
    assert ratio.min() > 0.3
    assert ratio.max() < 3
    assert abs(ratio.log().mean()) < 0.05
    assert {int(top) for top in found[erased, 0][height[erased] == 4]} == set(range(6))


def test_a_rectangle_that_never_fits_erases_nothing():
    assert not holes(RandomErasing(probability=1, area=(0.9, 1), ratio=(10, 20))).any()


def test_erasing_is_that_of_torchvision():
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    theirs = transforms.RandomErasing(p=1)
    sizes = [theirs.get_params(torch.zeros(3, 32, 32), scale=(0.02, 0.33), ratio=(0.3, 3.3))[2:4] for _ in range(1500)]
    ours = holes(RandomErasing(probability=1), 1500, (3, 32, 32))
    height, width = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    assert stats.ks_2samp(height, [h for h, _ in sizes]).pvalue > 0.001
    assert stats.ks_2samp(height * width, [h * w for h, w in sizes]).pvalue > 0.001


STEPS = (
    Crop(), Enhance(name="brightness", factors=(0.5, 1.5)), Flip(), Cutout(size=3), RandomErasing(),
    Enhance(name="sharpness", factors=(0, 2)), Enhance(name="saturation", factors=(0, 2)),
    Enhance(name="contrast", factors=(0, 2)), Tones(name="equalize"), Tones(name="autocontrast"), Rotate(),
)  # fmt: skip


def test_steps_act_in_their_order():
    brighter, rotated = Enhance(name="brightness", factors=(2, 2)), Rotate(degrees=45)
    random = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    one_by_one = augment(augment(RANDOM_PIXELS, (rotated,), random()), (brighter,), random())
    assert torch.equal(augment(RANDOM_PIXELS, (rotated, brighter), random()), one_by_one)
    black_then_equalized = augment(RANDOM_PIXELS, (Cutout(size=4), Tones(name="equalize", probability=1)), random())
    equalized_then_black = augment(RANDOM_PIXELS, (Tones(name="equalize", probability=1), Cutout(size=4)), random())
    assert not torch.equal(black_then_equalized, equalized_then_black)


def test_no_augmentation_waits_for_the_device():
    record(lambda: augment(RANDOM_PIXELS, STEPS, torch.Generator().manual_seed(0)), [])


def test_the_processes_of_a_group_augment_their_parts_of_the_batch():
    whole = augment(RANDOM_PIXELS, STEPS, torch.Generator().manual_seed(0))
    for rank in range(2):
        group = ProcessGroup(rank, 2)
        part = augment(group.shard(RANDOM_PIXELS), STEPS, torch.Generator().manual_seed(0), group)
        assert torch.equal(part, group.shard(whole))
