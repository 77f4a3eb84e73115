from dataclasses import replace

import numpy as np
import pytest

from bench import registry
from bench.config.protocol import DatasetSettings
from bench.data import status
from bench.data.dataset import ABSENT, Located, Split, missing
from bench.data.datasets import digits
from bench.data.prepare import prepare
from bench.data.prepared import ImageFiles
from bench.data.readers import ArrayReader
from bench.errors import BenchError, NotFound


def nothing(*_):
    """Takes progress and messages."""


@pytest.fixture
def remote():
    """A dataset of ten and five images that a file `remote` stands for, and that can be downloaded."""

    def find(root, _settings):
        if root is None or not (root / "remote").exists():
            raise missing(made, [root / "remote"] if root else [], root)
        labels = np.arange(15) % 3
        labels[: int((root / "remote").read_text() or 0)] = ABSENT
        pixels = np.zeros((15, 1, 8, 8), np.uint8)
        return Located(
            root / "remote", Split(ArrayReader(pixels), labels[:10]), Split(ArrayReader(pixels), labels[10:])
        )

    made = replace(
        digits.digits, name="remote", classes=3, train_images=10, test_images=5, find=find, obtain="Ask for it.",
        download=lambda root: (root / "remote").write_text(""),
    )  # fmt: skip
    registry.DATASETS.add("remote", made)
    return made


def test_names():
    assert status.named("digits").settings == DatasetSettings(name="digits", validation=1)
    assert status.named("quickstart").settings.name == "digits"
    with pytest.raises(BenchError, match="no dataset and no suite is called 'digit'; did you mean 'digits'?"):
        status.named("digit")
    with pytest.raises(BenchError, match="'npz' is described by the key 'files' of a suite"):
        status.named("npz")
    assert {"digits", "tiny_imagenet", "quickstart"} <= set(status.names())


def test_overview(remote, tmp_path):
    def row():
        (found,) = (row for row in status.overview(tmp_path) if row["name"] == "remote")
        return found["found"], found["where"]

    rows = {row["name"]: row for row in status.overview(None)}
    assert {name: rows[name]["found"] for name in ("digits", "remote", "image_folder", "tiny_imagenet")} == {
        "digits": "yes", "remote": "no", "image_folder": "as a suite says", "tiny_imagenet": "no"
    }  # fmt: skip
    assert (rows["digits"]["classes"], rows["digits"]["image"], rows["digits"]["train"]) == (10, "1x8x8", 1297)
    assert row() == ("no", None)
    (tmp_path / "remote").write_text("3")
    assert row() == ("not whole", str(tmp_path / "remote"))
    (tmp_path / "remote").write_text("")
    assert row() == ("yes", str(tmp_path / "remote"))


def test_check(remote, tmp_path):
    def check():
        return status.check(status.named("remote"), tmp_path)

    assert check()["problems"][0].startswith(f"dataset 'remote' not found: looked for {tmp_path}/remote. Ask for it.")
    (tmp_path / "remote").write_text("3")
    found = check()
    assert found["train"] == {"images": 7, "absent": 3, "smallest_class": 2, "largest_class": 3}
    assert "3 of the training images of remote have no file" in found["problems"][0]
    (tmp_path / "remote").write_text("")
    assert check()["problems"] == []
    assert check()["prepared"] is None


def test_a_suite_may_need_less_than_all(remote, tmp_path):
    (tmp_path / "remote").write_text("3")
    part = remote.configured(DatasetSettings(name="remote", validation=2, subset={"train": "3-9"}))
    assert status.check(part, tmp_path)["problems"] == []
    without = remote.configured(DatasetSettings(name="remote", validation="0-1", subset={"train": "3-9"}))
    assert "the first is index 0" in status.check(without, tmp_path)["problems"][0]


def test_fetch_downloads_what_is_missing_or_not_whole(remote, tmp_path):
    for before in (None, "3"):
        if before:
            (tmp_path / "remote").write_text(before)
        said = status.fetch(status.named("remote"), tmp_path, nothing, nothing)
        assert said == f"remote is downloaded: {tmp_path}/remote"
    said = status.fetch(status.named("remote"), tmp_path, nothing, nothing)
    assert said == f"remote is there already, nothing to do: {tmp_path}/remote"
    assert status.fetch(status.named("digits"), None, nothing, nothing) == "digits is there already, nothing to do"


def test_fetch_says_how_to_get_what_it_cannot(remote, tmp_path):
    def broken(_root):
        raise ConnectionResetError("connection reset by peer")

    with pytest.raises(NotFound, match="set --data"):
        status.fetch(status.named("remote"), None, nothing, nothing)
    offline = replace(status.named("remote"), download=broken)
    with pytest.raises(BenchError, match=r"remote cannot be downloaded: connection reset by peer. Ask for it."):
        status.fetch(offline, tmp_path, nothing, nothing)
    with pytest.raises(NotFound, match="Ask for it."):
        status.fetch(replace(offline, download=None), tmp_path, nothing, nothing)
    for name in ("tiny_imagenet", "restricted_imagenet"):
        with pytest.raises(NotFound, match=rf"'{name}' not found: looked for .*{tmp_path}.* (Unpack|Get) "):
            status.fetch(status.named(name), tmp_path, nothing, nothing)
        with pytest.raises(NotFound, match="set --data"):
            status.fetch(status.named(name), None, nothing, nothing)


def test_own_files(pets, own):
    found = status.check(own(), pets)
    assert found["where"] == str(pets / "pets")
    assert found["digest"] == own().locate(pets).digest()
    assert (found["prepared"], found["problems"]) == ("no", [])
    said = status.fetch(own(), pets, nothing, nothing)
    assert said.startswith(f"the images of image_folder are prepared: {pets}/prepared/image_folder-pets-")
    assert "were prepared already, nothing to do" in status.fetch(own(), pets, nothing, nothing)
    assert status.check(own(), pets)["prepared"] == "yes"


def test_files_that_are_not_read_are_a_problem_unless_ignored(pets, own, draw):
    names = [f"train/cat/{number}.heic" for number in range(5)] + ["test/dog/more/1.png", "val/cat/1.png"]
    for name in names:
        draw(pets / "pets" / name)
    found = status.check(own(), pets)
    assert found["unread"] == 7
    (problem,) = found["problems"]
    listed = ", ".join(str(pets / "pets" / name) for name in [names[5], *names[:4]])
    assert problem == f"7 files are not read: {listed}, ...; move them away, or accept them with --ignore-unread"
    assert status.check(own(), pets, ignore_unread=True)["problems"] == []
    said = []
    status.fetch(own(), pets, nothing, said.append)
    assert said == [problem.partition(";")[0]]
    assert status.check(own(), pets)["unread"] == 7  # although the prepared images are used


def test_states_of_prepared_images(pets, own, draw):
    made, _ = prepare(own(), pets)
    draw(pets / "pets" / "train" / "cat" / "new.png")
    assert status.check(own(), pets)["prepared"] == "outdated"
    assert status.check(own(), pets)["problems"] == []
    (pets / "pets" / "train" / "cat" / "new.png").unlink()
    (array,) = made.folder.glob("test-????????????.npy")
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    found = status.check(own(), pets)
    assert found["prepared"] == "damaged"
    assert [problem for problem in found["problems"] if str(array) in problem]
    (pets / "pets").rename(pets / "away")
    array.unlink()
    assert len(status.check(own(), pets)["problems"]) == 1


def test_every_broken_image_is_named(pets, own, draw):
    ticks = []
    assert status.check(own(), pets, decode=True, progress=lambda *tick: ticks.append(tick))["problems"] == []
    assert ticks == [(10, 14), (14, 14)]
    prepare(own(), pets)  # the files are looked at all the same
    first, second = pets / "pets" / "train" / "cat" / "3.png", pets / "pets" / "test" / "dog" / "0.png"
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:40].ljust(path.stat().st_size))
    problems = status.check(own(), pets, decode=True)["problems"]
    assert [problem.split()[1] for problem in problems] == [str(first), str(second)]
    assert status.check(own(), pets)["problems"] == []


def test_prepared_images_can_be_made_again_while_their_files_are_there(pets, own):
    made = replace(own(), name="pets", own_files=False, settings=None)
    registry.DATASETS.add(
        "pets", replace(made, find=ImageFiles(lambda root, _: own().find.locate(root, own().settings)))
    )
    dataset = status.named("pets")
    assert list(status.prepared_twice(pets)) == []
    prepared, _ = prepare(dataset, pets)
    assert list(status.prepared_twice(pets)) == [prepared.folder]
    assert list(status.prepared_twice(pets / "pets")) == []
    (pets / "pets" / "train" / "cat" / "0.png").unlink()
    assert list(status.prepared_twice(pets)) == []
