"""What PostgreSQL alone can do to a store: refuse, hang up, order text in its own way, be used by several at once."""

import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from bench.errors import BenchError, DamagedFile
from bench.storage import database
from bench.storage.database import NoStore
from bench.storage.store import Store
from bench.storage.verify import database_damage
from bench.utils.files import read_record, write_record

from ..cli.conftest import bench, suite
from .conftest import contents, empty
from .postgresql import PASSWORD

__all__ = ["bench", "suite"]

NUMBERS = count()


@pytest.fixture
def store_url(server):
    """The URL of an empty database."""
    with server.database() as name:
        yield server.url(name)


@pytest.fixture
def role(server):
    """Make a role that may connect, and nothing else; return its name."""
    name = f"role{next(NUMBERS)}"
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    yield name
    server.execute(f"DROP ROLE {name}")


def sentence(url, **how):
    """Return why a store cannot be opened, which has to be one sentence without the password."""
    with pytest.raises(BenchError) as caught:
        Store(url, **how)
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    assert PASSWORD not in said
    assert "\n" not in said
    return said


# --- what cannot be opened -------------------------------------------------------------------------------------------


def test_no_server(server):
    url = server.url("runs").replace(str(server.port), "1")
    assert sentence(url).startswith("the postgresql store 127.0.0.1/runs cannot be used: connection ")
    assert "Connection refused" in sentence(url)
    url = url.replace("127.0.0.1", "no-such-host.invalid")
    assert sentence(url).startswith("the postgresql store no-such-host.invalid/runs cannot be used: ")


def test_no_database(server):
    assert sentence(server.url("missing")).endswith('database "missing" does not exist')


def test_a_wrong_password(server):
    url = server.url("postgres", password="hunter2")
    assert sentence(url).endswith('password authentication failed for user "bench"')
    assert "hunter2" not in sentence(url)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("no_option=1", 'invalid connection option "no_option"'),
        ("connect_timeout=soon", "the database's URL is invalid"),
        ("sslmode=require", "server does not support SSL, but SSL was required"),
        ("sslmode=s3cret/@:word&password=s3cret/@:word", '"***"'),
    ],
)
def test_a_wrong_option(store_url, query, said):
    assert said in sentence(f"{store_url}?{query}")


def test_a_server_that_does_not_answer():
    """One that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://me:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@127.0.0.1"
        assert "timeout" in sentence(f"{url}:{silent.getsockname()[1]}/runs?connect_timeout=2")


def test_no_right_to_create_tables(server, store_url, role):
    name = database.make_url(store_url).database
    server.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)  # as it is since PostgreSQL 15
    assert sentence(server.url(name, role)).endswith("cannot be used: permission denied for schema public")
    with pytest.raises(NoStore):
        Store(server.url(name, role), create=False)
    with Store(store_url):
        pass
    assert sentence(server.url(name, role)).endswith("cannot be used: permission denied for table alembic_version")


def test_who_may_only_read_can_report(server, store_url, role, make_run):
    folder, name = make_run(), database.make_url(store_url).database
    with Store(store_url) as store:
        store.ingest(folder)
    server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", name)
    with Store(server.url(name, role), create=False) as store:
        assert len(store.runs()) == 1
        with pytest.raises(BenchError, match="cannot be used: permission denied for table run"):
            store.ingest(folder)
    server.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    with Store(server.url(name, role), create=False) as store:
        assert len(store.runs()) == 1
        with pytest.raises(BenchError, match="cannot execute .* in a read-only transaction"):
            store.ingest(folder)
    server.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}", name)


def test_no_schema(server, store_url):
    server.execute("DROP SCHEMA public", database.make_url(store_url).database)
    assert sentence(store_url).endswith("no schema has been selected to create in")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_label(server, encoding):
    with server.database(f"ENCODING '{encoding}' LOCALE 'C'") as name:
        assert sentence(server.url(name)).endswith(f"has the encoding {encoding}; create a database with UTF8")


def test_no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for url in ("postgresql+psycopg://me:s3cret@host/x", "postgresql://me:s3cret@host/x"):
        assert sentence(url) == (
            "the database's URL needs the Python package 'psycopg', which is not installed; "
            "pip install 'robust-overfitting-bench[postgresql]'"
        )


def test_a_url_without_driver_and_one_with_options_lead_to_the_same(server, store_url):
    with Store(store_url.replace("+psycopg", "")) as store:
        assert store.describe().endswith("0 runs")
    url = f"postgresql+psycopg:///{database.make_url(store_url).database}?host=127.0.0.1&port={server.port}&user=bench"
    with Store(f"{url}&password={PASSWORD}", create=False) as store:
        assert store.describe().endswith("0 runs")
    assert "***" not in sentence(f"{url}&password=hunter2")
    assert "hunter2" not in sentence(f"{url}&password=hunter2")


# --- what it holds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["LOCALE_PROVIDER icu ICU_LOCALE 'en-US'", "LOCALE 'C'"])
def test_text_has_the_same_order_under_every_collation(server, make_run, results, options):
    names = [("b", "x"), ("B", "x"), ("a", "y"), ("a", "Y"), ("a-b", "z"), ("ab", "z"), ("a", "ä"), ("a", "对抗")]
    folders = [make_run(method=method, label=label, params={"label": label}) for method, label in names]
    with Store.of(results) as store:
        for folder in folders:
            store.ingest(folder)
        expected = store.list_runs()
    assert [row["method"] for row in expected] == [label for _, label in sorted(names)]
    with ExitStack() as stack:
        try:
            name = stack.enter_context(server.database(options))
        except DBAPIError as error:
            pytest.skip(f"this server has no such collation: {database.first_line(error)}")
        store = stack.enter_context(Store(server.url(name)))
        for folder in reversed(folders):
            store.ingest(folder)
        assert store.list_runs() == expected
        assert [(run.method, run.label) for run in store.runs()] == sorted(names)
        with pytest.raises(BenchError, match="such as B-seed0-.* and b-seed0-"):
            store.show_run("b")


def test_what_a_column_cannot_hold_is_damage_of_that_folder(make_run, store):
    good, bad = make_run(seed=0), make_run(seed=1)
    store.ingest(good)
    cell = read_record(bad.path / "cell.json")
    for change in ({"suite": "s" * 101}, {"seed": 2**31}, {"suite": "nul\0"}):
        write_record(bad.path / "cell.json", cell | {"cell": cell["cell"] | change})
        with pytest.raises(DamagedFile, match=f"{bad.path.name} has a value that the database cannot hold: "):
            store.ingest(bad)
    assert [run.seed for run in store.runs()] == [0]


def test_a_reason_with_a_nul(make_run, store):
    store.ingest(make_run(status="failed", done={"reason": "ValueError: a\0b"}))
    assert store.runs()[0].reason == "ValueError: a\ufffdb"


def test_a_column_that_is_gone_is_one_sentence(server, store, store_url):
    server.execute("ALTER TABLE run DROP COLUMN reason", database.make_url(store_url).database)
    with pytest.raises(BenchError, match=r"cannot be used: column run\.reason does not exist"):
        store.runs()


def test_a_damaged_page(server, store, store_url, make_run):
    store.ingest(make_run())
    place = "SELECT pg_relation_filepath('outcome')"
    ((path,),) = server.execute(place, database.make_url(store_url).database)
    server.stop()
    try:
        (server.data / path).write_bytes(b"\xff" * 8192)
    finally:
        server.start()
    (problem,) = database_damage(store.engine)
    assert "cannot be used: invalid page in block 0" in problem
    assert problem.endswith("; drop its tables and run `bench ingest`")
    with pytest.raises(BenchError, match="cannot be used: invalid page in block 0"):
        store.runs()


# --- others that use it ----------------------------------------------------------------------------------------------


@contextmanager
def at_statement(act, part: str):
    """Within, `act` is called once, before the first statement that `part` is in."""
    left = [act]

    def listen(_connection, cursor, statement, *_):
        if part in statement and left:
            left.pop()(cursor)

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    assert not left


def hang_up(server):
    """Return what ends the connection of a cursor."""
    return lambda cursor: server.execute(f"SELECT pg_terminate_backend({cursor.connection.info.backend_pid})")


@pytest.mark.parametrize("part", ["advisory", "DELETE FROM run", "INSERT INTO outcome", "INSERT INTO epoch"])
def test_a_connection_that_breaks_in_between_is_made_again(server, store, make_run, part):
    with at_statement(hang_up(server), part):
        store.ingest(make_run())
    assert len(store.show_run("pgd-at")["outcomes"]) == 6


def test_a_connection_that_broke_unused_is_made_again(server, store, make_run):
    store.ingest(make_run())
    assert server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> current_database()")
    assert len(store.runs()) == 1


def test_a_server_that_goes_away_is_one_sentence_until_it_is_back(server, store, make_run):
    folder = make_run()
    server.stop()
    try:
        for ask in (store.runs, store.list_runs, store.describe, lambda: store.ingest(folder)):
            with pytest.raises(BenchError, match=r"^the postgresql store 127.0.0.1/test\d+ cannot be used: conn"):
                ask()
        assert "cannot be used" in database_damage(store.engine)[0]
    finally:
        server.start()
    store.ingest(folder)
    assert len(store.runs()) == 1


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_transaction_that_was_in_the_way_is_tried_again(store, make_run, state):
    def give_way(_cursor):
        raise OperationalError("INSERT", {}, type("Orig", (Exception,), {"sqlstate": state})("deadlock detected"))

    with at_statement(give_way, "INSERT INTO run"):
        store.ingest(make_run())
    assert len(store.runs()) == 1


def test_two_that_wait_for_each_other(store, store_url, make_run):
    """A deadlock with one who does not know of our lock: whoever is told to give way tries again."""
    folder = make_run()
    store.ingest(folder)
    engine, held, waits = create_engine(store_url), threading.Event(), threading.Event()

    def other():
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '1min'")  # the other side finds out
            connection.exec_driver_sql("LOCK TABLE protocol")
            held.set()
            waits.wait(30)
            connection.exec_driver_sql("LOCK TABLE run")

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(30)
    with at_statement(lambda _cursor: waits.set(), "EXISTS"):
        store.ingest(folder)
    thread.join(30)
    engine.dispose()
    assert len(store.runs()) == 1


def test_a_writer_that_waits_too_long_is_one_sentence(store, store_url, make_run, monkeypatch):
    reading, writing = database.BEGIN["postgresql"]
    monkeypatch.setitem(database.BEGIN, "postgresql", (reading, writing.replace("30s", "50ms")))
    folder = make_run()
    with Store(store_url) as other, other._writing.begin():
        with pytest.raises(BenchError, match="cannot be used: canceling statement due to lock timeout"):
            store.ingest(folder)
        assert store.runs() == []  # whoever only reads does not wait
    store.ingest(folder)
    assert len(store.runs()) == 1


def test_a_reader_sees_one_state(store, store_url, make_run):
    """Runs, checkpoints and outcomes come from several queries, between which a writer may replace the run."""
    folder = make_run()
    store.ingest(folder)
    before = store.show_run("pgd-at")

    def replace(_cursor):
        folder.outcome_path("last", "clean-0").unlink()
        folder.finish("failed")
        with Store(store_url) as other:
            other.ingest(folder)

    with at_statement(replace, "FROM epoch"):
        assert store.show_run("pgd-at") == before
    assert len(store.show_run("pgd-at")["outcomes"]) == 5


def test_reading_writes_nothing(store):
    with pytest.raises(InternalError, match="read-only transaction"), store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM run")


SETTINGS = ("transaction_isolation", "synchronous_commit")


def test_writers_that_wait_see_what_the_one_before_wrote(server, store_url):
    """Whatever the server's default: a snapshot from before the wait would make them fail."""
    name = database.make_url(store_url).database
    server.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with Store(store_url) as store:
        for engine, expected in (
            (store._writing, ("read committed", "off")),
            (store.engine, ("repeatable read", "on")),
        ):
            with engine.begin() as connection:
                shown = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in SETTINGS]
                assert tuple(shown) == expected


# --- commands --------------------------------------------------------------------------------------------------------


def test_every_command_on_postgresql(bench, suite, store_url, tmp_path):
    results = tmp_path / "results"
    said = []

    def call(*words):
        result = bench(*words, "--results", results, "--store", store_url)
        said.append(result.out + result.err)
        return result

    assert call("doctor").code == 0
    assert call("report").code == 4
    assert call("run", suite({"epochs: 2": "epochs: 1"})).code == 0
    table, rows = call("report").out, contents(store_url)
    assert "PGD-AT" in table
    doctor = call("doctor")
    assert doctor.code == 0
    assert "1 in the database, 1 folders: all digests and accuracies match" in doctor.out
    assert not list(results.glob("bench.sqlite*"))
    empty(store_url)
    assert "is not in the database; `bench ingest` imports it again" in call("doctor").out
    assert call("ingest").out == "1 of 1 run folder imported\n"
    assert contents(store_url) == rows
    assert call("report").out == table
    name = call("list", "runs", "--json").out.split('"name": "')[1].split('"')[0]
    assert call("show", "run", name).code == 0
    assert bench("ingest", "--results", results).code == 0
    assert contents(f"sqlite:///{results / 'bench.sqlite'}") == rows
    assert bench("report", "--results", results).out == table
    assert not any(PASSWORD in text for text in said)
