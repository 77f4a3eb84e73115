import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import ProgrammingError

import bench.storage
from bench.errors import BenchError, NothingMeasured
from bench.storage import database
from bench.storage.database import NoStore, open_database, reported
from bench.storage.schema import Base
from bench.storage.store import Store
from bench.storage.verify import database_damage

from .conftest import contents, execute

HEAD = database.REVISION

REVISION = "SELECT version_num FROM alembic_version"


@pytest.fixture
def url(store_url):
    """The URL of an up-to-date store without runs."""
    with Store(store_url):
        pass
    return store_url


@pytest.fixture
def path(results):
    """The file of an up-to-date store without runs."""
    with Store.of(results):
        pass
    return results / "bench.sqlite"


# --- the schema ------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_models_state(url):
    engine = open_database(url, create=False)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
    assert execute(url, REVISION) == [(HEAD,)]


def test_the_newest_revision_is_the_one_that_needs_no_migration():
    config = Config()
    config.set_main_option("script_location", database.MIGRATIONS)
    assert ScriptDirectory.from_config(config).get_current_head() == database.REVISION


NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{head}"


def upgrade():
    with op.batch_alter_table("run") as batch:
        batch.add_column(sa.Column("remark", sa.Text()))
        batch.alter_column("suite", existing_type=sa.String(100), nullable=True)
    {more}
"""


@pytest.fixture
def newer_bench(tmp_path, monkeypatch):
    """Make the package one migration newer; the migration rebuilds the table of runs."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(bench.storage.__file__).parent / "migrations", folder)

    def upgrade(more: str = "") -> None:
        (folder / "versions" / "second.py").write_text(NEXT.format(head=HEAD, more=more))
        monkeypatch.setattr(database, "MIGRATIONS", str(folder))
        monkeypatch.setattr(database, "REVISION", "9001")

    return upgrade


def test_an_older_store_is_migrated(make_run, store_url, newer_bench):
    with Store(store_url) as store:
        store.ingest(make_run())
    newer_bench()
    with Store(store_url) as store:
        shown = store.show_run("pgd-at")  # a rebuilt table of runs has lost none of what belongs to them
        assert database_damage(store.engine) == []
    assert (len(shown["curve"]), len(shown["checkpoints"]), len(shown["outcomes"])) == (2, 2, 6)
    assert execute(store_url, REVISION) == [("9001",)]
    assert execute(store_url, "SELECT remark FROM run") == [(None,)]


def test_of_an_older_file_a_copy_is_kept(make_run, results, newer_bench):
    with Store.of(results) as store:
        store.ingest(make_run())
    newer_bench()
    with Store.of(results, create=False) as store:  # to read only: the copy in memory is migrated
        assert len(store.runs()) == 1
    assert [path.name for path in results.glob("bench.sqlite*")] == ["bench.sqlite"]
    with Store.of(results):
        pass
    copy = f"sqlite:///{results}/bench.sqlite.schema-{HEAD}"
    assert execute(copy, REVISION) == [(HEAD,)]
    assert execute(copy, "SELECT count(*) FROM outcome") == [(6,)]
    with Store.of(results):  # nothing is left to migrate
        pass
    assert len(list(results.glob("*.schema-*"))) == 1


@pytest.mark.parametrize("first", ["0001", "0002"])
def test_a_store_of_an_earlier_schema_is_brought_up_to_date(store_url, results, first):
    config = Config()
    config.set_main_option("script_location", database.MIGRATIONS)
    engine = create_engine(store_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, first)
    engine.dispose()
    with Store(store_url) as store:
        assert store.runs() == []
        assert database_damage(store.engine) == []
    assert execute(store_url, REVISION) == [(HEAD,)]
    assert execute(store_url, "SELECT train_pflop, incidents FROM run") == []
    assert len(list(results.glob(f"*.schema-{first}*"))) == store_url.startswith("sqlite")


def test_a_migration_that_fails_changes_nothing(make_run, store_url, results, newer_bench):
    with Store(store_url) as store:
        store.ingest(make_run())
    before = contents(store_url)
    newer_bench('raise RuntimeError("a bug")')
    for _ in range(2):
        with pytest.raises(RuntimeError):
            Store(store_url)
    assert execute(store_url, REVISION) == [(HEAD,)]
    engine = create_engine(store_url)
    assert "remark" not in {column["name"] for column in inspect(engine).get_columns("run")}
    engine.dispose()
    assert contents(store_url) == before
    copies = list(results.glob(f"*.schema-{HEAD}*"))
    assert len(copies) == (2 if store_url.startswith("sqlite") else 0)  # no copy replaces another


def test_foreign_keys_are_on_after_a_migration(newer_bench, path):
    newer_bench()
    engine = open_database(f"sqlite:///{path}", create=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_newer_store_is_refused_and_left_alone(url, results):
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BenchError, match=r"written by a newer version of bench \(schema 9999\); upgrade bench"):
        Store(url)
    assert execute(url, REVISION) == [("9999",)]
    assert list(results.glob("*.schema-*")) == []


@pytest.mark.parametrize("names", [["protocol"], ["alembic_version", "song"]], ids=" ".join)
def test_a_database_of_something_else_is_refused(store_url, names):
    for name in names:
        execute(store_url, f"CREATE TABLE {name} (version_num TEXT)")
        execute(store_url, f"INSERT INTO {name} VALUES ('a song')")
    for create in (True, False):
        with pytest.raises(BenchError, match="has tables of another program; choose another database"):
            Store(store_url, create=create)
    engine = create_engine(store_url)
    assert sorted(inspect(engine).get_table_names()) == names
    engine.dispose()


@pytest.mark.slow
def test_opening_is_fast_where_nothing_is_migrated(url):
    started = time.process_time()
    with Store(url):
        pass
    assert time.process_time() - started < 0.1


def test_a_store_in_memory_is_migrated_without_a_copy(make_run, newer_bench, monkeypatch):
    with Store("sqlite:///:memory:") as store:
        store.ingest(make_run())
        assert store.describe() == "the sqlite store :memory:, 1 run"
    engine = open_database("sqlite://", create=True)
    assert database.name_of(engine) == "the sqlite store in memory"
    newer_bench()
    database._migrate(engine, HEAD)
    assert database._version(engine) == "9001"


# --- where there is none ---------------------------------------------------------------------------------------------


def test_no_store_yet(results):
    with pytest.raises(
        NoStore, match=r"there is no database .*bench\.sqlite yet; `bench run SUITE` creates it"
    ) as caught:
        Store.of(results, create=False)
    assert isinstance(caught.value, NothingMeasured)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.exit_code == 4
    assert list(results.iterdir()) == []


def test_an_empty_database_is_no_store_yet(store_url, results):
    (results / "bench.sqlite").touch()
    with pytest.raises(NoStore, match="is empty; `bench run SUITE` fills it"):
        Store(store_url, create=False)
    with Store(store_url) as store:
        assert store.runs() == []


@pytest.mark.parametrize("name", ["a b%20c?d#e.sqlite", "ü.sqlite", "x:y@z.sqlite"])
def test_any_path_will_do(tmp_path, name):
    results = tmp_path / name
    results.mkdir()
    with Store.of(results) as store:
        assert name in store.describe()
    assert (results / "bench.sqlite").is_file()


# --- what cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("results/bench.sqlite", "the database's URL is invalid; write sqlite:///results"),
        ("", "the database's URL is invalid"),
        ("nodatabase://me:secret@host/x", "the database's URL is invalid"),
        ("postgresql+psycopg://me:secret@host:port/x", "the database's URL is invalid"),
        ("oracle+cx_oracle://me:secret@host/x", "needs the Python package 'cx_Oracle', which is not installed"),
        ("sqlite:////no/such/folder/x.sqlite", "x.sqlite cannot be created: there is no folder /no/such/folder"),
        ("sqlite:////", "the sqlite store / cannot be used: unable to open database file"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_sentence_without_the_password(url, sentence):
    with pytest.raises(BenchError) as caught:
        Store(url)
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "text.sqlite"
    path.write_text("no database " * 100)
    with pytest.raises(BenchError, match=r"text\.sqlite cannot be used: file is not a database"):
        Store(f"sqlite:///{path}")


def test_a_writer_waits_for_another_one(path):
    engine = open_database(f"sqlite:///{path}", create=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_several_may_make_the_same_file_at_once(tmp_path):
    def make(number):
        for turn in range(30):
            engine = database._engine(f"sqlite:///{tmp_path}/{turn}.sqlite")
            together.wait(30)
            with engine.connect() as connection:
                found = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            engine.dispose()
            assert found == "wal"

    together = Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, range(4))) == [None] * 4


def test_a_locked_database_is_one_sentence(make_run, results, path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    folder = make_run()
    with Store.of(results) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BenchError, match=r"bench\.sqlite cannot be used: database is locked"):
            store.ingest(folder)
        assert store.runs() == []  # whoever only reads does not wait
        other.execute("ROLLBACK")
        store.ingest(folder)


def test_the_password_is_kept_out_of_what_the_driver_says():
    class Engine:
        class dialect:
            name = "postgresql"

        url = database.make_url("postgresql://me:secret@host/runs")

    with pytest.raises(BenchError) as caught, reported(Engine):
        raise database.OperationalError("SELECT", {}, Exception("no: password=secret\nmore"))
    assert str(caught.value) == "the postgresql store host/runs cannot be used: no: password=***"


def test_a_wrong_statement_keeps_its_traceback(url):
    engine = open_database(url, create=False)
    with pytest.raises(ProgrammingError), reported(engine):
        raise ProgrammingError("SELEKT", {}, Exception("syntax"))
    engine.dispose()
