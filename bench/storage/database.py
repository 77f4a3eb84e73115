"""Opening the database: SQLite and PostgreSQL made safe for several processes, a schema that is brought up to date."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import StaticPool

from bench.errors import BenchError, NothingMeasured
from bench.utils.files import canonical_json

REVISION = "0004"
"""The newest migration. A store that states it needs no other look, and Alembic is not even imported."""

MIGRATIONS = "bench.storage:migrations"  # package and folder, so that it is found wherever the package is installed

BUSY_SECONDS = 30  # how long a writer waits for another one

CONNECT_SECONDS = 10  # how long a server may take to answer, unless the URL says otherwise

LOCK = 0x62656E6368  # "bench": the number of the lock that PostgreSQL's writers take

EXAMPLES = "sqlite:///results/bench.sqlite or postgresql+psycopg://user@host/database"

INSTALL = "pip install 'robust-overfitting-bench[postgresql]'"

WRITING = {"writing": True}
"""Execution options of a transaction that writes. It waits for other writers when it begins, so that there is one at a
time: what it reads is still so when it writes."""

ENVIRONMENT = ("42501", "3F000", "42P01", "42703", "25006", "XX")
"""SQLSTATEs, or their beginnings, of errors that users can fix: missing rights, no schema for tables, a missing table
or column, a read-only server, damaged pages."""

AGAIN = ("40001", "40P01")
"""SQLSTATEs of a conflict with another transaction: serialization failure, deadlock."""


REBUILD = "if it is a store, delete it and run `bench ingest`, which rebuilds it from the run folders"

DAMAGED = {"SQLITE_NOTADB", "SQLITE_CORRUPT"}

COPIES = 5  # of a file that changes while it is copied


class NoStore(NothingMeasured, FileNotFoundError):
    """There is no store yet."""


class CannotOpen(BenchError):
    """The file of a store cannot be opened: its permissions, or those of its folder, forbid it."""


def open_database(url: str | URL, *, create: bool) -> Engine:
    """Return an engine whose database has the newest schema.

    An empty database gets the schema. An older one is migrated in one transaction, so that a failure changes nothing;
    of an SQLite file a copy is kept beside it.

    If not `create`, the database is to be read only, and an empty one is an error. An SQLite file is copied into
    memory: nothing is written beside it, so that it can be read where nothing may be written.

    Raises:
        NoStore: there is none, and none is to be created.
        CannotOpen: an SQLite file that is only read cannot be opened.
        BenchError: the URL is invalid; or the database cannot be opened, belongs to another program, or is newer.
    """
    engine = _engine(url)
    path = sqlite_file(engine)
    if path is not None and not _exists(path):
        if not create:
            raise NoStore(f"there is no database {path} yet; `bench run SUITE` creates it")
        if not path.parent.is_dir():
            raise BenchError(f"the database {path} cannot be created: there is no folder {path.parent}")
    if path is not None and not create:
        engine = _in_memory(engine, path)
    try:
        with reported(engine):
            _bring_up_to_date(engine, create=create)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _bring_up_to_date(engine: Engine, *, create: bool) -> None:
    tables = _tables(engine)
    content = set(tables) - {"alembic_version"}
    own = "alembic_version" in tables and (not content or "protocol" in content)
    version = _version(engine) if own else None
    if version is None and tables:
        raise BenchError(f"{name_of(engine)} has tables of another program; choose another database")
    if version is None and not create:
        raise NoStore(f"{name_of(engine)} is empty; `bench run SUITE` fills it")
    if version != REVISION:
        _migrate(engine, version)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise BenchError(f"the database {path} cannot be read: {error.strerror}") from None


def name_of(engine: Engine) -> str:
    """Return what to call the database in a sentence, without user and password."""
    path, url = sqlite_file(engine), engine.url
    nowhere = "in memory" if engine.dialect.name == "sqlite" else "at its default place"
    place = path or "/".join(part for part in (url.host, url.database) if part) or nowhere
    return f"the {engine.dialect.name} store {place}"


def sqlite_file(engine: Engine) -> Path | None:
    """Return the file of an SQLite database; None for other databases, and for SQLite without a plain file."""
    name = engine.url.database
    plain = engine.dialect.name == "sqlite" and name and name != ":memory:" and not name.startswith("file:")
    return Path(name) if plain and name else None


@contextmanager
def reported(engine: Engine) -> Iterator[None]:
    """Turn errors of the environment (locked, full, unreachable, not a database) into a BenchError."""
    try:
        yield
    except DatabaseError as error:
        if _is_a_bug(error):
            raise
        cause = first_line(error)
        for secret in _secrets(engine.url):
            cause = cause.replace(secret, "***")
        damaged = getattr(error.orig, "sqlite_errorname", None) in DAMAGED
        raise BenchError(f"{name_of(engine)} cannot be used: {cause}{f'; {REBUILD}' if damaged else ''}") from None


def first_line(error: DBAPIError) -> str:
    """Return the database's message, without the statement and hints."""
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0]


def _is_a_bug(error: DatabaseError) -> bool:
    """Return whether a statement is wrong or a constraint violated: bugs of bench, which keep their traceback."""
    elsewhere = isinstance(error, OperationalError) or type(error) is DatabaseError
    connecting = error.statement is None
    return not (elsewhere or connecting or _sqlstate(error).startswith(ENVIRONMENT))


def may_pass(error: DBAPIError) -> bool:
    """Return whether a retry may succeed: another transaction wrote, or the connection broke."""
    return isinstance(error, IntegrityError) or error.connection_invalidated or _sqlstate(error) in AGAIN


def _sqlstate(error: DBAPIError) -> str:
    """Return the error's code in the SQL standard, empty where the driver knows none."""
    return getattr(error.orig, "sqlstate", None) or ""


def _secrets(url: URL) -> list[str]:
    named = [value for name, value in url.normalized_query.items() if "password" in name]
    return [secret for secret in (str(url.password or ""), *(one for values in named for one in values)) if secret]


# --- the connection --------------------------------------------------------------------------------------------------


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        backend = parsed.get_backend_name()
        engine = create_engine(parsed, json_serializer=canonical_json, **_settings(parsed))
    except (ArgumentError, ValueError, TypeError):  # their text may quote the password
        raise BenchError(f"the database's URL is invalid; write {EXAMPLES}") from None
    except ImportError as error:
        package = error.name or parsed.get_driver_name()
        how = f"; {INSTALL}" if package == "psycopg" else ""
        raise BenchError(
            f"the database's URL needs the Python package '{package}', which is not installed{how}"
        ) from None
    if backend == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    if backend in BEGIN:
        event.listen(engine, "begin", _begin)
    return engine


def _in_memory(engine: Engine, path: Path) -> Engine:
    """Return an engine of the same name on a copy of an SQLite file in memory."""
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        _copy(path, copy)
    except (sqlite3.Error, OSError) as error:
        problem = f"{name_of(engine)} cannot be used: {getattr(error, 'strerror', None) or error}"
        if getattr(error, "sqlite_errorname", None) in DAMAGED:
            raise BenchError(f"{problem}; {REBUILD}") from None
        raise CannotOpen(problem) from None
    copy.isolation_level = None
    copy.execute("PRAGMA foreign_keys = ON")
    reading = create_engine(engine.url, creator=lambda: copy, poolclass=StaticPool, json_serializer=canonical_json)
    event.listen(reading, "begin", _begin)
    return reading


def _copy(path: Path, copy: sqlite3.Connection) -> None:
    """Copy an SQLite file as one consistent state, without writing a file beside it.

    While nobody writes, there is no write-ahead log. Then SQLite is told that the file does not change, and so needs no
    lock and no index of the log; whether it did change is seen afterwards.
    """
    logs = [path.with_name(f"{path.name}-{kind}") for kind in ("wal", "journal")]

    def state() -> tuple[int, int, bool]:
        file = path.stat()
        return file.st_mtime_ns, file.st_size, any(log.exists() and log.stat().st_size for log in logs)

    if not path.is_file():  # opening a pipe would wait for ever
        raise sqlite3.OperationalError("it is no file")
    for _ in range(COPIES):
        before = state()
        how = "mode=ro" if before[-1] else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", BUSY_SECONDS, uri=True)) as source:
            source.backup(copy)
        if before[-1] or state() == before:
            return
    raise sqlite3.OperationalError("it changes all the time")


def _settings(url: URL) -> dict[str, Any]:
    """Return the arguments of `create_engine` besides the URL."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    if backend == "postgresql":
        seconds = int(str(url.query.get("connect_timeout", CONNECT_SECONDS)))
        arguments = {"client_encoding": "utf8", "connect_timeout": seconds}
        # A run takes days, and networks drop idle connections: each is tested before it is used.
        return {"connect_args": arguments, "isolation_level": "READ COMMITTED", "pool_pre_ping": True}
    return {}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _switch_to_wal(connection: Any) -> None:
    """Switch to a write-ahead log; SQLite itself does not wait for another process that does the same."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


BEGIN = {
    "sqlite": ("BEGIN", "BEGIN IMMEDIATE"),
    "postgresql": (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'; SET LOCAL synchronous_commit = off;"
        f"SELECT pg_advisory_xact_lock({LOCK})",
    ),
}
"""The start of a transaction that reads, and of one that writes. The first sees one snapshot, the second runs alone.
Neither database waits for the disk at a commit: a power failure may undo the latest ones, whose content is in the run
folders, which are flushed."""


def _begin(connection: Connection) -> None:
    reading, writing = BEGIN[connection.dialect.name]
    connection.exec_driver_sql(writing if connection.get_execution_options().get("writing") else reading)


# --- the schema ------------------------------------------------------------------------------------------------------


def _tables(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return inspect(connection).get_table_names()


def _version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return version


def _migrate(engine: Engine, version: str | None) -> None:
    """Migrate the schema from `version` (None: empty) to the newest, in one transaction."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise BenchError(f"{name_of(engine)} was written by a newer version of bench (schema {version}); upgrade bench")
    if engine.dialect.name == "postgresql":
        _check_encoding(engine)
    if version is not None:
        _back_up(engine, version)
    with engine.execution_options(**WRITING).connect() as connection:
        config.attributes["connection"] = connection
        sqlite = connection.connection.driver_connection if engine.dialect.name == "sqlite" else None
        if sqlite:
            # A migration rebuilds tables; with foreign keys on, dropping the old one would empty those that refer to
            # it. SQLite heeds the switch between transactions only.
            sqlite.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                command.upgrade(config, "head")
        finally:
            if sqlite:
                sqlite.execute("PRAGMA foreign_keys = ON")


def _check_encoding(engine: Engine) -> None:
    with engine.connect() as connection:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise BenchError(f"{name_of(engine)} has the encoding {encoding}; create a database with UTF8")


def _back_up(engine: Engine, version: str) -> None:
    """Copy an SQLite file, with its write-ahead log, to a new name beside it."""
    path = sqlite_file(engine)
    if path is None or isinstance(engine.pool, StaticPool):  # in memory
        return
    kept, number = path.with_name(f"{path.name}.schema-{version}"), 1
    while kept.exists():
        kept, number = path.with_name(f"{path.name}.schema-{version}-{number}"), number + 1
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(kept)) as copy:
        source.backup(copy)
