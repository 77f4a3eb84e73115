"""CIFAR in both layouts: official files that the tests write as Python 2 wrote them, and images by index."""

import builtins
import hashlib
import os
import pickle
import socket
import struct
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, dataset_of
from bench.data.datasets.cifar import CIFAR10, CIFAR10_CLASSES, CIFAR100, cifar10, cifar100
from bench.errors import BenchError, NotFound

TRAIN, TEST = 50, 12  # of the small dataset that the tests write
SEED = np.random.default_rng(0)
PIXELS = SEED.integers(0, 256, (TRAIN + TEST, 3, 32, 32), np.uint8)
LABELS = SEED.permutation(np.arange(TRAIN + TEST) % 10)


def python2(pixels, labels, key="labels"):
    """Return a batch as Python 2 pickled it: protocol 2, text as bytes, the array by its old name and flags."""

    def text(value):
        value = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    rows = np.ascontiguousarray(pixels.reshape(len(pixels), -1))
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN"
    dtype += number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    array += b"(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86" + dtype
    array += b"\x89" + text(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    name = text("batch_label") + text("training batch 1 of 5")
    coarse = text("coarse_labels") + b"](" + number(0) * len(labels) + b"e" if key == "fine_labels" else b""
    return b"\x80\x02}(" + name + coarse + text(key) + numbers + text("data") + array + b"u."


def write_official(root, monkeypatch, kind, pixels, labels, train, batches):
    """Write the official files of `kind` with the first `train` images in `batches` files, and make them official."""
    listed = getattr(torchvision.datasets, kind.listed)
    (root / kind.folder).mkdir(parents=True)
    key = "fine_labels" if kind is CIFAR100 else "labels"

    def write(name, content):
        (root / kind.folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    names = [name for name, _ in listed.train_list[:batches]]
    parts = np.array_split(np.arange(train), batches)
    monkeypatch.setattr(
        listed,
        "train_list",
        [write(name, python2(pixels[i], labels[i], key)) for name, i in zip(names, parts, strict=True)],
    )
    monkeypatch.setattr(
        listed, "test_list", [write(listed.test_list[0][0], python2(pixels[train:], labels[train:], key))]
    )
    names = write(listed.meta["filename"], pickle.dumps({listed.meta["key"]: list(kind.classes)}))
    monkeypatch.setattr(listed, "meta", {**listed.meta, "md5": names[1]})


def write_images(folder, kind, pixels, labels, train, only=None):
    """Write the images as PNG files by class and index, as far as they are in `only`."""
    for place in range(len(pixels)) if only is None else only:
        part, index = ("train", place) if place < train else ("test", place - train)
        path = folder / part / kind.classes[labels[place]] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[place].transpose(1, 2, 0)).save(path)


def small(dataset, kind, train=TRAIN, test=TEST):
    """Return the dataset with other counts."""
    kind = replace(kind, train_images=train, test_images=test)
    return replace(dataset, train_images=train, test_images=test, find=kind.find, download=kind.download)


SMALL = small(cifar10, CIFAR10)


def splits(root, dataset=SMALL, **settings):
    return dataset.configured(DatasetSettings(name=dataset.name, **settings)).splits(root)


def find(root, dataset=SMALL):
    return dataset.configured(DatasetSettings(name=dataset.name, validation=5)).locate(root)


def same(one, other):
    return all(
        torch.equal(getattr(one, part).pixels, getattr(other, part).pixels)
        and torch.equal(getattr(one, part).labels, getattr(other, part).labels)
        for part in ("train", "validation", "test")
    )


@pytest.fixture
def official(tmp_path, monkeypatch):
    root = tmp_path / "official"
    write_official(root, monkeypatch, CIFAR10, PIXELS, LABELS, TRAIN, 5)
    return root


@pytest.fixture
def images(tmp_path):
    """Images by index, and the folder that holds them."""
    write_images(tmp_path / "images" / "cifar10", CIFAR10, PIXELS, LABELS, TRAIN)
    return tmp_path / "images"


@pytest.fixture
def offline(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.fixture(scope="session")
def real():
    """The data root with real images."""
    root = Path(os.environ.get("BENCH_DATA") or "/nonexistent")
    if not (root / "cifar10-exact").is_dir():
        pytest.skip("BENCH_DATA names no folder with cifar10-exact, the loss-free images by index")
    return root


# --- what is stated ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "kind", "classes"), [(cifar10, CIFAR10, 10), (cifar100, CIFAR100, 100)])
def test_what_is_stated_is_what_torchvision_states(dataset, kind, classes):
    listed = getattr(torchvision.datasets, kind.listed)
    assert (kind.folder, kind.archive) == (listed.base_folder, listed.filename)
    assert len(kind.classes) == len(set(kind.classes)) == dataset.classes == classes
    assert list(kind.classes) == sorted(kind.classes)
    assert (dataset.train_images, dataset.test_images, dataset.shape) == (50_000, 10_000, (3, 32, 32))
    assert dataset_of(DatasetSettings(name=kind.name)).title == dataset.title  # registered


# --- official files ---------------------------------------------------------------------------------------------------


def test_official_files_in_official_order(official):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find(official)
    assert found.where == official / "cifar-10-batches-py"
    assert np.array_equal(found.train.labels, LABELS[:TRAIN])
    assert np.array_equal(found.test.labels, LABELS[TRAIN:])
    assert np.array_equal(found.train.reader.load(np.arange(TRAIN)), PIXELS[:TRAIN])
    assert np.array_equal(found.test.reader.load(np.array([3, 0])), PIXELS[TRAIN:][[3, 0]])
    assert found.train.labels.dtype == np.int64


def test_torchvision_reads_the_same(official):
    found = find(official)
    for part, train in ((found.train, True), (found.test, False)):
        theirs = torchvision.datasets.CIFAR10(official, train=train)
        assert np.array_equal(part.reader.load(np.arange(len(theirs))).transpose(0, 2, 3, 1), theirs.data)
        assert part.labels.tolist() == theirs.targets


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    labels = np.random.default_rng(1).integers(0, 100, TRAIN + TEST)
    write_official(tmp_path, monkeypatch, CIFAR100, PIXELS, labels, TRAIN, 1)
    found = find(tmp_path, small(cifar100, CIFAR100))
    assert np.array_equal(np.concatenate([found.train.labels, found.test.labels]), labels)
    assert torchvision.datasets.CIFAR100(tmp_path).targets == found.train.labels.tolist()


def test_files_that_numpy_2_pickled_are_read_too(official, monkeypatch):
    content = pickle.dumps({b"data": PIXELS[:10].reshape(10, -1), b"labels": LABELS[:10].tolist()})
    assert (b"numpy._core" in content) == (np.lib.NumpyVersion(np.__version__) >= "2.0.0")
    rewrite(official, monkeypatch, content)
    assert np.array_equal(find(official).train.reader.load(np.arange(TRAIN)), PIXELS[:TRAIN])


def rewrite(root, monkeypatch, content, official=True):
    """Give the first batch another content, and make that official."""
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    if official:
        first = ["data_batch_1", hashlib.md5(content).hexdigest()]
        monkeypatch.setattr(
            torchvision.datasets.CIFAR10, "train_list", [first, *torchvision.datasets.CIFAR10.train_list[1:]]
        )


def test_a_wrong_checksum_is_named(official, monkeypatch):
    content = bytearray((official / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    content[-3000] ^= 1
    rewrite(official, monkeypatch, bytes(content), official=False)
    with pytest.raises(BenchError) as caught:
        find(official)
    assert str(caught.value) == (
        f"{official}/cifar-10-batches-py/data_batch_1 is damaged or not the official file: its MD5 sum is another; "
        "delete it and run `bench data prepare cifar10`"
    )


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch"])
def test_a_missing_batch_is_named(official, name):
    (official / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(BenchError, match=rf"/{name} is missing; run `bench data prepare cifar10`$"):
        find(official)


@pytest.mark.parametrize("length", [0, 1, 60, 400, 20_000, -1])
def test_a_truncated_batch_is_one_sentence_even_if_its_sum_is_right(official, monkeypatch, length):
    rewrite(official, monkeypatch, (official / "cifar-10-batches-py" / "data_batch_1").read_bytes()[:length])
    with pytest.raises(BenchError, match=r"/data_batch_1 is damaged .*: it cannot be parsed \(.*\); delete it and run"):
        find(official)


class Call:
    """What a hostile pickle is made of."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["whole", "label", "key"])
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.exec, builtins.getattr, os.mkdir])
def test_a_hostile_batch_runs_nothing(official, monkeypatch, tmp_path, function, place, protocol):
    marker = tmp_path / "marker"
    argument = {
        os.system: f"touch {marker}",
        builtins.eval: f"__import__('os').mkdir({str(marker)!r})",
        builtins.exec: f"__import__('os').mkdir({str(marker)!r})",
        os.mkdir: str(marker),
    }.get(function, str(marker))
    call = Call(function, argument) if function is not getattr else Call(getattr, argument, "upper")
    rows = PIXELS[:10].reshape(10, -1)
    content = {"whole": call, "label": {b"data": rows, b"labels": [call]}, "key": {call: 1, b"data": rows}}[place]
    data = pickle.dumps(content, protocol)
    if function is not getattr and place == "whole":  # it does run where nothing holds it
        pickle.loads(data)
        assert marker.exists()
        marker.unlink() if marker.is_file() else marker.rmdir()
    rewrite(official, monkeypatch, data)
    with pytest.raises(
        BenchError, match=r"/data_batch_1 is damaged .*: it asks for \w+\.\w+, which images do not need"
    ):
        find(official)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["numpy\nload", "numpy\nfrombuffer", "numpy.core.multiarray\nscalar", "copyreg\n_reconstructor"]
)
def test_of_numpy_only_arrays_are_allowed(official, monkeypatch, name):
    rewrite(official, monkeypatch, b"c" + name.encode() + b"\n.")
    with pytest.raises(BenchError, match=r"it asks for [\w.]+, which images do not need"):
        find(official)


ROWS = PIXELS[:10].reshape(10, -1)


@pytest.mark.parametrize(
    "content",
    [
        {b"data": ROWS.astype(np.float32), b"labels": list(range(10))},
        {b"data": ROWS, b"labels": list(range(9))},
        {b"data": ROWS[:, :-1], b"labels": list(range(10))},
        {b"data": ROWS, b"labels": list(range(1, 11))},
        {b"data": ROWS, b"labels": list(range(-1, 9))},
        {b"data": ROWS.tolist(), b"labels": list(range(10))},
        {b"data": ROWS[:0], b"labels": []},
        {b"data": ROWS, b"labels": "labels"},
        {b"data": ROWS},
        {},
        [],
        None,
    ],
    ids=range(12),
)
def test_a_batch_of_anything_else_is_one_sentence(official, monkeypatch, content):
    rewrite(official, monkeypatch, pickle.dumps(content))
    with pytest.raises(BenchError, match=r"/data_batch_1 is damaged .*: it (holds no images|cannot be parsed)"):
        find(official)


# --- images by index --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"validation": 7},
        {"validation": 7, "split_seed": 3, "resize": 16},
        {"validation": "40-45,3"},
        {"validation": "40-45", "subset": {"train": "0-19,30", "test": "2-5"}},
        {"validation": 4, "subset": {"train": "0-19,30"}, "resize": 8},
    ],
    ids=str,
)
def test_both_layouts_are_the_same_images(official, images, settings):
    one, other = splits(official, **settings), splits(images, **settings)
    assert len(one.train) > 10
    assert same(one, other)


def test_the_images_asked_for_suffice(official, tmp_path):
    settings = {"validation": "40-45", "subset": {"train": "0-19", "test": "2-5"}}
    asked = [*range(20), *range(40, 46), *range(TRAIN + 2, TRAIN + 6)]
    write_images(tmp_path / "some" / "cifar10", CIFAR10, PIXELS, LABELS, TRAIN, asked)
    assert same(splits(official, **settings), splits(tmp_path / "some", **settings))
    found = find(tmp_path / "some")
    assert np.flatnonzero(found.train.labels != ABSENT).tolist() == asked[:26]
    assert (len(found.train.labels), len(found.test.labels)) == (TRAIN, TEST)
    with pytest.raises(
        BenchError, match=r"^24 of the training images of cifar10 .* .26 have one.; the first is index 20$"
    ):
        splits(tmp_path / "some", validation=5)


def test_without_a_test_folder_the_test_images_are_absent(images):
    (images / "cifar10" / "test").rename(images / "elsewhere")
    with pytest.raises(BenchError, match=r"^12 of the test images of cifar10 .* .0 have one"):
        splits(images, validation=5)


def test_cifar100_by_index(tmp_path):
    labels = np.random.default_rng(1).permutation(np.arange(TRAIN + TEST) + 38)
    write_images(tmp_path / "cifar100", CIFAR100, PIXELS, labels, TRAIN)
    parts = splits(tmp_path, small(cifar100, CIFAR100), validation="0-9")
    assert parts.validation.labels.tolist() == labels[:10].tolist()
    assert np.array_equal(parts.test.pixels, PIXELS[TRAIN:])


def place(folder, name, at="train/cat", content=None):
    path = folder / "cifar10" / at / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(path)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "00007.jpg",
            "is a JPEG file: lossy copies are not the images of cifar10; use PNG files, or the ",
        ),
        ("7.JPEG", "is a JPEG file: lossy"),
        ("cat.png", "is not named by the image's official index, such as 00042.png"),
        ("-3.png", "is not named by"),
        ("3 (1).png", "is not named by"),
        ("٣.png", "is not named by"),
        ("1e1.png", "is not named by"),
        ("00050.png", ": index 50 is beyond the 50 images of this part of cifar10"),
        ("9" * 200 + ".png", "is beyond the 50 images"),
        ("00007.bmp", "is not a PNG file"),
    ],
)
def test_a_file_that_is_no_image_by_index_is_named(tmp_path, name, sentence):
    path = place(tmp_path, name, content=b"")
    with pytest.raises(BenchError) as caught:
        find(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("other", ["train/dog/00003.png", "train/cat/3.png"])
def test_an_index_twice_is_named(tmp_path, other):
    one = place(tmp_path, "00003.png")
    two = place(tmp_path, Path(other).name, Path(other).parent)
    with pytest.raises(BenchError, match="have the same index$") as caught:
        find(tmp_path)
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_the_same_index_in_both_parts_is_two_images(tmp_path):
    place(tmp_path, "00003.png")
    place(tmp_path, "00003.png", "test/dog")
    found = find(tmp_path)
    assert (found.train.labels[3], found.test.labels[3]) == (3, 5)


def test_a_folder_that_is_no_class_is_named(tmp_path):
    place(tmp_path, "00003.png")
    place(tmp_path, "00004.png", "train/cats")
    with pytest.raises(BenchError, match=r"/train/cats is no class of cifar10; did you mean 'cat'\?$"):
        find(tmp_path)


def test_hidden_files_and_files_beside_the_classes_are_no_images(images):
    place(images, ".DS_Store", content=b"?")
    place(images, ".00003.jpg")
    place(images, "list.txt", "train", b"?")
    (images / "cifar10" / "train" / ".thumbnails").mkdir()
    found = find(images)
    assert (found.train.labels != ABSENT).all()
    place(images, "1.png", "extra/cat", b"?")
    assert found.unread() == [f"{images}/cifar10/{name}" for name in ("extra/cat/1.png", "train/list.txt")]


def test_a_broken_image_is_named(images):
    path = next((images / "cifar10" / "train").rglob("00011.png"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BenchError, match=r"00011\.png cannot be read"):
        splits(images, validation=5)


# --- where they lie ---------------------------------------------------------------------------------------------------


def test_every_place_of_the_images(images):
    reference = splits(images, validation=7)
    (images / "cifar10").rename(images / "cifar10-exact")
    assert same(splits(images, validation=7), reference)
    assert same(splits(images / "cifar10-exact", validation=7), reference)


def test_a_root_without_every_class_is_not_taken_for_cifar(images):
    root = images / "cifar10"
    (root / "train" / "deer").rename(root / "deer")
    with pytest.raises(NotFound):
        find(root)


def test_official_files_win(official, images):
    (images / "cifar10").rename(official / "cifar10")
    assert find(official).where == official / "cifar-10-batches-py"


def test_an_archive_asks_to_be_prepared(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"?")
    with pytest.raises(NotFound) as caught:
        find(tmp_path)
    assert str(caught.value) == f"{tmp_path}/cifar-10-python.tar.gz is not unpacked; run `bench data prepare cifar10`"


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(("dataset", "folder"), [(cifar10, "cifar-10-batches-py"), (cifar100, "cifar-100-python")])
def test_a_missing_dataset(tmp_path, dataset, folder, made):
    root = tmp_path if made else tmp_path / "nowhere"
    with pytest.raises(NotFound) as caught:
        find(root, dataset)
    sentence = str(caught.value)
    for place in (folder, dataset.name, f"{dataset.name}-exact"):
        assert f"{root}/{place}" in sentence
    assert f"Run `bench data prepare {dataset.name} --data DIR`" in sentence
    assert "Licence: none stated by the authors" in sentence


def test_a_root_that_cannot_be_looked_into(tmp_path):
    with pytest.raises(BenchError, match=r"^the files of cifar10 below .* cannot be read: .*too long"):
        find(tmp_path / ("x" * 300))


def test_without_a_root():
    with pytest.raises(NotFound, match="set --data or BENCH_DATA"):
        find(None)


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(official, tmp_path, monkeypatch):
    """A root that holds but the archive of the official files."""
    root = tmp_path / "archive"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(official / "cifar-10-batches-py", "cifar-10-batches-py")
    path = root / "cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


@pytest.mark.usefixtures("offline")
def test_an_archive_put_there_by_hand_needs_no_network(archive, official):
    SMALL.download(archive.parent)
    assert same(splits(archive.parent, validation=7), splits(official, validation=7))
    assert len(torchvision.datasets.CIFAR10(archive.parent)) == TRAIN
    archive.unlink()
    SMALL.download(archive.parent)  # nothing is left to do


@pytest.mark.usefixtures("offline")
def test_a_damaged_file_is_mended(archive, official):
    SMALL.download(archive.parent)
    (archive.parent / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"half")
    (archive.parent / "cifar-10-batches-py" / "test_batch").unlink()
    SMALL.download(archive.parent)
    assert same(splits(archive.parent, validation=7), splits(official, validation=7))


@pytest.mark.usefixtures("offline")
def test_without_network_the_address_and_the_place_are_named(archive):
    archive.write_bytes(archive.read_bytes()[:-9])  # an interrupted download
    with pytest.raises(BenchError) as caught:
        SMALL.download(archive.parent)
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in str(caught.value)
    assert f"put it at {archive}," in str(caught.value)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    with pytest.raises(NotFound, match="is not unpacked"):
        find(archive.parent)


# --- real images ------------------------------------------------------------------------------------------------------

SETTINGS = {"validation": "10000-11016", "subset": {"train": "0-3999", "test": "0-511"}}


@pytest.fixture(scope="session")
def real_splits(real):
    return splits(real, cifar10, **SETTINGS)


def decoded(real, part, indices):
    """Return the images as Pillow decodes them, with the folders that they lie in."""
    paths = {int(path.stem): path for path in (real / "cifar10-exact" / part).rglob("*.png")}
    pixels = np.stack([np.array(Image.open(paths[index])) for index in indices]).transpose(0, 3, 1, 2)
    return pixels, [paths[index].parent.name for index in indices]


@pytest.mark.parametrize(
    ("part", "folder", "indices"),
    [
        ("train", "train", range(4000)),
        ("validation", "train", range(10000, 11017)),
        ("test", "test", range(512)),
    ],
)
def test_real_images_are_as_pillow_decodes_them(real, real_splits, part, folder, indices):
    ours = getattr(real_splits, part)
    pixels, classes = decoded(real, folder, indices)
    assert ours.pixels.shape == (len(indices), 3, 32, 32)
    assert np.array_equal(ours.pixels.numpy(), pixels)
    assert [CIFAR10_CLASSES[label] for label in ours.labels] == classes


def test_real_images_averaged(real, real_splits):
    averaged = splits(real, cifar10, **SETTINGS, resize=16)
    exact = torch.nn.functional.avg_pool2d(real_splits.train.pixels.double(), 2)
    assert averaged.train.pixels.shape == (4000, 3, 16, 16)
    assert torch.equal(averaged.train.pixels, torch.floor(exact + 0.5).to(torch.uint8))
    assert torch.equal(averaged.test.labels, real_splits.test.labels)


def test_real_images_in_the_official_layout(real, real_splits, tmp_path, monkeypatch):
    pixels, labels = np.zeros((11_500 + 512, 3, 32, 32), np.uint8), np.zeros(11_500 + 512, np.int64)
    for places, part in (
        (slice(0, 4000), real_splits.train),
        (slice(10000, 11017), real_splits.validation),
        (slice(11_500, 12_012), real_splits.test),
    ):
        pixels[places], labels[places] = part.pixels, part.labels
    write_official(tmp_path, monkeypatch, CIFAR10, pixels, labels, 11_500, 5)
    assert same(splits(tmp_path, small(cifar10, CIFAR10, 11_500, 512), **SETTINGS), real_splits)


def test_real_images_of_cifar100(real):
    if not (real / "cifar100-exact").is_dir():
        pytest.skip("BENCH_DATA holds no cifar100-exact")
    parts = splits(real, cifar100, validation=100, subset={"train": "0-1116", "test": "0-915"})
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (1017, 100, 916)
    # the official test labels begin so: mountain, forest, seal, mushroom, sea, tulip, camel, butterfly, cloud, apple
    assert parts.test.labels[:10].tolist() == [49, 33, 72, 51, 71, 92, 15, 14, 23, 0]
