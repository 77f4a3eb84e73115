from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.protocol import DatasetSettings, Files, Subset
from bench.data.dataset import ABSENT, LARGE_PIXELS, ImageSet, Located, Split, arrays, dataset_of, missing
from bench.data.datasets.digits import digits, load
from bench.data.prepare import prepare
from bench.data.readers import ArrayReader
from bench.data.streaming import ImageStream
from bench.errors import BenchError, NotFound
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn


def part(start, count, side=8):
    """Images that are all zero, with labels that number them."""
    return Split(ArrayReader(np.zeros((count, 1, side, side), np.uint8)), np.arange(start, start + count))


def a_dataset(found=None, **stated):
    """A dataset whose labels number the images, training and test images apart."""
    found = found or Located(Path("there"), part(0, 100), part(1000, 10))
    return replace(digits, train_images=100, test_images=10, find=lambda _root, _settings: found, **stated)


def splits(dataset=None, **settings):
    settings = DatasetSettings(**{"name": "digits", "validation": 30, **settings})
    return (dataset or a_dataset()).configured(settings).splits(None)


def labels(made):
    return made.train.labels.tolist(), made.validation.labels.tolist(), made.test.labels.tolist()


def test_the_parts_are_disjoint_and_complete():
    train, validation, test = labels(splits())
    assert (len(train), len(validation)) == (70, 30)
    assert sorted(train + validation) == list(range(100))
    assert test == list(range(1000, 1010))
    assert validation != sorted(validation)  # a random part, not the first images


def test_the_split_depends_on_its_seed_alone():
    def validation(seed):
        return labels(splits(split_seed=seed))[1]

    torch.manual_seed(0)
    first = validation(0)
    torch.manual_seed(1)
    assert validation(0) == first
    assert validation(1) != first


def test_images_and_labels_stay_together():
    made = dataset_of(DatasetSettings(name="digits", validation=200)).splits(None)
    train, _ = load()
    known = {(image.numpy().tobytes(), int(label)) for image, label in zip(train.pixels, train.labels, strict=True)}
    for images in (made.train, made.validation):
        pairs = {
            (image.numpy().tobytes(), int(label)) for image, label in zip(images.pixels, images.labels, strict=True)
        }
        assert pairs <= known


@pytest.mark.parametrize("validation", [100, 5000])
def test_some_images_must_be_left_to_train_on(validation):
    with pytest.raises(BenchError, match=rf"^{validation} validation images leave none to train on: digits has 100 "):
        splits(validation=validation)
    assert len(splits(validation=99).train) == 1


def test_take():
    zeros = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    taken = ImageSet(zeros, torch.arange(10)).take(torch.tensor([7, 2, 2]))
    assert taken.labels.tolist() == [7, 2, 2]
    assert len(taken) == len(taken.pixels) == 3


# --- subset, validation by indices, resize ----------------------------------------------------------------------------


def test_a_subset_is_split_like_a_whole():
    train, validation, test = labels(splits(subset=Subset(train="0-9,50-79", test="3,7-8"), validation=10))
    assert sorted(train + validation) == [*range(10), *range(50, 80)]
    assert len(validation) == 10
    assert test == [1003, 1007, 1008]


def test_validation_by_indices_may_lie_inside_or_outside_the_subset():
    train, validation, _ = labels(splits(subset=Subset(train="0-19"), validation="15-24"))
    assert train == list(range(15))
    assert validation == list(range(15, 25))
    train, validation, _ = labels(splits(validation="0,99"))
    assert train == list(range(1, 99))
    assert validation == [0, 99]


def test_a_protocol_may_hold_out_no_image():
    train, validation, test = labels(splits(validation="none"))
    assert sorted(train) == list(range(100))
    assert validation == []
    assert test == list(range(1000, 1010))


def test_a_suite_may_replace_the_normalisation():
    configured = a_dataset().configured(DatasetSettings(name="digits", mean=(0,), std=(1,)))
    images = torch.rand(2, 1, 8, 8)
    network = build_network(small_cnn, configured, 0).eval()
    assert torch.equal(network(images), network.body(images))


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, (100, 10)),
        ({"subset": Subset(train="0-49", test="0")}, (50, 1)),
        ({"subset": Subset(train="0-19"), "validation": "15-24"}, (25, 10)),
        ({"validation": "15-24"}, (100, 10)),
        ({"validation": "none"}, (100, 10)),
        ({"digest": "0" * 64}, (None, None)),
    ],
)
def test_counts_are_those_of_the_images_used(settings, counts):
    configured = a_dataset().configured(DatasetSettings(name="digits", **settings))
    assert (configured.train_images, configured.test_images) == counts
    if None not in counts:
        made = splits(**settings) if "validation" in settings else splits(**settings, validation=3)
        assert len(made.train) + len(made.validation) == counts[0]
        assert len(made.test) == counts[1]
        assert configured.left_to_train == counts[0] - configured.settings.held_out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"subset": Subset(train="0-100")}, "^subset.train: index 100 is beyond the 100 images$"),
        ({"subset": Subset(test="5,10")}, "^subset.test: index 10 is beyond the 10 images$"),
        ({"validation": "90-110"}, "^validation: index 110 is beyond the 100 images$"),
        ({"resize": 3}, "^resize: 3 does not divide the side of 8x8 pixels$"),
        ({"resize": 16}, "^resize: 16 does not divide the side of 8x8 pixels$"),
        (
            {"files": Files(path="x", classes=2, shape=(1, 8, 8))},
            "^dataset 'digits' has files of its own; remove the key 'files'",
        ),
        ({"digest": "0" * 64}, "^dataset 'digits' has no digest; remove the key 'digest'$"),
    ],
)
def test_settings_that_do_not_fit_the_dataset(settings, sentence):
    with pytest.raises(BenchError, match=sentence):
        splits(**settings)


def test_nothing_left_to_train_on():
    with pytest.raises(BenchError, match="^21 validation images leave none to train on: digits has 21 training images"):
        splits(subset=Subset(train="0-9"), validation="0-20")
    with pytest.raises(BenchError, match="^no images of digits remain to train on"):
        own(Located(Path("there"), part(0, 100), None), test=70).splits(None)


def test_resizing_averages_squares_exactly():
    made = dataset_of(DatasetSettings(name="digits", validation=200, resize=4))
    assert made.shape == (1, 4, 4)
    small, large = made.splits(None).test.pixels, load()[1].pixels.double()
    means = large.reshape(500, 1, 4, 2, 4, 2).mean(dim=(3, 5))
    assert small.shape == (500, 1, 4, 4)
    assert torch.equal(small.double(), (means + 0.5).floor())


def test_an_image_that_is_not_among_the_files_is_missed_only_where_it_is_used():
    train = part(0, 100)
    train.labels[40:] = ABSENT
    dataset = a_dataset(Located(Path("there"), train, part(1000, 10)))
    assert len(splits(dataset, subset=Subset(train="0-39"), validation=5).train) == 35
    with pytest.raises(BenchError, match="^60 of the training images of digits have no file .40 have one."):
        splits(dataset)
    with pytest.raises(BenchError, match="the first is index 55$"):
        splits(dataset, subset=Subset(train="0-9"), validation="5,55-56")


# --- files that a suite describes -------------------------------------------------------------------------------------

FILES = Files(path="mine", classes=100, shape=(1, 8, 8), test=20)


def own(found, **files):
    dataset = replace(a_dataset(found), own_files=True, train_images=None, test_images=None)
    return dataset.configured(DatasetSettings(name="mine", validation=30, files=FILES.model_copy(update=files)))


def test_test_images_are_held_out_where_the_files_have_none():
    made = own(Located(Path("there"), part(0, 100), None))
    train, validation, test = labels(made.splits(None))
    assert (len(train), len(validation), len(test)) == (50, 30, 20)
    assert sorted(train + validation + test) == list(range(100))
    counted = made.counted(None)
    assert (counted.train_images, counted.test_images) == (80, 20)
    assert labels(made.splits(None)) == (train, validation, test)


def test_a_part_of_files_that_are_not_known_is_counted():
    """Of the images chosen, whatever the files hold besides: held out are 30 by number, and those tested on."""
    settings = DatasetSettings(name="mine", validation=30, files=FILES, subset=Subset(train="0-79"))
    dataset = replace(a_dataset(Located(Path("there"), part(0, 100), None)), own_files=True, train_images=None)
    counted = replace(dataset, test_images=None).configured(settings).counted(None)
    assert (counted.train_images, counted.test_images, counted.left_to_train) == (60, 20, 30)


def test_images_that_are_not_there_are_not_counted():
    some = part(0, 100)
    some.labels[80:] = ABSENT
    dataset = a_dataset(Located(Path("there"), some, part(0, 10), lambda: "0" * 64))
    settings = DatasetSettings(name="made", validation="0-9", digest="0" * 64, subset=Subset(train="10-49"))
    counted = dataset.configured(settings).counted(None)
    assert (counted.train_images, counted.test_images, counted.left_to_train) == (50, 10, 40)


def test_without_test_images_the_suite_must_say_how_many():
    with pytest.raises(BenchError, match=r"^there has no test images; set 'files.test' to the number"):
        own(Located(Path("there"), part(0, 100), None), test=None).splits(None)


def test_what_the_suite_states_is_what_the_dataset_is():
    made = own(Located(Path("there"), part(0, 100), part(0, 10)), shape=(3, 16, 8), classes=7, std=(0.1, 0.2, 0.3))
    assert (made.shape, made.classes, made.mean, made.std) == ((3, 16, 8), 7, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert made.left_to_train is None
    assert (made.counted(None).train_images, made.counted(None).test_images) == (100, 10)
    with pytest.raises(BenchError, match="^dataset 'digits' needs the key 'files'$"):
        replace(digits, own_files=True).configured(DatasetSettings(name="digits"))


def test_digests_tell_other_images_other_labels_and_another_order(monkeypatch):
    def digests(**changes):
        train = part(0, 100)
        return splits(a_dataset(Located(Path("there"), replace(train, **changes), part(1000, 10)))).digests()

    whole, pixels = digests(), part(0, 100).reader.pixels.copy()
    monkeypatch.setattr("bench.data.dataset.CHUNK", 7)
    assert digests() == whole, "whatever is read at a time"
    pixels[50] += 1
    others = [{"reader": ArrayReader(pixels)}, {"labels": (part(0, 100).labels + 1) % 10}]
    found = [digests(), *(digests(**changes) for changes in others), splits(split_seed=1).digests()]
    assert len({one["training"] for one in found}) == 4
    assert len({one["test"] for one in found}) == 1


def test_streamed_images_are_told_by_their_files(pets, own, draw, monkeypatch):
    monkeypatch.setattr("bench.data.dataset.LARGE_PIXELS", 1)
    splits = own().splits(pets)
    assert isinstance(splits.test, ImageStream)
    before, of_pixels = splits.digests(), replace(splits, content=None).digests()
    prepare(own(), pets)
    splits = own().splits(pets)
    assert (splits.digests(), replace(splits, content=None).digests()) == (before, of_pixels)
    Image.new("RGB", (6, 6)).save(pets / "pets" / "train" / "cat" / "0.png")
    assert own().splits(pets).digests() != before


def test_a_digest_is_verified():
    found = replace(Located(Path("there"), part(0, 100), part(1000, 10)), digest=lambda: "a" * 64)
    assert len(splits(a_dataset(found), digest="a" * 64).test) == 10
    with pytest.raises(
        BenchError, match=f"^there: these files have the digest {'a' * 64}, not .* write 'digest: {'a' * 64}'"
    ):
        splits(a_dataset(found), digest="b" * 64)


def test_a_missing_dataset_says_where_how_and_under_which_licence():
    dataset = replace(digits, obtain="Fetch it from there.", licence="MIT")
    error = missing(dataset, [Path("/a/b"), Path("/a/c")], Path("/a"))
    assert isinstance(error, NotFound)
    assert str(error) == ("dataset 'digits' not found: looked for /a/b or /a/c. Fetch it from there. Licence: MIT")
    assert "--data or BENCH_DATA" in str(missing(dataset, [], None))


# --- resident and streamed --------------------------------------------------------------------------------------------


def test_large_images_are_streamed():
    side = int(LARGE_PIXELS**0.5) + 1
    dataset = replace(a_dataset(Located(None, part(0, 40, side), part(1000, 10, side))), shape=(1, side, side))
    assert isinstance(splits(dataset, validation=10).train, ImageStream)
    assert isinstance(splits().train, ImageSet)


def test_both_kinds_read_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), np.uint8)
    resident = ImageSet(torch.from_numpy(pixels), torch.arange(20))
    stream = ImageStream(ArrayReader(pixels), torch.arange(20), torch.arange(20))
    chosen = torch.tensor([3, 19, 0, 7, 7, 12])
    batches = [torch.tensor([5, 0]), torch.tensor([1, 1, 2]), torch.tensor([4])]
    for one, other in zip(resident.take(chosen).read(batches), stream.take(chosen).read(batches), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(resident.take(chosen).labels, stream.take(chosen).labels)


def test_arrays_are_found():
    train, test = load()
    found = arrays(train, test)
    assert np.array_equal(found.train.reader.load(np.array([5, 1])), train.pixels[[5, 1]].numpy())
    assert np.array_equal(found.test.labels, test.labels.numpy())
