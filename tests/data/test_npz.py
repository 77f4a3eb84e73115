import hashlib
import zipfile

import numpy as np
import pytest

from bench.errors import BenchError, NotFound

RANDOM = np.random.default_rng(0)
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 4, 5, 3), np.uint8) for count in (12, 4))
LABELS = np.arange(12) % 2


@pytest.fixture
def save(tmp_path, own):
    """Write the file, some arrays replaced or (with None) left out, and return the files found."""

    def save(names=("train_images", "train_labels", "test_images", "test_labels"), shape=(3, 4, 5), **changes):
        arrays = dict(zip(names, (TRAIN, LABELS, TEST, LABELS[:4]), strict=True)) | changes
        np.savez(tmp_path / "mine.npz", **{key: value for key, value in arrays.items() if value is not None})
        return own("npz", path="mine.npz", shape=shape).locate(tmp_path)

    return save


@pytest.mark.parametrize(
    "names",
    [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")],
)
def test_the_arrays_come_as_they_are(save, names):
    found = save(names)
    assert np.array_equal(found.train.reader.load(np.array([3, 0])), TRAIN[[3, 0]].transpose(0, 3, 1, 2))
    assert np.array_equal(found.test.reader.load(np.arange(4)), TEST.transpose(0, 3, 1, 2))
    assert found.train.labels.tolist() == LABELS.tolist()
    assert found.train.labels.dtype == np.int64


def test_grey_images_and_labels_in_a_column(save):
    found = save(
        shape=(1, 4, 5),
        train_images=TRAIN[..., 0],
        test_images=TEST[..., :1],
        train_labels=LABELS[:, None].astype("u1"),
    )
    assert np.array_equal(found.train.reader.load(np.arange(12))[:, 0], TRAIN[..., 0])
    assert np.array_equal(found.test.reader.load(np.arange(4))[:, 0], TEST[..., 0])
    assert found.train.labels.tolist() == LABELS.tolist()


def test_without_test_images(save):
    assert save(test_images=None, test_labels=None).test is None


def test_the_digest_is_the_files(save, tmp_path):
    assert save().digest() == hashlib.sha256((tmp_path / "mine.npz").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_images": TRAIN / 255}, "'train_images' holds float64, not uint8"),
        ({"train_images": TRAIN[:, :3]}, r"'train_images' has the shape \[12, 3, 5, 3\]; the suite states images of "
         "height 4, width 5 and 3 channels"),
        ({"test_images": TEST[..., 0]}, r"'test_images' has the shape \[4, 4, 5, 1\]"),
        ({"test_images": TEST[:0]}, r"'test_images' has the shape \[0, "),
        ({"train_images": TRAIN[0, 0, 0]}, r"'train_images' has the shape \[3\]"),
        ({"train_labels": LABELS[:11]}, r"'train_labels' holds int64 of shape \[11\], not one whole number for each"),
        ({"train_labels": LABELS / 1}, "'train_labels' holds float64 of shape"),
        ({"train_labels": np.stack([LABELS, LABELS], 1)}, r"'train_labels' holds int64 of shape \[12, 2\]"),
        ({"train_labels": LABELS + 1}, "'train_labels' has the label 2; the suite states 2 classes"),
        ({"train_labels": LABELS - 1}, "'train_labels' has the label -1;"),
        ({"train_labels": LABELS * 0}, "'train_labels' has no image of class 1; there are 2 classes"),
        ({"test_labels": LABELS[:4] * 0 + 1}, "'test_labels' has no image of class 0"),
        ({"train_labels": None}, "has no key 'train_labels'; it has train_images, test_images, test_labels"),
        ({"test_labels": None}, "has no key 'test_labels'"),
        ({"train_images": None}, "has no key 'train_images' or 'x_train'; it has train_labels"),
        ({"train_images": np.array([print] * 12)}, "'train_images' cannot be read: Object arrays"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_array_is_named(save, changes, said):
    with pytest.raises(BenchError, match=rf"mine.npz:? {said}"):
        save(**changes)


def test_a_damaged_file(save, own, tmp_path):
    save()
    path = tmp_path / "mine.npz"
    whole = path.read_bytes()
    for content, said in (
        (whole[: len(whole) // 2], "is no .npz file, or a damaged one"),
        (b"no zip at all", "is no .npz file, or a damaged one"),
        (b"", "is no .npz file, or a damaged one"),
        (whole.replace(TRAIN[5].tobytes(), TRAIN[6].tobytes()), "'train_images' cannot be read: Bad CRC-32"),
    ):
        path.write_bytes(content)
        with pytest.raises(BenchError, match=rf"mine.npz:? {said}"):
            own("npz", path="mine.npz", shape=(3, 4, 5)).locate(tmp_path)
    np.save(tmp_path / "single.npy", TRAIN)
    with pytest.raises(BenchError, match="is no .npz file: it holds a single array"):
        own("npz", path="single.npy", shape=(3, 4, 5)).locate(tmp_path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train_images.npy", b"\x93NUMPY and then nothing")
    with pytest.raises(BenchError, match="'train_images' cannot be read"):
        own("npz", path="mine.npz", shape=(3, 4, 5)).locate(tmp_path)


def test_nothing_there(own, tmp_path):
    with pytest.raises(NotFound, match=rf"'npz' not found: looked for {tmp_path}/mine.npz. Put your file there"):
        own("npz", path="mine.npz").locate(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(BenchError, match="folder is no .npz file, or a damaged one: .*Is a directory"):
        own("npz", path="folder").locate(tmp_path)


def test_arrays_that_are_not_read_are_named(tmp_path, own):
    images, labels = np.zeros((4, 6, 6), np.uint8), np.arange(4) % 2
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "a.npz", **arrays, val_images=images, val_labels=labels, x_train=images, extra=labels)
    found = own("npz", path="a.npz", shape=(1, 6, 6)).locate(tmp_path)
    assert found.unread() == [f"{tmp_path}/a.npz/x_train", f"{tmp_path}/a.npz/extra"]
