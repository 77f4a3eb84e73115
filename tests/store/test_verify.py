"""A store that lies is found out, and so is a folder."""

import shutil
import sqlite3
from contextlib import closing, suppress

import pytest

from bench.errors import DamagedFile
from bench.execution.verify import damage_of
from bench.execution.worker import Job, execute
from bench.run_folder import RunFolder
from bench.spec import load_suite
from bench.store.store import Store
from bench.store.verify import MEND_RUN, MEND_STORE, verify


@pytest.fixture(scope="module")
def original(tmp_path_factory, request):
    """A results folder with two runs and their store."""
    path = tmp_path_factory.mktemp("original")
    text = (
        request.getfixturevalue("tiny_suite").replace("seeds: [0]", "seeds: [0, 1]").replace("epochs: 2", "epochs: 1")
    )
    (path / "suite.yaml").write_text(text)
    results = path / "results"
    results.mkdir()
    with Store.of(results) as store:
        for cell in load_suite(str(path / "suite.yaml")).cells:
            assert execute(Job(cell, results, ("cpu",), None, 1)) == "finished"
            store.ingest(RunFolder.of(cell, results))
    return results


@pytest.fixture
def ran(original, tmp_path):
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "results")


def execute_sql(results, statement):
    with closing(sqlite3.connect(results / "bench.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


def problems(results):
    with Store.of(results, create=False) as store:
        return verify(store, results).problems


def test_a_sound_store(ran):
    with Store.of(ran, create=False) as store:
        verdict = verify(store, ran)
    assert (verdict.runs, verdict.folders, verdict.elsewhere, verdict.problems) == (2, 2, 0, [])


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE outcome SET accuracy = accuracy + 0.01 WHERE checkpoint = 'best'", "is not that of its 500 verdicts"),
        ("UPDATE outcome SET right = right + 1 WHERE key LIKE 'clean%'", "is not that of its 500 verdicts"),
        ("UPDATE outcome SET correct = zeroblob(63)", "is not that of its 500 verdicts"),
        ("UPDATE run SET method = 'fomo'", "is not what the folder holds"),
        ("UPDATE epoch SET test_robust = 0.9", "is not what the folder holds"),
        ("UPDATE checkpoint SET sha256 = '0'", "is not what the folder holds"),
        ("UPDATE protocol SET content = '{}'", "its protocol is not the one of its fingerprint"),
        ("DELETE FROM outcome WHERE checkpoint = 'last'", "is not what the folder holds"),
        ("DELETE FROM run WHERE seed = 1", "a row in 'epoch' whose 'run' is missing; delete it and run `bench ingest`"),
    ],
)
def test_a_store_that_was_changed(ran, statement, sentence):
    execute_sql(ran, statement)
    found = problems(ran)
    assert any(sentence in problem for problem in found), found
    assert all("bench ingest" in problem for problem in found)


def test_a_run_that_was_not_taken_in(ran):
    with closing(sqlite3.connect(ran / "bench.sqlite")) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM run WHERE seed = 1")
        connection.commit()
    (problem,) = problems(ran)
    assert problem.startswith("runs/pgd-at-seed1-")
    assert problem.endswith(f"is not in the store; {MEND_STORE}")


def test_a_damaged_folder(ran):
    path = next(ran.glob("runs/*/checkpoints/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(ran)
    assert problem.startswith(f"{path} is damaged: its bytes do not match its SHA-256")
    assert problem.endswith(MEND_RUN)


def test_a_run_that_goes_on_may_lag_behind(ran):
    (next(ran.glob("runs/*-seed1-*")) / "done.json").unlink()
    assert problems(ran) == []


def test_runs_whose_folders_are_elsewhere_are_counted(ran):
    shutil.rmtree(next(ran.glob("runs/*-seed1-*")))
    with Store.of(ran, create=False) as store:
        verdict = verify(store, ran)
    assert (verdict.elsewhere, verdict.problems) == (1, [])


def test_a_damaged_database(ran):
    path = ran / "bench.sqlite"
    execute_sql(ran, "PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[3 * 4096 : 4 * 4096] = bytes(4096)
    path.write_bytes(data)
    with Store.of(ran, create=False) as store:
        (problem,) = verify(store, ran).problems
    assert "malformed" in problem or "is damaged" in problem
    assert problem.endswith("; delete it and run `bench ingest`")


@pytest.mark.parametrize("part", [0, 0.5, None], ids=["emptied", "halved", "flipped"])
def test_no_damage_reaches_a_figure(ran, part):
    """Each file of a folder in turn: taken in anew, the folder is refused, or its rows are what they were."""
    folder = RunFolder(next(ran.glob("runs/*-seed0-*")))
    name = folder.cell()["fingerprint"]
    with Store.of(ran, create=False) as store:
        before = store.show_run(name)
    for path in sorted(path for path in folder.path.rglob("*") if path.is_file()):
        data = path.read_bytes()
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4] if data else []) + data[middle + 1 :]
        path.write_bytes(flipped if part is None else data[: int(part * len(data))])
        with Store("sqlite:///:memory:") as fresh:
            with suppress(DamagedFile):
                fresh.ingest(folder)
            if fresh.runs():
                assert fresh.show_run(name) == before
            else:
                assert damage_of(folder)[0].startswith(f"{path} is damaged")
        path.write_bytes(data)
