"""SVHN from MATLAB files that the tests write."""

import hashlib
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.data.dataset import dataset_of
from bench.data.datasets.svhn import svhn
from bench.errors import BenchError, NotFound

TRAIN, TEST = 40, 12
SEED = np.random.default_rng(0)
PIXELS = SEED.integers(0, 256, (TRAIN + TEST, 3, 32, 32), np.uint8)
DIGITS = SEED.permutation(np.arange(TRAIN + TEST) % 10)
SMALL = replace(svhn, train_images=TRAIN, test_images=TEST)


def variables(pixels, digits):
    """Return what the official files hold: X is height x width x channels x n, and the digit 0 has the label 10."""
    labels = np.where(digits == 0, 10, digits).astype(np.uint8).reshape(-1, 1)
    return {"X": pixels.transpose(2, 3, 1, 0), "y": labels}


def write(folder, monkeypatch, part, content):
    """Write a file, and make it official."""
    path = folder / f"{part}_32x32.mat"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content, do_compression=True)
    url, name, _ = torchvision.datasets.SVHN.split_list[part]
    listed = {part: [url, name, hashlib.md5(path.read_bytes()).hexdigest()]}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", torchvision.datasets.SVHN.split_list | listed)
    return path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The folder of both official files."""
    write(tmp_path / "svhn", monkeypatch, "train", variables(PIXELS[:TRAIN], DIGITS[:TRAIN]))
    write(tmp_path / "svhn", monkeypatch, "test", variables(PIXELS[TRAIN:], DIGITS[TRAIN:]))
    return tmp_path / "svhn"


@pytest.fixture
def offline(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def splits(root, **settings):
    return SMALL.configured(DatasetSettings(name="svhn", **settings)).splits(root)


def find(root):
    return SMALL.configured(DatasetSettings(name="svhn", validation=5)).locate(root)


def test_it_is_what_it_states():
    assert (svhn.train_images, svhn.test_images, svhn.shape, svhn.classes) == (73_257, 26_032, (3, 32, 32), 10)
    assert svhn.augmentation == ()
    assert dataset_of(DatasetSettings(name="svhn")).title == svhn.title  # registered


def test_pixels_and_labels_are_those_written(files):
    found = find(files)
    assert np.array_equal(found.train.labels, DIGITS[:TRAIN])
    assert found.train.labels.dtype == np.int64
    assert len(found.train.reader) == TRAIN
    assert np.array_equal(found.train.reader.load(np.arange(TRAIN)), PIXELS[:TRAIN])
    assert np.array_equal(found.test.reader.load(np.array([4, 1])), PIXELS[TRAIN:][[4, 1]])
    assert np.array_equal(found.test.labels, DIGITS[TRAIN:])


def test_torchvision_reads_the_same(files):
    found = find(files)
    for name, part in (("train", found.train), ("test", found.test)):
        theirs = torchvision.datasets.SVHN(files, name)
        assert np.array_equal(part.reader.load(np.arange(len(theirs))), theirs.data)
        assert np.array_equal(part.labels, theirs.labels)


def test_either_place(files):
    settings = {"validation": "30-35", "subset": {"train": "0-9,20", "test": "1-4"}, "resize": 16}
    one, other = splits(files.parent, **settings), splits(files, **settings)
    assert (len(one.train), len(one.validation), len(one.test)) == (11, 6, 4)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(one, part).pixels, getattr(other, part).pixels)
    assert one.validation.labels.tolist() == DIGITS[30:36].tolist()


def test_looking_for_the_files_decompresses_no_pixels(files, monkeypatch):
    asked = []
    loadmat = scipy.io.loadmat

    def noted(path, variable_names):
        asked.append(variable_names)
        return loadmat(path, variable_names=variable_names)

    monkeypatch.setattr(scipy.io, "loadmat", noted)
    found = find(files)
    assert asked == [["y"], ["y"]]
    for _ in range(2):
        found.train.reader.load(np.arange(3))
    assert asked[2:] == [["X"]]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_wrong_checksum_is_named(files, part):
    path = files / f"{part}_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        BenchError, match=rf"/{part}_32x32\.mat is damaged .*; delete it and run `bench data prepare svhn`"
    ):
        find(files)


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_file_of_two(files, part):
    (files / f"{part}_32x32.mat").unlink()
    with pytest.raises(BenchError, match=rf"/{part}_32x32\.mat is missing; run `bench data prepare svhn`$"):
        find(files)


GOOD = variables(PIXELS[:TRAIN], DIGITS[:TRAIN])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"?" * 500,
        {"X": GOOD["X"]},
        {"y": GOOD["y"]},
        {**GOOD, "y": GOOD["y"] + 1},
        {**GOOD, "y": GOOD["y"] - 1},
        {**GOOD, "y": GOOD["y"][:0]},
        {**GOOD, "y": GOOD["y"][:-1]},
        {**GOOD, "y": "text"},
        {**GOOD, "X": GOOD["X"].astype(float)},
        {**GOOD, "X": GOOD["X"].transpose(3, 2, 0, 1)},
    ],
    ids=range(11),
)
def test_a_file_of_anything_else_is_one_sentence(files, monkeypatch, content):
    write(files, monkeypatch, "train", content)
    with pytest.raises(BenchError, match=r"/train_32x32\.mat is damaged or not the official file: "):
        splits(files, validation=5)


@pytest.mark.parametrize("length", [100, 300, 2000, -5])
def test_a_truncated_file_is_one_sentence_even_if_its_sum_is_right(files, monkeypatch, length):
    write(files, monkeypatch, "train", (files / "train_32x32.mat").read_bytes()[:length])
    with pytest.raises(BenchError, match=r"/train_32x32\.mat is damaged .* it cannot be parsed"):
        splits(files, validation=5)


def test_a_missing_dataset(tmp_path):
    with pytest.raises(NotFound) as caught:
        find(tmp_path)
    sentence = str(caught.value)
    for part in (
        f"{tmp_path}/train_32x32.mat",
        f"{tmp_path}/svhn/train_32x32.mat",
        "Run `bench data prepare svhn --data DIR`",
    ):
        assert part in sentence
    assert "Licence: no licence text" in sentence


def test_a_root_that_cannot_be_looked_into(tmp_path):
    with pytest.raises(BenchError, match=r"^the files of svhn below .* cannot be read: .*too long"):
        find(tmp_path / ("x" * 300))


def test_without_a_root():
    with pytest.raises(NotFound, match="set --data or BENCH_DATA"):
        find(None)


@pytest.mark.usefixtures("offline")
def test_without_network_the_address_and_the_place_are_named(tmp_path):
    with pytest.raises(BenchError) as caught:
        svhn.download(tmp_path)
    assert "http://ufldl.stanford.edu/housenumbers/train_32x32.mat" in str(caught.value)
    assert f"put it at {tmp_path}/svhn/train_32x32.mat," in str(caught.value)


@pytest.mark.parametrize("where", [".", "svhn"])
def test_download_joins_what_is_there(files, tmp_path, monkeypatch, where):
    def served(url, path, *_args):
        Path(path).write_bytes((files / url.rsplit("/", 1)[1]).read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", served)
    root = tmp_path / "other"
    (root / where).mkdir(parents=True)
    if where == ".":
        (root / "test_32x32.mat").write_bytes((files / "test_32x32.mat").read_bytes())
    svhn.download(root)
    assert find(root).where == root / where
    assert np.array_equal(find(root).train.reader.load(np.arange(TRAIN)), PIXELS[:TRAIN])
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", None)
    svhn.download(root)  # nothing is left to do


def test_real_images_survive_the_format(tmp_path, monkeypatch):
    """Real digits, in the layout of the official files: a channel or an axis in the wrong place shows."""
    real = Path(os.environ.get("BENCH_DATA") or "/nonexistent") / "svhn-exact"
    if not real.is_dir():
        pytest.skip("BENCH_DATA names no folder with svhn-exact, loss-free images by digit")
    paths = sorted((real / "train").rglob("*.png"))
    images = np.stack([np.array(Image.open(path)) for path in paths])
    digits = np.array([int(path.parent.name) for path in paths])
    write(tmp_path, monkeypatch, "train", variables(images.transpose(0, 3, 1, 2), digits))
    write(tmp_path, monkeypatch, "test", variables(images[:9].transpose(0, 3, 1, 2), digits[:9]))
    parts = splits(tmp_path, validation="0-9")
    assert torch.equal(parts.validation.pixels, torch.from_numpy(images[:10]).permute(0, 3, 1, 2))
    assert parts.validation.labels.tolist() == digits[:10].tolist()
    assert set(parts.train.labels.tolist()) == set(range(10))
