"""The store: imports run folders into the database, and queries it."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, NamedTuple

from sqlalchemy import URL, delete, exists, func, insert, or_, select, text
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.orm import Session, selectinload, undefer

from bench.errors import BenchError, DamagedFile, NothingMeasured
from bench.storage.database import WRITING, CannotOpen, NoStore, first_line, may_pass, name_of, open_database, reported
from bench.storage.rows import Rows, cell_of, digest, read_run
from bench.storage.run_folder import RunFolder, run_folders
from bench.storage.schema import Base, CheckpointRow, EpochRow, OutcomeRow, ProtocolRow, RunRow
from bench.utils.formatting import counted

ORDER = attrgetter("protocol_fingerprint", "suite", "method", "label", "seed", "fingerprint")
"""The order of runs: sorted here, since databases order text by rules of their own."""

log = logging.getLogger(__name__)

FILE = "bench.sqlite"  # the default store, in the results folder

EPOCHS = text("INSERT INTO epoch SELECT * FROM json_populate_recordset(NULL::epoch, CAST(:curve AS json))")
"""Inserts a curve into PostgreSQL, hundreds of rows: with one statement for each, a run takes twice as long."""

ATTEMPTS = 3  # to write a run, if the connection breaks or another process writes

AT_ONCE = 1000  # runs whose curves one query returns; databases limit the parameters of a query


def problem(error: DamagedFile | OSError) -> str:
    """Return why a run folder could not be read."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def default_url(results: Path) -> URL:
    """Return the URL of the store in a results folder."""
    return URL.create("sqlite", database=str(results / FILE))


class Epoch(NamedTuple):
    """One epoch of a run: the learning rate, the loss, and accuracies as shares; see `EpochRow`."""

    epoch: int
    lr: float
    train_loss: float
    train_robust: float
    validation_robust: float | None
    test_robust: float | None
    test_clean: float | None
    train_pflop: float | None


class Store:
    """An open store; a context manager that closes it.

    Returned rows are detached from the database: reading what was not loaded raises.
    """

    def __init__(self, url: str | URL, *, create: bool = True) -> None:
        """Open the database at `url`, to read only if not `create`; see `open_database` for what it raises."""
        self.engine = open_database(url, create=create)
        self._writing = self.engine.execution_options(**WRITING)

    @classmethod
    def of(cls, results: Path, url: str | None = None, *, create: bool = True) -> Store:
        """Open the store at `url`, by default the SQLite file of the `results` folder.

        If not `create`, for reading only. Then the copy of the default file is completed from the run folders that it
        lacks, in memory, and is made of them alone if there is no file. Damaged folders are named in the log.

        Raises:
            NothingMeasured: there is no database, `create` is false, and there are no run folders.
            BenchError: the database cannot be opened, or is of a newer version.
        """
        try:
            store = cls(url if url is not None else default_url(results), create=create)
        except (NoStore, CannotOpen) as error:
            if url is not None or create or not run_folders(results):
                raise
            if isinstance(error, CannotOpen):
                log.warning("%s; the run folders are read instead", error)
            store = cls("sqlite://")
        if url is None and not create:
            store.complete(results)
        return store

    @classmethod
    def of_folders(cls, folders: Sequence[Path]) -> Store:
        """Return a store in memory of the run folders of several results folders. Raises NoStore: one has none."""
        store = cls("sqlite://")
        for results in folders:
            if not run_folders(results):
                raise NoStore(f"{results} holds no run folders; name a results folder, as `bench run` writes it")
            store.complete(results)
        return store

    def complete(self, results: Path) -> None:
        """Import the run folders of `results` that are not stored as they are; damaged ones are named in the log."""
        for folder in run_folders(results):
            try:
                self.ingest_if_new(folder)
            except (DamagedFile, OSError) as error:
                log.warning("left out: %s", problem(error))

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def describe(self) -> str:
        """Return one line: which database, and how many runs it holds."""
        with reported(self.engine), Session(self.engine) as session:
            count = session.scalar(select(func.count()).select_from(RunRow))
        return f"{name_of(self.engine)}, {counted(count or 0, 'run')}"

    # --- import ---------------------------------------------------------------------------------------------------

    def ingest(self, folder: RunFolder) -> None:
        """Import a run folder, replacing the rows of its run, in one transaction.

        Raises:
            BenchError: the database cannot be written.
            DamagedFile: it is not a run folder, or a file in it does not match its digest.
        """
        with reported(self.engine):
            failures = 0
            while True:
                rows = read_run(folder)
                try:
                    if self._replace(folder, rows):
                        return
                except DataError as error:
                    raise DamagedFile(
                        f"{folder.path} has a value that the database cannot hold: {first_line(error)}"
                    ) from error
                except OverflowError as error:  # of Python's driver of SQLite, for more than 64 bits
                    raise DamagedFile(f"{folder.path} has a value that the database cannot hold: {error}") from error
                except DBAPIError as error:
                    failures += 1
                    if failures == ATTEMPTS or not may_pass(error):
                        raise

    def _replace(self, folder: RunFolder, rows: Rows) -> bool:
        """Write a run in one transaction; or nothing, and return False, if it has ended since `rows` were read.

        Another process may have written its result by then, which older rows must not replace. Rows are inserted
        without the mapper, which would take longer than all the rest.
        """
        run, protocol = rows.run, rows.protocol
        checkpoints = list(run.checkpoints.values())
        outcomes = [outcome for checkpoint in checkpoints for outcome in checkpoint.outcomes.values()]
        with self._writing.begin() as connection:
            if digest(folder.result()) != run.done_sha256:
                return False
            connection.execute(delete(RunRow).where(RunRow.fingerprint == run.fingerprint))
            known = connection.scalar(select(exists().where(ProtocolRow.fingerprint == protocol.fingerprint)))
            new: list[Sequence[Base]] = [[] if known else [protocol], [run], checkpoints, outcomes]
            for table in filter(None, new):
                connection.execute(insert(type(table[0])), [_columns(row) for row in table])
            if rows.curve and connection.dialect.name == "postgresql":
                connection.execute(EPOCHS, {"curve": json.dumps(rows.curve)})
            elif rows.curve:
                connection.execute(insert(EpochRow), rows.curve)
        return True

    def ingest_if_new(self, folder: RunFolder) -> None:
        """Import a run folder unless it was imported after its run ended, with its label; raises as `ingest`."""
        cell = cell_of(folder)
        query = select(RunRow.done_sha256, RunRow.label).where(RunRow.fingerprint == cell.get("fingerprint"))
        with reported(self.engine), Session(self.engine) as session:
            known = session.execute(query).one_or_none()
        stored = (known.done_sha256, known.label) if known and known.done_sha256 else None
        if stored != (digest(folder.result()), cell.get("cell", {}).get("method", {}).get("label")):
            self.ingest(folder)

    def result_digest(self, fingerprint: str) -> str | None:
        """Return the digest of the result of a run that has ended, by its fingerprint; None for any other."""
        with reported(self.engine), Session(self.engine) as session:
            return session.scalar(select(RunRow.done_sha256).where(RunRow.fingerprint == fingerprint))

    # --- queries ---------------------------------------------------------------------------------------------------

    def runs(self, *, protocol: str | None = None, bits: bool = False) -> list[RunRow]:
        """Return runs with protocol, checkpoints and outcomes, ordered by protocol, suite, method, seed.

        Args:
            protocol: only those of protocols whose fingerprint begins so.
            bits: load the packed bits of the images, too.
        """
        outcomes = selectinload(RunRow.checkpoints).selectinload(CheckpointRow.outcomes)
        query = select(RunRow).options(
            selectinload(RunRow.protocol), outcomes.options(undefer(OutcomeRow.correct)) if bits else outcomes
        )
        if protocol is not None:
            protocol = protocol.encode(errors="replace").decode()
            query = query.where(RunRow.protocol_fingerprint.istartswith(protocol, autoescape=True))
        with reported(self.engine), Session(self.engine) as session:
            return sorted(session.scalars(query), key=ORDER)

    def curves(self, runs: Collection[str]) -> dict[str, list[Epoch]]:
        """Return the epochs of each of `runs` (fingerprints) that has any, first epoch first."""
        table = EpochRow.__table__  # no objects of the mapper: there may be hundreds of thousands of epochs
        query = select(table.c.run, *(table.c[name] for name in Epoch._fields)).order_by(table.c.run, table.c.epoch)
        curves: defaultdict[str, list[Epoch]] = defaultdict(list)
        names = sorted(runs)
        with reported(self.engine), self.engine.connect() as connection:
            for start in range(0, len(names), AT_ONCE):
                for run, *values in connection.execute(query.where(table.c.run.in_(names[start : start + AT_ONCE]))):
                    curves[run].append(Epoch._make(values))
        return dict(curves)

    def list_runs(self) -> list[dict[str, Any]]:
        """Return one row of plain data for every run, ordered as `runs`."""
        with reported(self.engine), Session(self.engine) as session:
            runs = sorted(session.scalars(select(RunRow)), key=ORDER)
        return [
            {
                "name": Path(run.folder).name,
                "suite": run.suite,
                "method": run.label,
                "seed": run.seed,
                "status": run.status,
                "epochs": run.epochs,
                "protocol": run.protocol_fingerprint[:12],
            }
            for run in runs
        ]

    def show_run(self, name: str) -> dict[str, Any]:
        """Return all details of one run, given the beginning of its folder's name or of its fingerprint.

        Raises:
            BenchError: none or several runs match.
        """
        name = name.encode(errors="replace").decode()  # a word of the command line may be no UTF-8
        matches = or_(
            RunRow.folder.istartswith(f"runs/{name}", autoescape=True),
            RunRow.fingerprint.istartswith(name, autoescape=True),
        )
        loaded = (
            selectinload(RunRow.protocol),
            selectinload(RunRow.curve),
            selectinload(RunRow.checkpoints).selectinload(CheckpointRow.outcomes),
        )
        with reported(self.engine), Session(self.engine) as session:
            folders = sorted(session.scalars(select(RunRow.folder).where(matches)))
            if not folders:
                raise NothingMeasured(f"no run begins with '{name:.100}'; `bench list runs` names them")
            if len(folders) > 1:
                names = " and ".join(Path(folder).name for folder in folders[:2])
                raise BenchError(f"'{name:.100}' is the beginning of several runs, such as {names}; add characters")
            return _described(session.scalars(select(RunRow).where(matches).options(*loaded)).one())


def _described(run: RunRow) -> dict[str, Any]:
    """Return a fully loaded run as plain data."""
    checkpoints = sorted(run.checkpoints.values(), key=lambda row: row.name)
    outcomes = [row.outcomes[key] for row in checkpoints for key in sorted(row.outcomes)]
    environment = {key: value for key, value in run.environment.items() if key != "previews"}
    return {
        "name": Path(run.folder).name,
        **_columns(run),
        "environment": environment,
        "protocol": run.protocol.content,
        "curve": [_columns(row, "run") for row in run.curve],
        "last_five": mean_of_last_five(run.curve),
        "checkpoints": [_columns(row, "run") for row in checkpoints],
        "attacks": {outcome.key: outcome.identity for outcome in outcomes},
        "outcomes": [
            {**_columns(outcome, "run", "attack", "identity", "correct"), "detail": _without_tables(outcome.detail)}
            for outcome in outcomes
        ],
        "per_class": _per_class(outcomes),
        "corruptions": [
            {"checkpoint": outcome.checkpoint, "key": outcome.key}
            | {name: version[name] for name in ("version", "accuracy", "sha256")}
            for outcome in outcomes
            for version in outcome.detail.get("versions", ())
        ],
        **({"previews": found} if (found := run.environment.get("previews")) else {}),
    }


def _without_tables(detail: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in detail.items() if key not in {"per_class", "versions"}}


def _per_class(outcomes: Sequence[OutcomeRow]) -> list[dict[str, Any]]:
    """Return a row for each checkpoint and class with the accuracy of each outcome; older ones do not state it."""
    stated = {(row.checkpoint, row.key): row.detail["per_class"] for row in outcomes if "per_class" in row.detail}
    keys = list(dict.fromkeys(key for _, key in stated))

    def accuracy(checkpoint: str, key: str, label: int) -> float | None:
        right, images = stated.get((checkpoint, key), {label: (0, 0)})[label]
        return right / images if images else None

    return [
        {"checkpoint": checkpoint, "class": label} | {key: accuracy(checkpoint, key, label) for key in keys}
        for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in stated)
        for label in range(max(map(len, stated.values())))
    ]


def mean_of_last_five(curve: Sequence[EpochRow | Epoch]) -> dict[str, float] | None:
    """Return the mean accuracies on the test images after the last five epochs, which papers report as `last`.

    None if there are fewer epochs, or the protocol does not track the test images.
    """
    clean = [row.test_clean for row in curve[-5:] if row.test_clean is not None]
    robust = [row.test_robust for row in curve[-5:] if row.test_robust is not None]
    return {"test_clean": fmean(clean), "test_robust": fmean(robust)} if len(clean) == len(robust) == 5 else None


def _columns(row: Base, *without: str) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns if column.key not in without}
