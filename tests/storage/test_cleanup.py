"""The store made anew from run folders, and the disk freed of what can be made again."""

import pytest

from bench.errors import BenchError, NothingMeasured
from bench.storage.cleanup import removable, remove
from bench.storage.ingest import ingest_results
from bench.storage.run_folder import run_folders
from bench.storage.store import Store

from .conftest import contents, execute


def test_a_lost_store_is_made_again_row_by_row(make_run, results, store_url):
    folders = [make_run(seed=seed, status=status) for seed, status in enumerate(["finished", "failed", None])]
    with Store(store_url) as store:
        for folder in reversed(folders):
            store.ingest(folder)
    before = contents(store_url)
    for table in ("outcome", "checkpoint", "epoch", "run", "protocol", "alembic_version"):
        execute(store_url, f"DROP TABLE {table}")
    make_run(seed=3).archive()
    assert [item.damage for item in ingest_results(results, store_url)] == [None, None, None]
    assert contents(store_url) == before
    assert [item.damage for item in ingest_results(results, store_url)] == [None, None, None]
    assert contents(store_url) == before


def test_a_damaged_folder_stops_no_other(make_run, results, store_url):
    bad, good = make_run(seed=0), make_run(seed=1)
    (bad.path / "done.json").write_text("{")
    taken = ingest_results(results, store_url)
    assert [item.name for item in taken] == [bad.path.name, good.path.name]
    assert "done.json is damaged" in taken[0].damage
    with Store(store_url) as store:
        assert [run.seed for run in store.runs()] == [1]


def test_without_a_run_folder_no_store_is_made(results):
    (results / "runs" / "something").mkdir(parents=True)
    with pytest.raises(NothingMeasured, match="there is no run folder in"):
        ingest_results(results, None)
    assert not (results / "bench.sqlite").exists()


@pytest.fixture
def littered(make_run, results):
    """A results folder with something of everything; returns what can be removed from it."""
    ended, going_on, aside = make_run(seed=0), make_run(seed=1, status=None), make_run(seed=2)
    litter = [
        ended.checkpoints / ".weights-0001.safetensors.77.tmp",
        ended.partial / "place.json",
        going_on.path / ".done.json.77.tmp",
        results / "bench.sqlite.schema-0001",
    ]
    for path in (*litter, going_on.partial / "place.json"):
        path.write_bytes(b"x" * 1000)
    return ended, going_on, aside.archive(), litter


def test_what_can_be_removed_is_named_with_its_size(littered, results):
    ended, _, aside, litter = littered
    found = removable(results)
    assert {(item.path, item.bytes) for item in found} == {
        (litter[0], 1000), (ended.partial, 1000), (litter[2], 1000), (litter[3], 1000)
    }  # fmt: skip
    assert {item.path for item in removable(results, archived=True)} - {item.path for item in found} == {aside}


def test_nothing_else_is_removed(littered, results):
    _, going_on, aside, litter = littered
    kept = {path for path in results.rglob("*") if path.is_file() and path not in litter}
    remove(removable(results))
    assert {path for path in results.rglob("*") if path.is_file()} - {
        folder.lock_file for folder in run_folders(results)
    } == kept
    assert going_on.partial.exists()
    remove(removable(results, archived=True))
    assert not aside.exists()
    assert removable(results, archived=True) == []


def test_a_run_that_is_worked_on_is_left_alone(littered, results):
    _, going_on, _, litter = littered
    with going_on.lock():
        assert litter[2] not in {item.path for item in removable(results)}


def test_links_are_neither_followed_nor_removed(littered, results, tmp_path):
    ended, _, _, _ = littered
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".a.tmp").write_text("precious")
    (ended.path / "more").symlink_to(tmp_path / "mine")
    remove(removable(results, archived=True))
    assert (tmp_path / "mine" / ".a.tmp").exists()


def test_what_cannot_be_removed_is_one_sentence(littered, results, monkeypatch):
    def fail(*_arguments, **_settings):
        raise PermissionError(13, "Permission denied", "that file")

    monkeypatch.setattr("pathlib.Path.unlink", fail)
    with pytest.raises(BenchError, match="^that file cannot be removed: Permission denied$"):
        remove([item for item in removable(results) if item.path.is_file()])
