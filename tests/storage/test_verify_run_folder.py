"""What `folder_damage` sees in a run folder: every file that a figure rests on."""

import shutil

import pytest

from bench.config.suite import load_suite
from bench.execution.worker import Job, execute
from bench.storage.run_folder import RunFolder
from bench.storage.verify import folder_damage
from bench.utils.files import read_record, write_record


@pytest.fixture(scope="module")
def original(tmp_path_factory, request):
    """A run that finished."""
    path = tmp_path_factory.mktemp("original")
    (path / "suite.yaml").write_text(request.getfixturevalue("tiny_suite"))
    (cell,) = load_suite(str(path / "suite.yaml")).cells
    assert execute(Job(cell, path, ("cpu",), None, 1)) == "finished"
    return RunFolder.of(cell, path)


@pytest.fixture
def folder(original, tmp_path):
    """A copy of it."""
    return RunFolder(shutil.copytree(original.path, tmp_path / original.path.name))


DISPLAYED = {"log.txt", "lock", "progress.json"}
"""Files that no figure rests on."""

CHANGES = {
    "emptied": lambda data: b"",
    "halved": lambda data: data[: len(data) // 2],
    "flipped": lambda data: bytes([*data[: len(data) // 3], data[len(data) // 3] ^ 1, *data[len(data) // 3 + 1 :]]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_file_is_seen_to_be_damaged(folder, change):
    assert folder_damage(folder) == []
    files = [path for path in sorted(folder.path.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for path in files:
        before = path.read_bytes()
        path.write_bytes(change(before))
        damage = folder_damage(folder)
        path.write_bytes(before)
        if path.name in DISPLAYED:
            assert damage == []
        else:
            assert damage[0].startswith(f"{path} is damaged: "), path
            assert len(damage) == 1


def test_a_missing_file_is_seen(folder):
    weights, outcome = next(folder.checkpoints.glob("*.safetensors")), next(folder.outcomes.glob("best.*"))
    for path, sentence in (
        (weights, f"{weights} is missing, though the index names it"),
        (outcome, f"{folder.outcomes} has 1 outcomes of the checkpoint 'best', not 2"),
        (folder.checkpoints / "index.json", f"{folder.checkpoints / 'index.json'} is missing"),
        (folder.path / "cell.json", f"{folder.path} is not a run folder: it has no cell.json"),
    ):
        kept = path.read_bytes()
        path.unlink()
        assert folder_damage(folder)[0].startswith(sentence)
        path.write_bytes(kept)
    assert folder_damage(folder) == []


def test_an_outcome_of_other_weights_is_seen(folder):
    path = next(folder.outcomes.glob("best.*"))
    write_record(path, read_record(path) | {"weights_sha256": "0" * 64})
    assert folder_damage(folder) == [f"{path} is of other weights than those of its checkpoint"]


def test_a_link_is_seen(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder.path / "more").symlink_to(tmp_path / "elsewhere")
    assert folder_damage(folder)[0].startswith(f"{folder.path / 'more'} is a symbolic link")
