"""Prepared images are used when they are those of the files, and never otherwise."""

import logging
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.data import status
from bench.data.dataset import ABSENT, dataset_of
from bench.data.prepare import prepare
from bench.data.prepared import MappedReader, Prepared, folder_of, with_gaps
from bench.data.readers import ArrayReader, FileReader
from bench.data.streaming import ImageStream
from bench.errors import BenchError, DamagedFile, NotFound
from bench.utils.files import read_record, write_record


def pixels(part):
    return part.reader.load(np.flatnonzero(part.labels != ABSENT))


@pytest.fixture
def prepared(pets, own):
    """The pets, prepared; returns root and dataset."""
    prepare(own(), pets)
    return pets, own()


def test_prepared_images_are_the_files_images(prepared):
    root, dataset = prepared
    found, files = dataset.locate(root), dataset.find.locate(root, dataset.settings)
    assert found.where == root / "prepared" / found.where.name
    assert isinstance(found.train.reader, MappedReader)
    for ours, theirs in ((found.train, files.train), (found.test, files.test)):
        assert np.array_equal(pixels(ours), pixels(theirs))
        assert np.array_equal(ours.labels, theirs.labels)
    assert found.digest() == files.digest()
    first, second = dataset.splits(root), dataset_of(dataset.settings).splits(root)
    assert np.array_equal(first.train.pixels, second.train.pixels)


def test_prepared_images_serve_when_the_files_are_gone(prepared):
    root, dataset = prepared
    before = dataset.splits(root)
    shutil.rmtree(root / "pets")
    after = dataset.splits(root)
    assert np.array_equal(before.train.pixels, after.train.pixels)
    assert np.array_equal(before.test.labels, after.test.labels)
    (again, there) = prepare(dataset, root)
    assert there
    assert again.digest == dataset.locate(root).digest()


def test_a_part_serves_only_who_asks_for_it_when_the_files_are_gone(pets, own):
    digest = own().locate(pets).digest()
    prepare(own(digest=digest), pets)
    shutil.rmtree(pets / "pets")
    assert own(digest=digest).splits(pets)
    with pytest.raises(NotFound):
        own().locate(pets)
    with pytest.raises(NotFound):
        prepare(own(), pets)
    with pytest.raises(BenchError, match="these files have the digest"):
        own(digest="0" * 64).locate(pets)


def test_changed_files_are_read_themselves(prepared, draw, caplog):
    root, dataset = prepared
    drawn = draw(root / "pets" / "train" / "cat" / "new.png")
    with caplog.at_level(logging.WARNING):
        found = dataset.locate(root)
    assert isinstance(found.train.reader, FileReader)
    assert np.array_equal(found.train.reader.load(np.array([5]))[0], drawn)
    assert "was prepared from other files" in caplog.text
    assert "rerun 'bench data prepare'" in caplog.text
    _, there = prepare(dataset, root)
    assert not there
    caplog.clear()
    assert np.array_equal(dataset.locate(root).train.reader.load(np.array([5]))[0], drawn)
    assert not caplog.text
    assert len(list((root / "prepared").glob("*/*.npy"))) == 4  # those of before are gone


def test_images_replaced_by_others_of_the_same_size_and_time_are_read_themselves(prepared, caplog):
    root, dataset = prepared
    (folder,) = (root / "prepared").iterdir()
    paths = sorted((root / "pets").rglob("*.png"))
    for path in paths:
        times, size = path.stat(), path.stat().st_size
        Image.new("RGB", (6, 6), (7, 7, 7)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (dataset.splits(root).test.pixels == 7).all()
    assert "was prepared from other files" in caplog.text
    assert status.check(dataset, root)["prepared"] == "outdated"
    said = []
    _, there = prepare(dataset, root, say=said.append)
    assert not there
    assert said == [f"{folder} was prepared from other files, or by an older version; preparing it again"]
    assert isinstance(dataset.locate(root).test.reader, MappedReader)
    assert (dataset.splits(root).test.pixels == 7).all()


def test_prepared_images_serve_copied_files_which_are_read_once(prepared, monkeypatch, caplog):
    root, dataset = prepared
    shutil.copytree(root / "pets", root / "copy")
    shutil.rmtree(root / "pets")
    (root / "copy").rename(root / "pets")
    assert isinstance(dataset.locate(root).test.reader, MappedReader)
    assert prepare(dataset, root)[1]
    monkeypatch.setattr("bench.data.folder.file_sha256", None)  # not called: sizes and times are those of the record
    assert isinstance(dataset.locate(root).test.reader, MappedReader)
    assert not caplog.text


def test_images_prepared_by_older_versions_serve_only_where_the_files_are_gone(prepared, caplog):
    root, dataset = prepared
    (index,) = (root / "prepared").glob("*/index.json")
    record = read_record(index)
    del record["state"]
    write_record(index, record | {"files": "0" * 64})  # a digest of names and sizes
    assert isinstance(dataset.locate(root).train.reader, FileReader)
    assert "or by an older version" in caplog.text
    shutil.rmtree(root / "pets")
    assert isinstance(dataset.locate(root).train.reader, MappedReader)


def test_another_path_and_another_shape_have_their_own(prepared, own):
    root, dataset = prepared
    shutil.copytree(root / "pets", root / "pets2")
    assert isinstance(own(path="pets2").locate(root).train.reader, FileReader)
    assert isinstance(own(shape=(1, 6, 6)).locate(root).train.reader, FileReader)
    prepare(own(shape=(1, 6, 6)), root)
    assert own(shape=(1, 6, 6)).splits(root).train.pixels.shape[1:] == (1, 6, 6)
    assert dataset.splits(root).train.pixels.shape[1:] == (3, 6, 6)
    folders = [folder_of(root, own(path=path).settings) for path in ("a/b", "a-b", "a_b")]
    assert len({*folders}) == 3


def test_averaging_comes_after(prepared, own):
    root, _ = prepared
    averaged = own(resize=3)
    small, whole = averaged.splits(root), own().splits(root)
    assert small.test.pixels.shape[1:] == (3, 3, 3)
    mean = whole.test.pixels[0, 0, :2, :2].double().mean()
    assert small.test.pixels[0, 0, 0, 0] == int(mean + 0.5)


def test_labels_keep_their_gaps(tmp_path, draw):
    wnids = [f"n{rank:08}" for rank in range(200)]
    folder = tmp_path / "tiny-imagenet-200"
    drawn = {5: draw(folder / "train" / wnids[0] / "images" / f"{wnids[0]}_5.JPEG", size=(64, 64)),
             507: draw(folder / "train" / wnids[1] / "images" / f"{wnids[1]}_7.JPEG", size=(64, 64))}  # fmt: skip
    draw(folder / "val" / "images" / "val_3.JPEG", size=(64, 64))
    (folder / "val" / "val_annotations.txt").write_text(f"val_3.JPEG\t{wnids[9]}\t0\n")
    (folder / "wnids.txt").write_text("\n".join(wnids))
    tiny = dataset_of(DatasetSettings(name="tiny_imagenet", validation=1))
    made, _ = prepare(tiny, tmp_path)
    assert sum(file["bytes"] for file in made.files()) < 3 * 64 * 64 * 3 + 8 * 110_000 + 1000  # no room for the absent
    found = tiny.locate(tmp_path)
    assert found.where.name == "tiny_imagenet"
    assert np.flatnonzero(found.train.labels != ABSENT).tolist() == [5, 507]
    assert found.test.labels[3] == 9
    for index, image in drawn.items():
        assert np.array_equal(found.train.reader.load(np.array([index]))[0], image)
    part = dataset_of(DatasetSettings(name="tiny_imagenet", validation=1, digest=made.digest)).locate(tmp_path)
    assert part.train.labels.tolist() == [0, 1]
    assert np.array_equal(part.train.reader.load(np.array([1]))[0], drawn[507])


def test_with_gaps():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    part = with_gaps(ArrayReader(images), np.array([ABSENT, 4, ABSENT, 5, 6, ABSENT]))
    assert part.reader.load(np.array([4, 1, 3])).ravel().tolist() == [2, 0, 1]
    assert len(part.reader) == 6


def test_a_mapped_source_travels_light(prepared):
    root, dataset = prepared
    source = dataset.locate(root).train.reader
    expected = source.load(np.arange(3))  # it is mapped now
    assert len(pickle.dumps(source)) < 500
    assert np.array_equal(pickle.loads(pickle.dumps(source)).load(np.arange(3)), expected)
    assert len(source) == 10


def test_a_process_that_shares_nothing_maps_it_too(prepared):
    root, dataset = prepared
    source = dataset.locate(root).train.reader
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(source.load, np.arange(3)).result(), source.load(np.arange(3)))


def test_large_images_are_streamed_from_it(tmp_path, own, draw):
    for part in ("train", "test"):
        for name in ("a", "b"):
            drawn = [draw(tmp_path / "pets" / part / name / f"{number}.png", size=(160, 160)) for number in range(3)]
    dataset = own(shape=(3, 160, 160))
    prepare(dataset, tmp_path)
    splits = dataset.splits(tmp_path)
    assert isinstance(splits.test, ImageStream)
    batches = list(splits.test.read([torch.tensor([5, 3]), torch.tensor([4])]))
    assert np.array_equal(torch.cat(batches), np.stack([drawn[2], drawn[0], drawn[1]]))


# --- damage ----------------------------------------------------------------------------------------------------------


def spoil(folder, name, change):
    (path,) = folder.glob(name)
    path.write_bytes(change(path.read_bytes()))
    return path


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train-????????????.npy", lambda content: content[:-1], "does not have the recorded size"),
        ("train-labels*.npy", flipped, "is damaged: its SHA-256 does not match"),
        ("index.json", flipped, "is damaged"),
        ("index.json", lambda content: b"{}", "is damaged"),
        ("test-????????????.npy", None, "is missing"),
    ],
    ids=["cut", "labels", "record", "no record", "gone"],
)
def test_damaged_arrays_are_not_used(prepared, caplog, name, change, said):
    root, dataset = prepared
    folder = dataset.locate(root).where
    if change:
        spoil(folder, name, change)
    else:
        next(folder.glob(name)).unlink()
    with caplog.at_level(logging.WARNING):
        assert isinstance(dataset.locate(root).train.reader, FileReader)
    assert said in caplog.text
    assert "reading the image files instead" in caplog.text
    shutil.move(root / "pets", root / "elsewhere")
    with pytest.raises(DamagedFile, match=said):
        dataset.locate(root)
    shutil.move(root / "elsewhere", root / "pets")
    _, there = prepare(dataset, root)
    assert not there
    assert isinstance(dataset.locate(root).train.reader, MappedReader)


def test_a_changed_pixel_is_found_by_verifying(prepared):
    root, dataset = prepared
    folder = dataset.locate(root).where
    Prepared.read(folder).verify()
    path = spoil(folder, "test-????????????.npy", flipped)
    with pytest.raises(DamagedFile, match=f"{path} is damaged: its SHA-256 does not match; rerun 'bench data prepare'"):
        Prepared.read(folder).verify()
    said = []
    _, there = prepare(dataset, root, say=said.append)
    assert not there
    assert str(path) in said[0]
    Prepared.read(folder).verify()


def test_another_version_is_as_good_as_none(prepared, monkeypatch):
    root, dataset = prepared
    monkeypatch.setattr("bench.data.prepared.VERSION", 2)
    assert isinstance(dataset.locate(root).train.reader, FileReader)


def test_an_array_that_vanishes_meanwhile_is_one_sentence(prepared):
    root, dataset = prepared
    found = dataset.locate(root)
    shutil.rmtree(found.where)
    with pytest.raises(BenchError, match=r"prepared images \S+ cannot be read: .*No such file"):
        found.train.reader.load(np.arange(2))
