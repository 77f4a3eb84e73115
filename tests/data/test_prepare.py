"""Preparing leaves everything or nothing, whatever ends it."""

import errno
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from bench.config.protocol import DatasetSettings
from bench.data.dataset import dataset_of
from bench.data.prepare import prepare
from bench.data.prepared import Prepared
from bench.data.readers import FileReader
from bench.errors import BenchError

SLOW = """
import sys, time
from pathlib import Path
from bench.data import prepare
from bench.data.dataset import dataset_of
from bench.data.readers import FileReader
from bench.config.protocol import DatasetSettings

load = FileReader.load
def slowly(self, index, *rest):
    found = load(self, index, *rest)
    time.sleep(float(sys.argv[3]))
    return found

FileReader.load, prepare.CHUNK = slowly, 2
dataset = dataset_of(DatasetSettings.model_validate_json(sys.argv[1]))
print("there already" if prepare.prepare(dataset, Path(sys.argv[2]))[1] else "prepared")
"""


def left(root):
    """Return the names of what lies among the prepared images, the lock aside."""
    return sorted(path.name for path in root.glob("prepared/*/*") if path.name != "lock")


def slow(dataset, root, seconds=0.3):
    command = [sys.executable, "-c", SLOW, dataset.settings.model_dump_json(), str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until_it_writes(root):
    deadline = time.monotonic() + 60
    while not any(path.suffix == ".tmp" for path in root.glob("prepared/*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_once_and_not_twice(pets, own, monkeypatch):
    ticks = []
    made, there = prepare(own(), pets, lambda *tick: ticks.append(tick))
    assert not there
    assert ticks == [(10, 14), (14, 14)]
    assert made.record["shape"] == [3, 6, 6]
    assert {name: part["images"] for name, part in made.record["parts"].items()} == {"train": 10, "test": 4}
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    monkeypatch.setattr(FileReader, "load", None)
    made, there = prepare(own(), pets)
    assert there
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before


def test_what_has_no_files_cannot_be_prepared(tmp_path):
    with pytest.raises(BenchError, match="dataset 'digits' has no image files to prepare"):
        prepare(dataset_of(DatasetSettings(name="digits")), tmp_path)


def test_files_must_be_those_that_are_stated(pets, own):
    with pytest.raises(BenchError, match="these files have the digest"):
        prepare(own(digest="0" * 64), pets)
    assert not (pets / "prepared").exists()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["bench.data.prepare.os.fsync", "bench.data.prepare.write_record"])
@pytest.mark.parametrize("before", [False, True], ids=["anew", "again"])
def test_a_full_disk(pets, own, draw, monkeypatch, place, before):
    if before:
        prepare(own(), pets)
        draw(pets / "pets" / "train" / "cat" / "new.png")
    held = left(pets)
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(BenchError, match=r"prepared/\S+ cannot be written: No space left on device$"):
            prepare(own(), pets)
    assert left(pets) == held
    assert not prepare(own(), pets)[1]
    assert len(left(pets)) == 5


def test_a_write_that_fails(pets, own):
    """The system refuses the write itself, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(BenchError, match=r"prepared/\S+ cannot be written: File too large"):
            prepare(own(), pets)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(pets) == []


def test_room_is_looked_for_first(pets, own, monkeypatch):
    needed = 14 * 3 * 6 * 6 + 14 * 8
    monkeypatch.setattr("bench.data.prepare.shutil.disk_usage", lambda _path: SimpleNamespace(free=needed - 1))
    with pytest.raises(BenchError, match=r"needs 0.00 GiB, but its disk has 0.00 GiB free"):
        prepare(own(), pets)
    assert left(pets) == []
    monkeypatch.setattr("bench.data.prepare.shutil.disk_usage", lambda _path: SimpleNamespace(free=needed))
    prepare(own(), pets)


def test_a_broken_image_is_named_and_nothing_left(pets, own):
    path = pets / "pets" / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BenchError, match=f"image {path} cannot be read"):
        prepare(own(), pets)
    assert left(pets) == []


def test_a_root_that_cannot_be_written(pets, own):
    (pets / "prepared").write_text("a file in the way")
    with pytest.raises(BenchError, match=r"prepared/\S+ cannot be written: "):
        prepare(own(), pets)


def test_interrupted(pets, own):
    def interrupt(done, _of):
        if done > 10:  # the training images are written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(own(), pets, interrupt)
    assert left(pets) == []


def test_killed(pets, own):
    process = slow(own(), pets)
    wait_until_it_writes(pets)
    process.kill()
    process.communicate(timeout=60)
    assert any(name.endswith(".tmp") for name in left(pets))
    assert isinstance(own().locate(pets).train.reader, FileReader)
    leftover = next(pets.glob("prepared/*")) / "train-0123456789ab.npy.tmp"  # of files that were different
    leftover.touch()
    there_meanwhile = []
    made, there = prepare(own(), pets, lambda *_: there_meanwhile.append(leftover.exists()))
    assert not there
    assert not any(there_meanwhile)  # it makes room first
    made.verify()
    assert len(left(pets)) == 5


def test_killed_between_the_last_array_and_the_record(pets, own, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("bench.data.prepare._sweep", lambda _folder: None)  # a killed process clears nothing up
        patch.setattr("bench.data.prepare.write_record", full)
        with pytest.raises(BenchError):
            prepare(own(), pets)
    assert len(left(pets)) == 4
    assert isinstance(own().locate(pets).train.reader, FileReader)
    assert not prepare(own(), pets)[1]
    assert len(left(pets)) == 5


def test_two_at_once(pets, own):
    process = slow(own(), pets, 0.2)
    wait_until_it_writes(pets)
    said = []
    made, there = prepare(own(), pets, say=said.append)
    assert there
    assert process.communicate(timeout=60)[0] == "prepared\n"
    assert said == [f"another process is preparing {made.folder}; waiting"]
    Prepared.read(made.folder).verify()
