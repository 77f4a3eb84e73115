import numpy as np
import pytest
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, dataset_of
from bench.data.folder import images_in
from bench.errors import BenchError, NotFound

WNIDS = [f"n{98765432 - 7 * rank:08}" for rank in range(200)]  # falling, so that sorting would show


def tiny(**settings):
    return dataset_of(DatasetSettings.model_validate({"name": "tiny_imagenet", "validation": 2, **settings}))


@pytest.fixture
def root(tmp_path, draw):
    """The official layout with the images 2 and 10 of class 0, 0, 10 and 499 of class 3, and three test images."""
    folder = tmp_path / "tiny-imagenet-200"
    for rank, numbers in ((0, (2, 10)), (3, (0, 10, 499))):
        for number in numbers:
            draw(folder / "train" / WNIDS[rank] / "images" / f"{WNIDS[rank]}_{number}.JPEG", size=(64, 64))
    for number in (0, 2, 10):
        draw(folder / "val" / "images" / f"val_{number}.JPEG", size=(64, 64))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    lines = [f"val_{number}.JPEG\t{WNIDS[number + 1]}\t0\t32\t44\t62\n" for number in (0, 2, 10)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_images_have_their_official_indices(root):
    found = tiny().locate(root)
    assert np.flatnonzero(found.train.labels != ABSENT).tolist() == [2, 10, 1500, 1510, 1999]
    assert found.train.labels[[2, 10, 1500, 1510, 1999]].tolist() == [0, 0, 3, 3, 3]
    assert (len(found.train.labels), len(found.test.labels)) == (100_000, 10_000)
    for index, name in (
        (2, f"{WNIDS[0]}_2"),
        (10, f"{WNIDS[0]}_10"),
        (1999, f"{WNIDS[3]}_499"),
        (1500, f"{WNIDS[3]}_0"),
    ):
        path = root / "tiny-imagenet-200" / "train" / name.split("_")[0] / "images" / f"{name}.JPEG"
        with Image.open(path) as image:
            assert np.array_equal(found.train.reader.load(np.array([index]))[0], np.asarray(image).transpose(2, 0, 1))


def test_test_labels_come_from_the_annotations(root):
    test = tiny().locate(root).test
    assert {index: test.labels[index] for index in np.flatnonzero(test.labels != ABSENT)} == {0: 1, 2: 3, 10: 11}


def test_a_part_needs_a_subset_or_the_digest(root):
    with pytest.raises(BenchError, match="99995 of the training images of tiny_imagenet have no file"):
        tiny().splits(root)
    splits = tiny(subset={"train": "2,10,1500,1510", "test": "0,10"}).splits(root)
    assert (len(splits.train), splits.test.labels.tolist()) == (2, [1, 11])
    digest = tiny().locate(root).digest()
    found = tiny(digest=digest).locate(root)
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 0, 3, 3, 3], [1, 3, 11])
    apart = tiny().locate(root)
    assert np.array_equal(
        found.train.reader.load(np.arange(5)), apart.train.reader.load(np.array([2, 10, 1500, 1510, 1999]))
    )
    assert len(tiny(digest=digest).splits(root).train) == 3


def test_the_root_may_be_the_folder_itself(root):
    assert tiny().locate(root / "tiny-imagenet-200").digest() == tiny().locate(root).digest()


def test_the_digest_sees_another_order_of_the_classes(root):
    digest = tiny().locate(root).digest()
    path = root / "tiny-imagenet-200" / "wnids.txt"
    path.write_text("".join(f"{wnid}\n" for wnid in WNIDS[::-1]))
    assert tiny().locate(root).digest() != digest


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


ANNOTATIONS, CLASSES, IMAGES = "val/val_annotations.txt", "wnids.txt", f"train/{WNIDS[3]}/images/{WNIDS[3]}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (write(CLASSES, "n1\nn2\n"), "wnids.txt must name 200 classes, one a line"),
        (write(CLASSES, "n1\n" * 200), "wnids.txt must name 200 classes"),
        (write(CLASSES, "\u00e9"), "wnids.txt cannot be read"),
        (rename(ANNOTATIONS, "val/annotations.txt"), "val_annotations.txt cannot be read: No such file"),
        (write(ANNOTATIONS, "val_0.JPEG\tn1\t0\n"), "names a class for val_0.JPEG that is not in wnids.txt: 'n1'"),
        (write(ANNOTATIONS, f"val_0.JPEG\t{WNIDS[0]}\t0\n"), "does not name the class of .*val_10.JPEG"),
        (rename("val/images", "val/pictures"), "val/images cannot be read"),
        (rename("train", "training"), "tiny-imagenet-200/train holds no images"),
        (rename(f"{IMAGES}_499.JPEG", f"{IMAGES}_500.JPEG"), "_500.JPEG is no file of the official archive: not n"),
        (rename(f"{IMAGES}_0.JPEG", f"{IMAGES}_01.JPEG"), "_01.JPEG is no file of the official archive"),
        (rename(f"{IMAGES}_0.JPEG", f"train/{WNIDS[3]}/images/{WNIDS[0]}_0.JPEG"), "is no file of the official"),
    ],
    ids=["few classes", "equal classes", "no ASCII", "no annotations", "unknown class", "no annotation",
         "no val images", "no train", "beyond", "odd number", "of another class"],
)  # fmt: skip
def test_a_wrong_folder_is_one_sentence(root, change, said):
    change(root / "tiny-imagenet-200")
    with pytest.raises(BenchError, match=said):
        tiny().locate(root)


def test_what_lies_beside_the_images_is_named(root):
    folder = root / "tiny-imagenet-200"
    (folder / "words.txt").touch()
    (folder / "train" / WNIDS[0] / f"{WNIDS[0]}_boxes.txt").touch()
    assert tiny().locate(root).unread() == []
    for name in (f"train/{WNIDS[0]}/images/{WNIDS[0]}_3.npy", f"train/{WNIDS[3]}/{WNIDS[3]}_1.JPEG"):
        (folder / name).touch()
    names = f"{WNIDS[3]}/{WNIDS[3]}_1.JPEG", f"{WNIDS[0]}/images/{WNIDS[0]}_3.npy"
    assert tiny().locate(root).unread() == [f"{folder}/train/{name}" for name in names]


@pytest.mark.parametrize("images", ["images", "."])
def test_validation_images_in_class_folders(root, images):
    official = tiny().locate(root).test
    folder = root / "tiny-imagenet-200" / "val"
    for number in (0, 2, 10):
        place = folder / WNIDS[number + 1] / images
        place.mkdir(parents=True)
        (folder / "images" / f"val_{number}.JPEG").rename(place / f"val_{number}.JPEG")
    (folder / "val_annotations.txt").unlink()
    assert np.array_equal(tiny().locate(root).test.labels, official.labels)
    assert tiny().locate(root).unread() == []


def test_nothing_there(tmp_path):
    with pytest.raises(
        NotFound, match=r"'tiny_imagenet' not found: looked for \S+/tiny-imagenet-200/wnids.txt or \S+/wnids"
    ):
        tiny().locate(tmp_path)


def test_real_images(real):
    root = real("tiny-imagenet-200")
    found = tiny().locate(root)
    there = np.flatnonzero(found.train.labels != ABSENT)
    assert len(there) == 20_000
    assert np.array_equal(there % 500, np.tile(np.arange(100), 200))
    assert np.array_equal(found.train.labels[there], there // 500)
    assert np.array_equal(np.bincount(found.test.labels), np.full(200, 50))
    folder = root / "tiny-imagenet-200"
    wnids = (folder / "wnids.txt").read_text().split()
    lines = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    assert [wnids[label] for label in found.test.labels] == [wnid for _, wnid, *_ in sorted(
        lines, key=lambda line: int(line[0][4:-5])
    )]  # fmt: skip
    pixels = found.train.reader.load(there[:200])
    for index in range(0, 200, 20):
        path = folder / "train" / wnids[index // 100] / "images" / f"{wnids[index // 100]}_{index % 100}.JPEG"
        with Image.open(path) as image:
            assert np.array_equal(pixels[index], np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert len(images_in(folder / "val" / "images")) == 10_000
