"""Parquet files as dataset hubs publish them: the same images as in the other layouts, and one sentence if not."""

import hashlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.data import status
from bench.data.dataset import ABSENT, ROWS
from bench.data.datasets import cifar, restricted_imagenet, svhn, tiny_imagenet
from bench.data.parquet import read_rows, shard_folder
from bench.errors import BenchError, NotFound

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RANDOM = np.random.default_rng(0)
TRAIN, TEST = 50, 12
PIXELS = RANDOM.integers(0, 256, (TRAIN + TEST, 3, 32, 32), np.uint8)
LABELS = RANDOM.permutation(np.arange(TRAIN + TEST) % 10)
CLASSES = cifar.CIFAR10_CLASSES


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, format=kind)
    return content.getvalue()


def write(path, images, labels, classes=None, names=None, image="img", rows=7):
    """Write a shard as the package `datasets` does; `labels` and `classes` by column, `images` their encoded bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": content, "path": name} for content, name in zip(images, names or [None] * 999, strict=False)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(cells, kind)} | {name: pa.array(column) for name, column in labels.items()})
    features = {name: {"names": list(known), "_type": "ClassLabel"} for name, known in (classes or {}).items()}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)


def write_cifar(folder, order=range(TRAIN), shards=2, **changes):
    """Write a small CIFAR-10 as uoft-cs/cifar10 lays it out, its training images in another order."""
    images = [encoded(image) for image in PIXELS]
    for number, part in enumerate(np.array_split(np.array(order), shards)):
        path = folder / f"train-{number:05}-of-{shards:05}.parquet"
        write(path, [images[row] for row in part], {"label": LABELS[part]}, {"label": CLASSES}, **changes)
    write(folder / "test-00000-of-00001.parquet", images[TRAIN:], {"label": LABELS[TRAIN:]}, {"label": CLASSES})


def sums(parts):
    """Return the MD5 sums of the binary version of some of the images."""
    rows = [b"".join(bytes([LABELS[row]]) + PIXELS[row].tobytes() for row in part) for part in parts]
    return tuple(hashlib.md5(content).hexdigest() for content in rows)


@pytest.fixture
def small():
    """CIFAR-10 with 50 and 12 images, in two official files of training images."""
    kind = replace(
        cifar.CIFAR10,
        train_images=TRAIN,
        test_images=TEST,
        train_sums=sums(np.split(np.arange(TRAIN), 2)),
        test_sums=sums([range(TRAIN, TRAIN + TEST)]),
    )
    dataset = replace(cifar.cifar10, find=kind.find, train_images=TRAIN, test_images=TEST)
    return dataset.configured(DatasetSettings(name="cifar10", validation=5))


OFFICIAL_FILES_SWAPPED = [*range(25, 50), *range(25)]


def test_the_pixels_tell_the_official_order(tmp_path, small):
    write_cifar(tmp_path / "cifar10" / "plain_text", OFFICIAL_FILES_SWAPPED, shards=3)
    located = small.locate(tmp_path)
    assert located.identity == "official indices, by MD5 sums of labels and pixels"
    assert np.array_equal(located.train.reader.load(np.arange(TRAIN)), PIXELS[:TRAIN])
    assert np.array_equal(located.train.labels, LABELS[:TRAIN])
    assert np.array_equal(located.test.reader.load(np.array([3, 0])), PIXELS[TRAIN:][[3, 0]])


def test_runs_of_the_same_images_have_the_same_identity(tmp_path, small):
    write_cifar(tmp_path / "hub" / "cifar10" / "plain_text", OFFICIAL_FILES_SWAPPED)
    for row, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        part, index = ("train", row) if row < TRAIN else ("test", row - TRAIN)
        path = tmp_path / "images" / "cifar10" / part / CLASSES[label] / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    write_cifar(tmp_path / "shuffled" / "cifar10", RANDOM.permutation(TRAIN))
    digests = [small.splits(tmp_path / root).digests() for root in ("hub", "images", "shuffled")]
    assert digests[0] == digests[1]
    assert digests[0]["training"] != digests[2]["training"]
    assert digests[0]["test"] == digests[2]["test"]


def test_another_order_is_said_plainly(tmp_path, small, caplog):
    order = RANDOM.permutation(TRAIN)
    write_cifar(tmp_path / "cifar10", order)
    facts = status.check(small, tmp_path)
    assert (facts["layout"], facts["identity"], facts["problems"]) == ("parquet files", ROWS, [])
    assert facts["where"] == str(tmp_path / "cifar10")
    located = small.locate(tmp_path)
    assert np.array_equal(located.train.reader.load(np.arange(TRAIN)), PIXELS[order])
    assert not caplog.records
    small.splits(tmp_path)
    assert ROWS in caplog.text


def test_labels_follow_the_names_of_the_classes(tmp_path):
    names = CLASSES[::-1]
    write(tmp_path / "train-00000-of-00001.parquet", [b""] * 3, {"label": [0, 1, 9]}, {"label": names})
    rows = read_rows(tmp_path, ("train",), {"label": CLASSES}, (3, 32, 32))
    assert rows.labels["label"].tolist() == [9, 8, 0]


def test_cifar100_has_two_columns_of_labels(tmp_path):
    fine, coarse = RANDOM.integers(0, 100, TRAIN + TEST), RANDOM.integers(0, 20, TRAIN + TEST)
    content = [
        b"".join(bytes([coarse[row], fine[row]]) + PIXELS[row].tobytes() for row in part)
        for part in (range(TRAIN), range(TRAIN, TRAIN + TEST))
    ]
    train_sum, test_sum = (hashlib.md5(part).hexdigest() for part in content)
    for name, part in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        path = tmp_path / "cifar100" / "cifar100" / f"{name}-00000-of-00001.parquet"
        labels = {"fine_label": fine[part], "coarse_label": coarse[part]}
        write(path, [encoded(image) for image in PIXELS[part]], labels)
    kind = replace(cifar.CIFAR100, train_images=TRAIN, test_images=TEST, train_sums=(train_sum,), test_sums=(test_sum,))
    located = kind.find(tmp_path, DatasetSettings(name="cifar100"))
    assert located.identity.startswith("official indices")
    assert np.array_equal(located.train.labels, fine[:TRAIN])


def test_the_cache_of_the_hub(tmp_path, small):
    cached = tmp_path / "datasets--uoft-cs--cifar10"
    write_cifar(cached / "snapshots" / "abc" / "plain_text")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "000").mkdir()
    assert small.locate(tmp_path).where == cached / "snapshots" / "abc" / "plain_text"
    assert shard_folder(tmp_path, ("svhn",), ()) is None


def test_files_of_other_layouts_come_first(tmp_path, small):
    write_cifar(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "train" / "cat").mkdir(parents=True)
    assert small.locate(tmp_path).layout == "images in class folders"


def rewrite(name, **changes):
    """Write a shard of the small dataset again, with changes."""

    def change(folder):
        whole = {"images": [encoded(image) for image in PIXELS[:25]], "labels": {"label": LABELS[:25]}}
        write(folder / name, **whole | {"classes": {"label": CLASSES}} | changes)

    return change


FIRST, SECOND = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rewrite(FIRST, image="picture"), f"{FIRST} has other columns: picture .struct.*; needed are 'image' or 'img'"),
        (rewrite(FIRST, labels={"digit": LABELS[:25]}), r"other columns: img .*, digit \(int64\); needed .* 'label'"),
        (rewrite(FIRST, labels={"label": ["cat"] * 25}), r"other columns: .* label \(string\)"),
        (rewrite(FIRST, labels={"label": [10] * 25}), "'label' has the label 10 in row 0, not one of 0 to 9"),
        (rewrite(FIRST, labels={"label": [-1] * 25}), "'label' has the label -1 in row 0"),
        (rewrite(FIRST, labels={"label": [None, *LABELS[:24]]}), "the column 'label' lacks 1 labels"),
        (
            rewrite(FIRST, images=[b"text"] * 25),
            f"image in row 0 of .*/{FIRST} cannot be read: cannot identify the PNG",
        ),
        (rewrite(FIRST, images=[encoded(PIXELS[0])[:99]] * 25), f"image in row 0 of .*/{FIRST} cannot be read"),
        (rewrite(FIRST, images=[None] * 25), f"image in row 0 of .*/{FIRST} has no bytes"),
        (rewrite(FIRST, images=[encoded(PIXELS[0], "JPEG")] * 25), "cannot identify the PNG image"),
        (rewrite(FIRST, images=[encoded(PIXELS[0, :, :9])] * 25), "has 32x9 pixels .*, not 32x32"),
        (rewrite(FIRST, images=[encoded(PIXELS[0])] * 24, labels={"label": LABELS[:24]}), "hold 49 images, not 50"),
        (rewrite(SECOND, classes={"label": "abcdefghij"}), f"{SECOND} has other columns or classes than .*{FIRST}"),
        (lambda folder: (folder / SECOND).unlink(), f"lacks 1 of the 2 shards of 'train': {SECOND} is missing"),
        (rewrite("train-00000-of-00003.parquet"), "mixes shards of several versions of 'train'"),
        (rewrite("train-00000-of-00002-0a1b.parquet"), "mixes shards of several versions of 'train'"),
        (lambda folder: (folder / "test-00000-of-00001.parquet").unlink(), "has no shards of 'test'"),
        (lambda folder: (folder / FIRST).write_bytes(b"PAR1"), f"{FIRST} cannot be read as a parquet file"),
        (lambda folder: (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-30]), "as a parquet file"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, small, change, sentence):
    write_cifar(tmp_path / "cifar10")
    change(tmp_path / "cifar10")
    with pytest.raises(BenchError, match=sentence) as caught:
        small.locate(tmp_path)
    assert not isinstance(caught.value, NotFound)
    assert status.check(small, tmp_path)["problems"] == [str(caught.value)]


def test_damaged_bytes_are_one_sentence_or_nothing_else(tmp_path, small):
    write_cifar(tmp_path / "cifar10")
    whole = (tmp_path / "cifar10" / FIRST).read_bytes()
    random = np.random.default_rng(1)
    sentences = []
    for _ in range(40):
        content = bytearray(whole)
        content[random.integers(len(whole))] ^= int(random.integers(1, 256))
        (tmp_path / "cifar10" / FIRST).write_bytes(content)
        try:
            small.locate(tmp_path)
        except BenchError as error:
            sentences.append(str(error))
    assert 0 < len(sentences) < 40


def test_without_pyarrow_the_sentence_says_how_to_install_it(tmp_path, small, monkeypatch):
    write_cifar(tmp_path / "cifar10")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BenchError, match=r"which is not installed: pip install 'robust-overfitting-bench\[parquet\]'"):
        small.locate(tmp_path)


def test_svhn(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn, "IMAGES", {"train": TRAIN, "test": TEST})
    for name, part in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        path = tmp_path / "svhn" / "cropped_digits" / f"{name}-00000-of-00001.parquet"
        write(path, [encoded(image) for image in PIXELS[part]], {"label": LABELS[part]}, image="image")
    write(tmp_path / "svhn" / "cropped_digits" / "extra-00000-of-00002.parquet", [], {"label": []})
    located = svhn.find(tmp_path, DatasetSettings(name="svhn"))
    assert (located.layout, located.identity) == ("parquet files", ROWS)
    assert np.array_equal(located.train.labels, LABELS[:TRAIN])
    assert np.array_equal(located.test.reader.load(np.arange(TEST)), PIXELS[TRAIN:])


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Write a Tiny ImageNet of 3 training images and 1 validation image a class, its classes sorted, and locate it."""
    monkeypatch.setattr(tiny_imagenet, "IMAGES", {"train": 600, "val": 200})
    monkeypatch.setattr(tiny_imagenet, "OF_A_CLASS", 3)
    images = [encoded(np.full((3, 64, 64), value, np.uint8)) for value in range(200)]
    classes = sorted(tiny_imagenet.SYNSETS)

    def tiny(train, val, names=None, classes=classes):
        for part, labels in (("train", train), ("valid", val)):
            path = tmp_path / "tiny-imagenet" / "data" / f"{part}-00000-of-00001-1359597a978bc4fa.parquet"
            shown = [images[row % 200] for row in range(len(labels))]
            write(path, shown, {"label": labels}, {"label": classes}, (names or {}).get(part), "image", 100)
        return tiny_imagenet.locate(tmp_path, DatasetSettings(name="tiny_imagenet"))

    return tiny


def test_the_synsets_of_tiny_imagenet(real):
    lines = (real("tiny-imagenet-200") / "tiny-imagenet-200" / "wnids.txt").read_text().split()
    assert list(tiny_imagenet.SYNSETS) == lines


def test_names_of_images_tell_the_official_indices_of_tiny_imagenet(tiny):
    first = sorted(tiny_imagenet.SYNSETS).index(tiny_imagenet.SYNSETS[1])
    names = {"train": [f"{tiny_imagenet.SYNSETS[1]}_{number}.JPEG" for number in (2, 0)], "valid": ["val_7.JPEG"]}
    located = tiny([first, first], [0], names)
    assert located.identity == "official indices, by the names of the images"
    assert {index: located.train.labels[index] for index in np.flatnonzero(located.train.labels != ABSENT)} == {
        3: 1,
        5: 1,
    }
    assert np.flatnonzero(located.test.labels != ABSENT).tolist() == [7]
    assert located.train.reader.load(np.array([3, 5]))[:, 0, 0, 0].tolist() == [1, 0]
    names["train"] = names["train"][:1] * 2
    with pytest.raises(BenchError, match="two images of 'train' have the same name"):
        tiny([first, first], [0], names)


def test_without_names_tiny_imagenet_must_be_whole(tiny):
    train = [*range(200)] * 3
    located = tiny(train, [*range(199, -1, -1)])
    assert (located.identity, len(located.digest())) == (ROWS, 64)
    assert located.train.labels.tolist() == np.repeat(np.arange(200), 3).tolist()
    first = sorted(tiny_imagenet.SYNSETS).index(tiny_imagenet.SYNSETS[0])
    assert located.train.reader.load(np.array([0, 1, 2]))[:, 0, 0, 0].tolist() == [first] * 3
    with pytest.raises(BenchError, match="'train' must hold 3 images of each class"):
        tiny([*train[:-1], 0], [*range(200)])
    with pytest.raises(BenchError, match="does not name the 200 classes by synsets, such as n02124075"):
        tiny(train, [*range(200)], classes=[f"class {number}" for number in range(200)])


DOG, FROG, OTHER = "n02085620", "n01641577", "n01440764"


@pytest.fixture
def imagenet(tmp_path):
    """Write rows of ImageNet's parquet files: of each part (synset, name), and return their images."""
    known = restricted_imagenet.all_synsets()
    images = [encoded(RANDOM.integers(0, 256, (3, 230, 240), np.uint8), "JPEG") for _ in range(6)]

    def imagenet(train, val):
        for part, rows in (("train", train), ("validation", val)):
            path = tmp_path / "imagenet-1k" / "data" / f"{part}-00000-of-00001.parquet"
            labels, names = [known.index(synset) for synset, _ in rows], [name for _, name in rows]
            write(path, images[: len(rows)], {"label": labels}, None, names, "image", 2)
        return images

    return imagenet


def test_imagenet_is_unpacked_into_the_official_folders(tmp_path, imagenet):
    dataset = restricted_imagenet.restricted_imagenet.configured(
        DatasetSettings(name="restricted_imagenet", validation=1)
    )
    images = imagenet(
        [
            (FROG, f"{FROG}_7_{FROG}.JPEG"),
            (OTHER, f"{OTHER}_1_{OTHER}.JPEG"),
            (DOG, f"{DOG}_5_{DOG}.JPEG"),
            (DOG, None),
        ],
        [(DOG, f"ILSVRC2012_val_00000040_{DOG}.JPEG")],
    )
    with pytest.raises(NotFound, match="are not unpacked; run `bench data prepare restricted_imagenet`$"):
        dataset.locate(tmp_path)
    with pytest.raises(BenchError, match="val has 1 images of these synsets instead of 10,150"):
        status.fetch(dataset, tmp_path, lambda *_: None, print)
    files = {path.relative_to(tmp_path / "ILSVRC2012"): path for path in tmp_path.glob("ILSVRC2012/*/*/*")}
    expected = {
        f"train/{FROG}/{FROG}_7.JPEG": 0,
        f"train/{DOG}/{DOG}_5.JPEG": 2,
        f"train/{DOG}/train_0000003.JPEG": 3,
        f"val/{DOG}/ILSVRC2012_val_00000040.JPEG": 0,
    }
    assert {str(name): path.read_bytes() for name, path in files.items()} == {
        name: images[row] for name, row in expected.items()
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".unpack")]


def test_a_name_that_contradicts_the_label(tmp_path, imagenet):
    imagenet([(FROG, f"{DOG}_7_{FROG}.JPEG")], [(DOG, None)])
    with pytest.raises(BenchError, match=f"image in row 0 of .*: its name {DOG}_7_{FROG}.JPEG contradicts its label"):
        restricted_imagenet.unpack(tmp_path, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["imagenet-1k"]
