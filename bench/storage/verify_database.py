"""What a database can say of its own soundness."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, and_, exists, select, text

from bench.errors import BenchError
from bench.storage.database import name_of, reported
from bench.storage.schema import Base

VALID = text("SELECT conname FROM pg_constraint WHERE convalidated AND connamespace = current_schema()::regnamespace")


def damage_of(engine: Engine) -> list[str]:
    """Return what is wrong with the database at `engine`, a sentence each, with what mends it.

    SQLite is asked for damaged pages and for rows that refer to none. PostgreSQL vouches for its pages itself; it is
    asked for such rows and for the constraints that keep them out, which may have been dropped or switched off. Of
    other databases, such rows are looked for.
    """
    sqlite, name = engine.dialect.name == "sqlite", name_of(engine)
    mend = "delete it and run `bench ingest`" if sqlite else "drop its tables and run `bench ingest`"
    try:
        with reported(engine), engine.connect() as connection:
            found = _of_sqlite(connection) if sqlite else [*_missing_constraints(connection), *_orphans(connection)]
    except BenchError as error:
        return [f"{error}; {mend}"]
    return [f"{name} {problem}; {mend}" for problem in found]


def _of_sqlite(connection: Connection) -> list[str]:
    pages = [str(line) for (line,) in connection.exec_driver_sql("PRAGMA integrity_check")]
    orphans = {(row[0], row[2]) for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}
    damaged = [] if pages == ["ok"] else [f"is damaged: {pages[0]}"]
    return damaged + [_orphan(*pair) for pair in sorted(orphans)]


def _orphan(child: str, parent: str) -> str:
    return f"has a row in '{child}' whose '{parent}' is missing"


def _orphans(connection: Connection) -> list[str]:
    found = []
    for child in Base.metadata.sorted_tables:
        for key in child.foreign_key_constraints:
            same = and_(*(element.parent == element.column for element in key.elements))
            missing = select(1).select_from(child).where(~exists().where(same)).limit(1)
            if connection.scalar(missing):
                found.append(_orphan(child.name, key.referred_table.name))
    return found


def _missing_constraints(connection: Connection) -> list[str]:
    """Return the constraints of the schema that PostgreSQL does not have, or has not held all rows against."""
    if connection.dialect.name != "postgresql":
        return []
    valid = set(connection.scalars(VALID))
    stated = {str(one.name) for table in Base.metadata.tables.values() for one in table.constraints}
    return [f"has no valid constraint '{name}'" for name in sorted(stated - valid)]
