"""A store that lies is found out, and so is a folder."""

import shutil
from contextlib import suppress

import pytest
from sqlalchemy import create_engine, make_url

from bench.config.suite import load_suite
from bench.errors import DamagedFile
from bench.execution.worker import Job, execute
from bench.storage.ingest import ingest_results
from bench.storage.run_folder import RunFolder
from bench.storage.store import Store
from bench.storage.verify import REPAIR_RUN, REPAIR_STORE, folder_damage, verify
from bench.utils.files import read_record, write_record

from .conftest import empty


@pytest.fixture(scope="module")
def original(tmp_path_factory, request):
    """A results folder with two runs."""
    path = tmp_path_factory.mktemp("original")
    text = (
        request.getfixturevalue("tiny_suite").replace("seeds: [0]", "seeds: [0, 1]").replace("epochs: 2", "epochs: 1")
    )
    (path / "suite.yaml").write_text(text)
    results = path / "results"
    results.mkdir()
    for cell in load_suite(str(path / "suite.yaml")).cells:
        assert execute(Job(cell, results, ("cpu",), None, 1)) == "finished"
    return results


@pytest.fixture
def ran(original, results, store_url):
    """A copy of it, and its store."""
    shutil.copytree(original, results, dirs_exist_ok=True)
    ingest_results(results, store_url)
    return results


def problems(results, url):
    with Store(url, create=False) as store:
        return verify(store, results).problems


def test_a_sound_store(ran, store_url):
    with Store(store_url, create=False) as store:
        verdict = verify(store, ran)
    assert (verdict.runs, verdict.folders, verdict.elsewhere, verdict.problems) == (2, 2, 0, [])


NO_BITS = {"sqlite": "zeroblob(63)", "postgresql": "decode(repeat('00', 63), 'hex')"}

UNGUARDED = {"sqlite": "PRAGMA foreign_keys = OFF", "postgresql": "SET session_replication_role = replica"}
"""What makes a database forget rows without forgetting those that belong to them."""


def tamper(url, statement):
    kind = make_url(url).get_backend_name()
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(UNGUARDED[kind])
        connection.exec_driver_sql(statement.replace("NO_BITS", NO_BITS[kind]))
    engine.dispose()


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE outcome SET accuracy = accuracy + 0.01 WHERE checkpoint = 'best'", "does not match its 500 images"),
        ('UPDATE outcome SET "right" = "right" + 1 WHERE attack = \'clean\'', "does not match its 500 images"),
        ("UPDATE outcome SET correct = NO_BITS", "does not match its 500 images"),
        ("UPDATE run SET method = 'fomo'", "differs from its folder"),
        ("UPDATE epoch SET test_robust = 0.9", "differs from its folder"),
        ("UPDATE checkpoint SET sha256 = '0'", "differs from its folder"),
        ("UPDATE protocol SET content = '{}'", "its protocol does not match its fingerprint"),
        ("DELETE FROM outcome WHERE checkpoint = 'last'", "differs from its folder"),
        ("DELETE FROM run WHERE seed = 1", "has a row in 'epoch' whose 'run' is missing; "),
        ("DELETE FROM run WHERE seed = 1", "has a row in 'checkpoint' whose 'run' is missing; "),
        ("DELETE FROM checkpoint", "has a row in 'outcome' whose 'checkpoint' is missing; "),
        ("DELETE FROM protocol", "has a row in 'run' whose 'protocol' is missing; "),
    ],
)
def test_a_store_that_was_changed(ran, store_url, statement, sentence):
    tamper(store_url, statement)
    found = problems(ran, store_url)
    assert any(sentence in problem for problem in found), found
    assert all("bench ingest" in problem for problem in found)


@pytest.fixture
def ran_on_postgresql(original, results, server):
    """A copy of the results folder, and its store in PostgreSQL: its URL."""
    shutil.copytree(original, results, dirs_exist_ok=True)
    with server.database() as name:
        ingest_results(results, server.url(name))
        yield server.url(name)


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("ALTER TABLE epoch DROP CONSTRAINT fk_epoch_run", "has no valid constraint 'fk_epoch_run'"),
        (
            "ALTER TABLE epoch DROP CONSTRAINT fk_epoch_run, "
            "ADD CONSTRAINT fk_epoch_run FOREIGN KEY (run) REFERENCES run ON DELETE CASCADE NOT VALID",
            "has no valid constraint 'fk_epoch_run'",
        ),
        ("ALTER TABLE outcome DROP CONSTRAINT pk_outcome", "has no valid constraint 'pk_outcome'"),
        ("DROP TABLE epoch", 'cannot be used: relation "epoch" does not exist'),
    ],
)
def test_what_guards_the_rows_is_missing(ran_on_postgresql, results, statement, sentence):
    tamper(ran_on_postgresql, statement)
    found = problems(results, ran_on_postgresql)
    assert any(sentence in problem for problem in found), found
    assert all(problem.endswith("; drop its tables and run `bench ingest`") for problem in found)


def test_a_run_that_was_not_taken_in(ran, store_url):
    gone = next(ran.glob("runs/*-seed1-*"))
    kept = gone.rename(ran / "elsewhere")
    empty(store_url)
    ingest_results(ran, store_url)
    kept.rename(gone)
    (problem,) = problems(ran, store_url)
    assert problem.startswith("runs/pgd-at-seed1-")
    assert problem.endswith(f"is not in the database; {REPAIR_STORE}")


def test_a_damaged_folder(ran, store_url):
    path = next(ran.glob("runs/*/checkpoints/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(ran, store_url)
    assert problem.startswith(f"{path} is damaged: its bytes do not match its SHA-256")
    assert problem.endswith(REPAIR_RUN)


def test_runs_of_different_images_are_named(ran, store_url):
    path = next(ran.glob("runs/*-seed1-*")) / "cell.json"
    record = read_record(path)
    test = record["environment"]["data"]["test"]
    record["environment"]["data"]["test"] = "0" * 64
    write_record(path, record)
    different, outdated = problems(ran, store_url)
    assert "differs from its folder" in outdated
    assert f"used different data: test images ({test[:12]}: pgd-at-seed0-" in different
    assert "; 000000000000: pgd-at-seed1-" in different


def test_a_run_that_goes_on_may_lag_behind(ran, store_url):
    (next(ran.glob("runs/*-seed1-*")) / "done.json").unlink()
    assert problems(ran, store_url) == []


def test_runs_whose_folders_are_elsewhere_are_counted(ran, store_url):
    shutil.rmtree(next(ran.glob("runs/*-seed1-*")))
    with Store(store_url, create=False) as store:
        verdict = verify(store, ran)
    assert (verdict.elsewhere, verdict.problems) == (1, [])


def test_a_damaged_database(original, results):
    shutil.copytree(original, results, dirs_exist_ok=True)
    ingest_results(results, None)
    path = results / "bench.sqlite"
    assert not path.with_name("bench.sqlite-wal").exists()
    data = bytearray(path.read_bytes())
    data[3 * 4096 : 4 * 4096] = bytes(4096)
    path.write_bytes(data)
    (problem,) = problems(results, f"sqlite:///{path}")
    assert "malformed" in problem or "is damaged" in problem
    assert problem.endswith("; delete it and run `bench ingest`")


@pytest.mark.parametrize("part", [0, 0.5, None], ids=["emptied", "halved", "flipped"])
def test_no_damage_reaches_a_figure(original, results, part):
    """Each file of a folder in turn: taken in anew, the folder is refused, or its rows are what they were."""
    shutil.copytree(original, results, dirs_exist_ok=True)
    folder = RunFolder(next(results.glob("runs/*-seed0-*")))
    name = folder.cell()["fingerprint"]
    with Store("sqlite:///:memory:") as store:
        store.ingest(folder)
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
                assert folder_damage(folder)[0].startswith(f"{path} is damaged")
        path.write_bytes(data)
