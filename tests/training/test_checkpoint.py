import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import nn

from bench.errors import DamagedFile
from bench.models.small_cnn import SmallCNN
from bench.storage.checkpoints import Checkpoints, Entry, _unpack
from bench.utils.files import write_record


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def weights(value):
    return {"weight": torch.full((3,), float(value))}


def commit(folder, value, epoch, *names, **state):
    checkpoints = Checkpoints(folder)
    entry = checkpoints.write(f"weights-{value}", epoch, weights(value))
    checkpoints.commit(dict.fromkeys(names, entry), finished_epochs=epoch + 1, **state)
    return folder / entry.file


def identical(one, other):
    """Compare nested trees bit for bit: keys, types, dtypes, shapes, NaNs."""
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            identical(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for item, other_item in zip(one, other, strict=True):
            identical(item, other_item)
    else:
        assert type(one) is type(other)
        assert one == other or math.isnan(one)


# --- what is written comes back ---------------------------------------------------------------------------------------

TREES = {
    "scalars": {"a": 1, "b": 0.1 + 0.2, "c": True, "d": None, "e": "é\n", "f": math.nan, "g": -math.inf, "h": 10**30},
    "tensors": {
        "nested": {"half": torch.tensor([1.5, -0.0, math.nan], dtype=torch.bfloat16), "empty": torch.empty(0, 3)},
        "list": [torch.tensor(5), [torch.tensor([True, False])], (1, 2)],
        "bytes": torch.get_rng_state(),
        "tiny": torch.tensor([5e-324, 1 / 3], dtype=torch.float64),
    },
    "keys": {0: {"momentum": torch.ones(2)}, 1: {"momentum": torch.zeros(2)}, "empty": {}, "none": []},
    "keys that are numbers": {0: torch.ones(1), 7: torch.zeros(1)},
    "names that meet": {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1), "c": {1: torch.ones(2), "1": torch.zeros(2)}},
    "empty": {},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_trees_come_back_bit_for_bit(folder, name):
    checkpoints = Checkpoints(folder)
    checkpoints.commit({"resume": checkpoints.write("resume", 0, TREES[name])}, finished_epochs=1)
    identical(TREES[name], Checkpoints(folder).load("resume"))


def test_views_shared_storage_and_strides(folder):
    base = torch.arange(24.0).view(2, 3, 2, 2)
    tree = {"a": base, "b": base[:, 1], "c": base.to(memory_format=torch.channels_last), "d": base.transpose(0, 3)}
    checkpoints = Checkpoints(folder)
    checkpoints.commit({"best": checkpoints.write("weights", 0, tree)}, finished_epochs=1)
    identical(tree, Checkpoints(folder).load("best"))


def test_optimiser_states_come_back(folder):
    def trained():
        torch.manual_seed(0)
        model = SmallCNN(classes=10, channels=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step(model, optimizer)
        return model, optimizer

    def step(model, optimizer):
        nn.functional.cross_entropy(model(torch.ones(4, 1, 8, 8)), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = trained()
    checkpoints = Checkpoints(folder)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoints.commit({"resume": checkpoints.write("resume", 0, state)}, finished_epochs=1)
    other = SmallCNN(classes=10, channels=1)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    loaded = Checkpoints(folder).load("resume")
    other.load_state_dict(loaded["model"])
    other_optimizer.load_state_dict(loaded["optimizer"])
    step(model, optimizer)
    step(other, other_optimizer)
    identical(model.state_dict(), other.state_dict())


def test_flat_weights_are_plain_safetensors(folder):
    state = SmallCNN(classes=10, channels=1).state_dict()
    checkpoints = Checkpoints(folder)
    entry = checkpoints.write("weights", 12, state)
    assert entry.file == "weights-0012.safetensors"
    identical(dict(state), {name: load_file(folder / entry.file)[name] for name in state})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j])
def test_what_is_not_plain_is_refused(folder, value):
    with pytest.raises(TypeError, match=r"a checkpoint cannot hold \w+ at method\.memory"):
        Checkpoints(folder).write("resume", 0, {"method": {"memory": value}})
    assert list(folder.iterdir()) == []


def test_equal_trees_are_equal_files(folder):
    checkpoints = Checkpoints(folder)
    digests = {checkpoints.write("weights", epoch, TREES["tensors"]).sha256 for epoch in range(2)}
    assert len(digests) == 1


# --- what is damaged is refused ---------------------------------------------------------------------------------------


def flip(path: Path, place: int):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: flip(path, -1), "is damaged: its bytes do not match its SHA-256"),
        (lambda path: flip(path, 9), "is damaged: its bytes do not match its SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: its bytes do not match its SHA-256"),
        (lambda path: path.write_bytes(b""), "is damaged: its bytes do not match its SHA-256"),
        (lambda path: path.unlink(), "is missing, though the index names it"),
    ],
    ids=["last byte", "header", "cut", "emptied", "missing"],
)
def test_a_damaged_checkpoint_is_one_sentence(folder, damage, sentence):
    path = commit(folder, 1, 0, "best")
    damage(path)
    with pytest.raises(DamagedFile) as error:
        Checkpoints(folder).load("best")
    assert str(error.value) == f"{path} {sentence}"


def test_a_damaged_index_is_one_sentence(folder):
    commit(folder, 1, 0, "best")
    index = folder / "index.json"
    index.write_text(index.read_text().replace('"finished_epochs": 1', '"finished_epochs": 2'))
    with pytest.raises(DamagedFile, match=r"index\.json is damaged"):
        Checkpoints(folder)


@pytest.mark.parametrize("file", ["../../stolen.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_from_elsewhere_names_no_file_outside(folder, file):
    write_record(
        folder / "index.json",
        {"checkpoints": {"best": asdict(Entry(file, "0" * 64, 0))}, "finished_epochs": 1, "finished": True},
    )
    with pytest.raises(DamagedFile, match=r"index\.json names files outside its folder"):
        Checkpoints(folder)


@pytest.mark.parametrize("content", [{}, {"checkpoints": []}, {"checkpoints": {"best": {}}, "finished_epochs": 1}])
def test_an_index_of_another_shape_is_one_sentence(folder, content):
    write_record(folder / "index.json", content)
    with pytest.raises(DamagedFile, match=r"index\.json is not an index of checkpoints"):
        Checkpoints(folder)


@pytest.mark.parametrize("structure", ["{", "[]", '{"tensor": "b"}', '{"items": 3}', "{}", "[" * 100_000])
def test_a_structure_of_another_shape_is_one_sentence(structure):
    with pytest.raises(DamagedFile, match="not a checkpoint of bench"):
        _unpack(save_safetensors({"a": torch.ones(1)}, {"structure": structure}))


# --- an epoch is committed whole --------------------------------------------------------------------------------------


def test_a_new_folder_is_empty(folder):
    checkpoints = Checkpoints(folder)
    assert (checkpoints.entries, checkpoints.finished_epochs, checkpoints.finished) == ({}, 0, False)


def test_a_commit_deletes_what_neither_it_nor_the_one_before_needs_and_nothing_else(folder):
    first = commit(folder, 1, 0, "best", "best_on_test", "resume")
    (folder / "notes.txt").write_text("mine")
    second = commit(folder, 2, 1, "best_on_test", "resume")
    third = commit(folder, 3, 2, "best", "resume")
    assert first.exists()  # it was `best` in the epoch before
    fourth = commit(folder, 4, 3, "resume")
    assert not first.exists()
    kept = {second.name, third.name, fourth.name, "notes.txt", "index.json", "previous.json"}
    assert {path.name for path in folder.iterdir()} == kept
    checkpoints = Checkpoints(folder)
    assert {name: entry.epoch for name, entry in checkpoints.entries.items()} == {
        "best": 2,
        "best_on_test": 1,
        "resume": 3,
    }
    assert checkpoints.load("best_on_test")["weight"].tolist() == [2, 2, 2]
    assert checkpoints.finished_epochs == 4


def test_an_endless_training_keeps_few_files(folder):
    for epoch in range(20):
        commit(folder, epoch, epoch, "best", "resume")
        assert len(list(folder.iterdir())) <= 4  # of this epoch and of the one before, and their indices


def test_the_end_drops_the_resume_state(folder):
    resume = commit(folder, 1, 0, "resume")
    commit(folder, 2, 0, "last", finished=True)
    checkpoints = Checkpoints(folder)
    assert checkpoints.finished
    assert list(checkpoints.entries) == ["last"]
    assert not resume.exists()
    assert not (folder / "previous.json").exists()


def test_what_death_at_the_end_left_is_swept_later(folder, monkeypatch):
    commit(folder, 1, 0, "resume")
    resume = commit(folder, 2, 1, "resume")
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "sweep", lambda self: None)
        last = commit(folder, 3, 1, "last", finished=True)
    assert resume.exists()
    Checkpoints(folder).sweep()
    assert {path.name for path in folder.iterdir()} == {"index.json", last.name}


def test_death_before_the_commit_leaves_the_old_index_valid(folder):
    commit(folder, 1, 0, "best", "resume")
    Checkpoints(folder).write("weights-2", 1, weights(2))  # and then the process dies
    checkpoints = Checkpoints(folder)
    assert checkpoints.finished_epochs == 1
    assert checkpoints.load("best")["weight"].tolist() == [1, 1, 1]
    assert len(list(folder.glob("*.safetensors"))) == 2
    commit(folder, 3, 1, "best", "resume")  # the epoch again
    names = {path.name for path in folder.glob("*.safetensors")}
    assert names == {"weights-1-0000.safetensors", "weights-3-0001.safetensors"}


def test_death_while_the_index_is_written_leaves_the_old_one(folder, monkeypatch):
    commit(folder, 1, 0, "best")
    checkpoints = Checkpoints(folder)
    entry = checkpoints.write("weights-2", 1, weights(2))

    def dies(*_paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.commit({"best": entry}, finished_epochs=2)
    assert Checkpoints(folder).load("best")["weight"].tolist() == [1, 1, 1]


def test_death_before_the_old_files_are_deleted_leaves_the_new_index(folder, monkeypatch):
    commit(folder, 1, 0, "best")
    commit(folder, 2, 1, "best")

    def dies(_path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            commit(folder, 3, 2, "best")
    assert Checkpoints(folder).load("best")["weight"].tolist() == [3, 3, 3]
    assert len(list(folder.glob("*.safetensors"))) == 3
    commit(folder, 4, 3, "best")
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_the_index_is_readable(folder):
    path = commit(folder, 1, 4, "best")
    index = json.loads((folder / "index.json").read_text())["content"]
    assert index["checkpoints"]["best"]["file"] == path.name
    assert index["checkpoints"]["best"]["epoch"] == 4
    assert (index["finished_epochs"], index["finished"]) == (5, False)
