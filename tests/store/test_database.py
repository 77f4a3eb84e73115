import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import ProgrammingError

import bench.store
from bench.errors import BenchError, NothingMeasured
from bench.store import database
from bench.store.database import NoStore, open_database, reported
from bench.store.schema import Base
from bench.store.store import Store


def execute(path: Path, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(statement).fetchall()
        connection.commit()
        return rows


@pytest.fixture
def path(results):
    """The file of an up-to-date store without runs."""
    with Store.of(results):
        pass
    return results / "bench.sqlite"


# --- the schema ------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_models_state(path):
    engine = open_database(f"sqlite:///{path}", create=False)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []
    assert execute(path, "SELECT version_num FROM alembic_version") == [(database.REVISION,)]


def test_the_newest_revision_is_the_one_that_needs_no_migration():
    config = Config()
    config.set_main_option("script_location", database.MIGRATIONS)
    assert ScriptDirectory.from_config(config).get_current_head() == database.REVISION


HEAD = database.REVISION

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
    shutil.copytree(Path(bench.store.__file__).parent / "migrations", folder)

    def upgrade(more: str = "") -> None:
        (folder / "versions" / "second.py").write_text(NEXT.format(head=HEAD, more=more))
        monkeypatch.setattr(database, "MIGRATIONS", str(folder))
        monkeypatch.setattr(database, "REVISION", "9001")

    return upgrade


def test_an_older_store_is_migrated_and_a_copy_kept(make_run, results, newer_bench):
    with Store.of(results) as store:
        store.ingest(make_run())
    path = results / "bench.sqlite"
    newer_bench()
    with Store.of(results, create=False) as store:
        shown = store.show_run("pgd-at")  # a rebuilt table of runs has lost none of what belongs to them
    assert (len(shown["curve"]), len(shown["checkpoints"]), len(shown["outcomes"])) == (2, 2, 6)
    assert execute(path, "SELECT version_num FROM alembic_version") == [("9001",)]
    assert execute(path, "SELECT remark FROM run") == [(None,)]
    copy = results / f"bench.sqlite.schema-{HEAD}"
    assert execute(copy, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert execute(copy, "SELECT count(*) FROM outcome") == [(6,)]
    with Store.of(results):  # nothing is left to migrate
        pass
    assert len(list(results.glob("*.schema-*"))) == 1


def test_a_store_of_the_first_schema_is_brought_up_to_date(results):
    path = results / "bench.sqlite"
    config = Config()
    config.set_main_option("script_location", database.MIGRATIONS)
    with create_engine(f"sqlite:///{path}").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with Store.of(results, create=False) as store:
        assert store.runs() == []
    assert execute(path, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert execute(path, "SELECT train_pflop FROM run") == []
    assert len(list(results.glob("*.schema-0001*"))) == 1


def test_a_migration_that_fails_changes_nothing(make_run, results, newer_bench):
    with Store.of(results) as store:
        store.ingest(make_run())
    path = results / "bench.sqlite"
    newer_bench('raise RuntimeError("a bug")')
    for _ in range(2):
        with pytest.raises(RuntimeError):
            Store.of(results)
    assert execute(path, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert not any("remark" in column for column in execute(path, "PRAGMA table_info(run)"))
    assert execute(path, "SELECT count(*) FROM outcome") == [(6,)]
    assert len(list(results.glob(f"*.schema-{HEAD}*"))) == 2  # no copy replaces another


def test_foreign_keys_are_on_after_a_migration(newer_bench, path):
    newer_bench()
    engine = open_database(f"sqlite:///{path}", create=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_newer_store_is_refused_and_left_alone(path):
    execute(path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BenchError, match=r"made by a newer version of bench \(schema 9999\); upgrade bench"):
        Store(f"sqlite:///{path}")
    assert execute(path, "SELECT version_num FROM alembic_version") == [("9999",)]
    assert len(list(path.parent.iterdir())) == 1


def test_a_database_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    execute(path, "CREATE TABLE protocol (song TEXT)")
    with pytest.raises(BenchError, match="holds tables that are not of bench; name another database"):
        Store(f"sqlite:///{path}")
    assert execute(path, "SELECT name FROM sqlite_master") == [("protocol",)]


def test_opening_is_fast_where_nothing_is_migrated(results, path):
    started = time.process_time()
    with Store.of(results):
        pass
    assert time.process_time() - started < 0.1


def test_a_store_in_memory_is_migrated_without_a_copy(make_run, newer_bench, monkeypatch):
    with Store("sqlite:///:memory:") as store:
        store.ingest(make_run())
        assert store.describe() == "the sqlite store :memory:, 1 runs"
    engine = open_database("sqlite://", create=True)
    assert database.name_of(engine) == "the sqlite store in memory"
    newer_bench()
    database._migrate(engine, HEAD)
    assert database._version(engine) == "9001"


# --- where there is none ---------------------------------------------------------------------------------------------


def test_no_store_yet(results):
    with pytest.raises(NoStore, match=r"there is no store .*bench\.sqlite yet; `bench run SUITE` makes one") as caught:
        Store.of(results, create=False)
    assert isinstance(caught.value, NothingMeasured)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.exit_code == 4
    assert list(results.iterdir()) == []


def test_an_empty_database_is_no_store_yet(tmp_path):
    path = tmp_path / "empty.sqlite"
    path.touch()
    with pytest.raises(NoStore, match=r"empty\.sqlite is empty"):
        Store(f"sqlite:///{path}", create=False)
    with Store(f"sqlite:///{path}") as store:
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
        ("results/bench.sqlite", "the store's URL is not one that SQLAlchemy understands; write sqlite:///results"),
        ("", "the store's URL is not one that SQLAlchemy understands"),
        ("nodatabase://me:secret@host/x", "the store's URL is not one that SQLAlchemy understands"),
        ("postgresql+psycopg://me:secret@host:port/x", "the store's URL is not one that SQLAlchemy understands"),
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
    engine = open_database(f"sqlite:///{path}", create=False)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


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


def test_a_wrong_statement_keeps_its_traceback(path):
    engine = open_database(f"sqlite:///{path}", create=False)
    with pytest.raises(ProgrammingError), reported(engine):
        raise ProgrammingError("SELEKT", {}, Exception("syntax"))
