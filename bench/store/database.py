"""Opening the database: SQLite made safe for several processes, and a schema that is brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from bench.errors import BenchError, NothingMeasured
from bench.records import canonical_json

REVISION = "0003"
"""The newest migration. A store that states it needs no other look, and Alembic is not even imported."""

MIGRATIONS = "bench.store:migrations"  # package and folder, so that it is found wherever the package is installed

BUSY_SECONDS = 30  # how long a writer waits for another one

EXAMPLES = "sqlite:///results/bench.sqlite or postgresql+psycopg://user@host/database"

WRITING = {"begin": "BEGIN IMMEDIATE"}
"""Execution options of a transaction that writes. SQLite then waits for other writers at once; a transaction that first
reads and then writes would fail, without waiting, if another process wrote in between."""


class NoStore(NothingMeasured, FileNotFoundError):
    """There is no store yet."""


def open_database(url: str | URL, *, create: bool) -> Engine:
    """Return an engine whose database has the newest schema.

    An empty database gets the schema, or if not `create`, is an error. An older one is migrated; of an SQLite file a
    copy is kept beside it.

    Raises:
        NoStore: there is nothing, and nothing is to be created.
        BenchError: the URL is wrong, the database cannot be opened, is not ours, or is newer than this package.
    """
    engine = _engine(url)
    path = sqlite_file(engine)
    if path is not None and not _exists(path):
        if not create:
            raise NoStore(f"there is no store {path} yet; `bench run SUITE` makes one")
        if not path.parent.is_dir():
            raise BenchError(f"the store {path} cannot be created: there is no folder {path.parent}")
    try:
        with reported(engine):
            _bring_up_to_date(engine, create=create)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _bring_up_to_date(engine: Engine, *, create: bool) -> None:
    tables = _tables(engine)
    version = _version(engine) if "alembic_version" in tables else None
    if version is None and tables:
        raise BenchError(f"{name_of(engine)} holds tables that are not of bench; name another database")
    if version is None and not create:
        raise NoStore(f"{name_of(engine)} is empty; `bench run SUITE` fills it")
    if version != REVISION:
        _migrate(engine, version)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise BenchError(f"the store {path} cannot be read: {error.strerror}") from None


def name_of(engine: Engine) -> str:
    """Return what to call the database in a sentence, without user and password."""
    path, url = sqlite_file(engine), engine.url
    place = path or "/".join(part for part in (url.host, url.database) if part) or "in memory"
    return f"the {engine.dialect.name} store {place}"


def sqlite_file(engine: Engine) -> Path | None:
    """Return the file of an SQLite database; None for other databases, and for SQLite without a plain file."""
    name = engine.url.database
    plain = engine.dialect.name == "sqlite" and name and name != ":memory:" and not name.startswith("file:")
    return Path(name) if plain and name else None


@contextmanager
def reported(engine: Engine) -> Iterator[None]:
    """Turn what the database cannot help (locked, full, unreachable, not a database) into one sentence."""
    try:
        yield
    except DatabaseError as error:
        # The subclasses for wrong statements and broken constraints are bugs of ours and keep their traceback.
        if not isinstance(error, OperationalError) and type(error) is not DatabaseError:
            raise
        cause = (str(error.orig).strip().splitlines() or ["no reason given"])[0]
        if engine.url.password:
            cause = cause.replace(str(engine.url.password), "***")
        raise BenchError(f"{name_of(engine)} cannot be used: {cause}") from None


# --- the connection --------------------------------------------------------------------------------------------------


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        arguments = {"timeout": BUSY_SECONDS} if is_sqlite else {}
        engine = create_engine(parsed, connect_args=arguments, json_serializer=canonical_json)
    except (ArgumentError, ValueError, TypeError):  # their text may quote the password
        raise BenchError(f"the store's URL is not one that SQLAlchemy understands; write {EXAMPLES}") from None
    except ImportError as error:
        raise BenchError(f"the store's URL needs the Python package '{error.name}', which is not installed") from None
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy says when a transaction begins, not the driver
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


# --- the schema ------------------------------------------------------------------------------------------------------


def _tables(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return inspect(connection).get_table_names()


def _version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return version


def _migrate(engine: Engine, version: str | None) -> None:
    """Bring the schema from `version` (None: empty) to the newest, all or nothing."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise BenchError(f"{name_of(engine)} was made by a newer version of bench (schema {version}); upgrade bench")
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


def _back_up(engine: Engine, version: str) -> None:
    """Copy an SQLite file, its write-ahead log included, to a name beside it that is not taken."""
    path = sqlite_file(engine)
    if path is None:
        return
    kept, number = path.with_name(f"{path.name}.schema-{version}"), 1
    while kept.exists():
        kept, number = path.with_name(f"{path.name}.schema-{version}-{number}"), number + 1
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(kept)) as copy:
        source.backup(copy)
