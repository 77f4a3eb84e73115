"""A PostgreSQL server of the tests' own, in a folder that goes with it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import OperationalError

USER, PASSWORD = "bench", "s3cret/@:word"

EMPTY = """\
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid();
DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC;
ALTER DATABASE {name} RESET ALL
"""

SECONDS = 60  # that it may take to start, and to stop


class CannotStart(Exception):
    """Why there is no server."""


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, which Debian keeps off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    found = shutil.which(name) or (places and str(places[-1]))
    if not found:
        raise CannotStart(f"there is no {name} on the PATH or in /usr/lib/postgresql")
    return found


def unprivileged() -> dict[str, Any]:
    """Return as whom to start it: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise CannotStart("PostgreSQL does not run as root, and there is no user postgres or nobody")


class Server:
    """A server on 127.0.0.1 that asks for the password and spares the disk; its files are in `data`."""

    def __init__(self, folder: Path) -> None:
        self.data, self._log, self._account = folder / "data", folder / "log", unprivileged()
        self._made, self._emptied = 0, list[str]()
        password = folder / "password"
        password.write_text(PASSWORD)
        for path in (folder, password):
            shutil.chown(path, self._account.get("user"), self._account.get("group")) if self._account else None
        made = self._call(
            "initdb", "--no-sync", "--username", USER, "--pwfile", password, "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--locale", "C", "--pgdata", self.data,
        )  # fmt: skip
        if made.wait(SECONDS):
            raise CannotStart(f"initdb failed: {self._log.read_text()[-500:]}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def _call(self, name: str, *arguments: object) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [program(name), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, **self._account,
            )  # fmt: skip

    def start(self) -> None:
        """Start it, with what it held when it was stopped, and wait until it answers."""
        self._process = self._call(
            "postgres", "-D", self.data, "-p", self.port, "-F", "-c", "full_page_writes=off",
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
        )  # fmt: skip
        until = time.monotonic() + SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise CannotStart(f"{error}; its log ends: {self._log.read_text()[-500:]}") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once, cutting its connections."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def url(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        """Return the URL of a database, password and all."""
        url = URL.create("postgresql+psycopg", user, password, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute a statement outside of a transaction, and return its rows."""
        engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                done = connection.exec_driver_sql(statement)
                return [tuple(row) for row in done] if done.returns_rows else []
        finally:
            engine.dispose()

    @contextmanager
    def database(self, options: str = "") -> Iterator[str]:
        """Yield the name of an empty database: a new one with `options` of CREATE DATABASE, or one emptied after use.

        Emptying takes a fifth of the time that making one takes.
        """
        if options or not self._emptied:
            self._made += 1
            name = f"test{self._made}"
            self.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        else:
            name = self._emptied.pop()
        try:
            yield name
        finally:
            if options:
                self.execute(f"DROP DATABASE {name} WITH (FORCE)")
            else:
                self.execute(EMPTY.format(name=name), name)
                self._emptied.append(name)


@contextmanager
def running() -> Iterator[Server]:
    """Run a server; raise CannotStart where none can be."""
    if not find_spec("psycopg"):
        raise CannotStart("the Python package psycopg is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-postgresql-") as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()
