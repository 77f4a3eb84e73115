import shutil
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from bench.data.prepare import prepare
from bench.errors import BenchError, NotFound


def read(path, mode="RGB"):
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def test_labels_are_ranks_of_names_and_pixels_are_pillows(pets, own):
    found = own().locate(pets)
    for part, source in (("train", found.train), ("test", found.test)):
        expected = [(path, label) for label, name in enumerate(("cat", "dog"))
                    for path in sorted((pets / "pets" / part / name).iterdir())]  # fmt: skip
        assert source.labels.tolist() == [label for _, label in expected]
        pixels = source.reader.load(np.arange(len(expected)))
        assert np.array_equal(pixels, np.stack([read(path).transpose(2, 0, 1) for path, _ in expected]))
    assert found.where == pets / "pets"


def test_splits(pets, own):
    splits = own().splits(pets)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 2, 4)
    assert splits.train.pixels.shape == (8, 3, 6, 6)


def test_val_is_the_test_set_where_there_is_no_other(pets, own, draw):
    (pets / "pets" / "test").rename(pets / "pets" / "val")
    assert own().locate(pets).test.reader.paths[0].parent.parent.name == "val"
    for name in ("cat", "dog"):
        draw(pets / "pets" / "test" / name / "new.png")
    found = own().locate(pets)
    assert [path.parent.parent.name for path in found.test.reader.paths] == ["test", "test"]


def test_test_images_can_be_taken_from_the_training_images(pets, own):
    shutil.rmtree(pets / "pets" / "test")
    splits = own(test=3).splits(pets)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (5, 2, 3)
    with pytest.raises(BenchError, match="has no test images"):
        own().splits(pets)


def test_grey_images_serve_as_colour_and_colour_as_grey(tmp_path, own, draw):
    for name in ("a", "b"):
        grey = draw(tmp_path / "pets" / "train" / name / "1.png", mode="L")
    assert np.array_equal(own().locate(tmp_path).train.reader.load(np.array([1]))[0], np.repeat(grey, 3, axis=0))
    assert np.array_equal(own(shape=(1, 6, 6)).locate(tmp_path).train.reader.load(np.array([1]))[0], grey)


def test_a_link_may_lead_out_of_the_root(pets, own, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "linked").symlink_to(pets / "pets", target_is_directory=True)
    assert len(own(path="linked").locate(elsewhere).train.labels) == 10


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (lambda pets: (pets / "train" / "cow").mkdir(), {"classes": 3}, r"train alone \(cow\) or in test .*\(none\)"),
        (lambda pets: (pets / "test" / "cow").mkdir(), {}, r"in train alone \(none\) or in test alone \(cow\)"),
        (lambda pets: (pets / "test" / "cat").rename(pets / "test" / "Cat"), {}, r"\(cat\) or in test alone \(Cat\)"),
        (lambda pets: None, {"classes": 3}, "train has 2 class folders; the suite states 3 classes"),
        (lambda pets: (pets / "train").rename(pets / "training"), {}, "pets has no folder 'train'"),
        (lambda pets: [path.unlink() for path in (pets / "train" / "dog").iterdir()], {}, "train/dog holds no images"),
        (lambda pets: shutil.rmtree(pets) or pets.write_text("file"), {}, "pets has no folder 'train'"),
    ],
    ids=["class in train alone", "class in test alone", "other name", "count", "no train", "empty class", "a file"],
)  # fmt: skip
def test_a_wrong_folder_is_one_sentence(pets, own, change, settings, said):
    change(pets / "pets")
    with pytest.raises(BenchError, match=said):
        own(**settings).locate(pets)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda path, draw: draw(path, size=(7, 6)),
            r"train/dog/2.png has 7x6 pixels \(width x height\), not 6x6",
        ),
        (lambda path, draw: path.write_bytes(path.read_bytes()[:60]), r"train/dog/2.png cannot be read: "),
        (lambda path, draw: path.write_bytes(b""), r"train/dog/2.png cannot be read: "),
        (
            lambda path, draw: path.unlink() or path.symlink_to("nowhere"),
            r"2.png cannot be read: No such file",
        ),
    ],
    ids=["size", "cut", "empty", "link"],
)
def test_a_wrong_image_is_named(pets, own, draw, spoil, said):
    spoil(pets / "pets" / "train" / "dog" / "2.png", draw)
    with pytest.raises(BenchError, match=said):
        own().splits(pets)


def test_nothing_there(tmp_path, own):
    with pytest.raises(NotFound, match=rf"'image_folder' not found: looked for {tmp_path}/pets. Put your images there"):
        own().locate(tmp_path)
    with pytest.raises(NotFound, match="set --data"):
        own().locate(None)


def test_the_digest_is_of_the_images_alone(pets, own):
    digest = own().locate(pets).digest()
    (pets / "pets" / "README.txt").write_text("more")
    (pets / "pets" / "train" / "cat" / ".DS_Store").write_text("more")
    assert own().locate(pets).digest() == digest
    assert own(digest=digest).locate(pets)
    (pets / "pets" / "test" / "cat" / "1.png").unlink()
    with pytest.raises(BenchError, match="these files have the digest [0-9a-f]{64}, not the one"):
        own(digest=digest).locate(pets)


@pytest.mark.parametrize(
    ("folder", "classes", "train", "test"), [("cifar100-exact", 100, 1117, 916), ("svhn-exact", 10, 866, 217)]
)
def test_real_images(real, own, folder, classes, train, test):
    root = real(folder, "mine")
    splits = own(path="mine", shape=(3, 32, 32), classes=classes, validation=100).splits(root)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (train - 100, 100, test)
    assert set(splits.test.labels.tolist()) <= set(range(classes))
    assert len(splits.train.pixels.float().std(dim=(1, 2, 3)).unique()) > 500  # pictures, not blanks


def test_what_lies_beside_the_images_is_named(pets, own, draw):
    assert own().locate(pets).unread() == []
    (pets / "pets" / "train" / "cat" / ".DS_Store").touch()
    assert own().locate(pets).not_read() is None
    draw(pets / "pets" / "extra" / "cat" / "1.png")
    assert own().locate(pets).not_read() == f"1 file is not read: {pets}/pets/extra/cat/1.png"


@pytest.mark.parametrize("name", ["my pets", "Haustiere für alle", "_pets", "Grösse/日本 (1), a+b & c", ".pets"])
def test_the_path_may_have_any_printable_name(pets, own, name):
    for form in ("NFC", "NFD"):
        place = pets / form / normalize(form, name)
        shutil.copytree(pets / "pets", place)
        dataset = own(path=normalize(form, name))
        assert dataset.settings == own(path=name).settings
        assert dataset.locate(pets / form).where == place
        prepare(dataset, pets / form)
        assert dataset.splits(pets / form).digests() == own().splits(pets).digests()


@pytest.mark.parametrize("path", ["../pets", "a/../../pets", "/pets", "..", ".", "./", "a\nb", " pets", "", "a\0"])
def test_the_path_stays_below_the_root(own, path):
    with pytest.raises(ValidationError, match=r"below the data root|printable|at least 1 character"):
        own(path=path)
