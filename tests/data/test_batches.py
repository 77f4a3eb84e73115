import pytest
import torch

from bench.config.augmentation import Crop, Flip
from bench.data.augmentation import augment
from bench.data.batches import TrainingBatches, to_float
from bench.data.dataset import ImageSet
from bench.data.readers import ArrayReader
from bench.data.streaming import ImageStream
from bench.errors import BenchError
from bench.utils.distributed import ProcessGroup
from bench.utils.rng import RngStreams

RANDOM_PIXELS = torch.randint(0, 256, (50, 3, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REFLECT, FLIP = Crop(padding=4, mode="reflect"), Flip()


def test_to_float_divides_by_255_and_is_channels_last():
    images = to_float(RANDOM_PIXELS)
    assert images.dtype == torch.float32
    assert torch.equal(images, RANDOM_PIXELS.to(torch.float32) / 255)
    assert images.is_contiguous(memory_format=torch.channels_last)


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(steps=(), size=8, seed=0):
    random = RngStreams(seed)
    images = ImageSet(RANDOM_PIXELS, torch.arange(50) % 10)
    return TrainingBatches(images, size, steps, random), random


def epoch_of(made, random, epoch):
    random.start_epoch(epoch)
    return list(made)


def same(one, other):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) for a, b in zip(one, other, strict=True)
    )


def test_batches_hold_images_with_their_labels_and_places():
    made, random = batches()
    epoch = epoch_of(made, random, 0)
    for batch in epoch:
        assert torch.equal(batch.images, to_float(RANDOM_PIXELS[batch.index]))
        assert torch.equal(batch.labels, batch.index % 10)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_the_last_partial_batch_may_be_kept():
    random = RngStreams(0)
    made = TrainingBatches(ImageSet(RANDOM_PIXELS, torch.arange(50) % 10), 8, (), random, keep_last=True)
    dropped, _ = batches()
    kept, others = epoch_of(made, random, 3), epoch_of(dropped, dropped._random, 3)
    assert (len(made), [len(batch) for batch in kept], made.used) == (7, [8] * 6 + [2], 50)
    assert same(kept[:6], others)
    assert len(torch.cat([batch.index for batch in kept]).unique()) == 50
    with pytest.raises(BenchError, match="a batch of 2 images cannot be cut into 4 equal parts"):
        TrainingBatches(ImageSet(RANDOM_PIXELS, torch.arange(50)), 8, (), random, ProcessGroup(0, 4), keep_last=True)


@pytest.mark.parametrize(("size", "count"), [(8, 6), (50, 1), (25, 2), (26, 1), (7, 7)])
def test_the_last_partial_batch_is_dropped(size, count):
    made, random = batches(size=size)
    epoch = epoch_of(made, random, 0)
    assert len(made) == len(epoch) == count
    assert {len(batch) for batch in epoch} == {size}
    seen = torch.cat([batch.index for batch in epoch])
    assert len(seen.unique()) == count * size


def test_another_epoch_is_another_order_and_drops_other_images():
    made, random = batches()
    orders = [torch.cat([batch.index for batch in epoch_of(made, random, epoch)]).tolist() for epoch in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert {index for order in orders for index in order} == set(range(50))


def test_the_same_epoch_is_the_same_batches():
    made, random = batches((REFLECT, FLIP))
    first, second = epoch_of(made, random, 3), epoch_of(made, random, 4)
    torch.manual_seed(1)
    again, another_random = batches((REFLECT, FLIP))
    assert same(epoch_of(again, another_random, 3), first)
    assert not same(second, first)
    assert same(epoch_of(made, random, 3), first)
    other_seed, other_random = batches((REFLECT, FLIP), seed=1)
    assert not same(epoch_of(other_seed, other_random, 3), first)


def test_augmentation_does_not_change_the_order_and_is_new_in_every_batch():
    plain, random = batches()
    augmented, other_random = batches((REFLECT,))
    one, other = epoch_of(plain, random, 0), epoch_of(augmented, other_random, 0)
    assert [batch.index.tolist() for batch in one] == [batch.index.tolist() for batch in other]
    again = [
        to_float(augment(RANDOM_PIXELS[batch.index], (REFLECT,), RngStreams(0)("augmentation"))) for batch in other
    ]
    assert torch.equal(again[0], other[0].images)
    assert not torch.equal(again[1], other[1].images)  # the second batch draws on


def test_one_batch_must_be_full():
    with pytest.raises(BenchError, match="^only 50 images are left to train on, too few for one batch of 51$"):
        batches(size=51)


def test_streamed_images_make_the_same_batches():
    made, random = batches((REFLECT, FLIP))
    streamed = TrainingBatches(
        ImageStream(ArrayReader(RANDOM_PIXELS.numpy()), torch.arange(50), torch.arange(50) % 10, workers=2),
        8, (REFLECT, FLIP), other := RngStreams(0),
    )  # fmt: skip
    assert same(epoch_of(streamed, other, 2), epoch_of(made, random, 2))
