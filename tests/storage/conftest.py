"""Run folders made by hand, as a worker would leave them, and a store; the tests of reporting use them as well.

The tests of the store run on SQLite and on PostgreSQL, unless they are about a file of the former."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, select

from bench.attacks.outcome import Correct, Outcome
from bench.config.attacks import AutoAttack, Clean
from bench.config.cell import Cell, ResolvedMethod
from bench.config.protocol import Protocol
from bench.storage.run_folder import RunFolder
from bench.storage.schema import Base
from bench.storage.store import Store
from bench.utils.files import write_record

from .postgresql import CannotStart, Server, running

IMAGES = 200

CODE = "c0de" * 16  # the digest of the code that measured

DATA = {"training": "da7a" * 16, "test": "7e57" * 16}  # the digests of its images


def protocol_of(**changes: Any) -> Protocol:
    """Return a protocol with three final attacks on 200 images, the last one on a subset of 100."""
    settings = {
        "dataset": {"name": "digits", "validation": 100},
        "model": "small_cnn",
        "threat": {"norm": "linf", "eps": "8/255"},
        "training": {"epochs": 2},
        "evaluation": {"final": ["clean", {"name": "pgd", "steps": 20}, {"name": "autoattack", "images": 100}]},
    }
    return Protocol.model_validate(settings | changes)


def first(right: int, count: int = IMAGES) -> Correct:
    """Return verdicts of which the first `right` are right."""
    return np.arange(count) < right


@dataclass
class Maker:
    """Makes run folders in `results`."""

    results: Path

    def __call__(
        self,
        right: Mapping[str, Sequence[int | Correct]] | None = None,
        *,
        protocol: Protocol | None = None,
        method: str = "pgd_at",
        status: str | None = "finished",
        done: Mapping[str, Any] = {},
        seed: int = 0,
        suite: str = "tiny",
        environment: Mapping[str, Any] = {"device": "cpu", "cpu": "A Processor"},
        package: str = "1.0",
        test_tracked: bool = True,
        doubts: Mapping[str, Sequence[str]] = {},
        pgd_doubts: Sequence[str] | None = (),
        reduced: int | None = None,
        **resolved: Any,
    ) -> RunFolder:
        """Make one folder. `right`: per checkpoint, for each final attack the number right or the verdicts.

        `doubts`: per checkpoint, what AutoAttack noticed. `pgd_doubts`: what the others did; None is an older version,
        which did not look. `reduced`: its batch size, where memory was short.
        """
        protocol = protocol or protocol_of()
        fields = {"label": method.upper(), "params": {}, "version": 1, "custom": False, "origin": "paper"}
        row = ResolvedMethod(name=method, **{"final_is_best": False, **fields, **resolved})
        cell = Cell(protocol=protocol, method=row, seed=seed, suite=suite)
        folder = RunFolder.of(cell, self.results)
        folder.begin(cell, {"code": CODE, "data": DATA, **environment})
        for epoch in range(2):
            folder.append_epoch(epoch_record(epoch, test_tracked=test_tracked))
        right = {"best": (150, 100, 50), "last": (160, 90, 40)} if right is None else right
        entries = {
            name: {"file": f"weights-{name}.safetensors", "sha256": name.ljust(64, "0"), "epoch": epoch}
            for epoch, name in enumerate((*right, "resume"))
        }
        index = {"checkpoints": entries, "finished_epochs": 2, "finished": True}
        write_record(folder.checkpoints / "index.json", index)
        for name, figures in right.items():
            for number, (attack, figure) in enumerate(zip(protocol.evaluation.final, figures, strict=True)):
                count = getattr(attack, "images", None) or IMAGES
                verdicts = first(figure, count) if isinstance(figure, int) else figure
                detail: dict[str, Any] = {"note": number}
                identity = {**attack.model_dump(mode="json", exclude_none=True), "precision": "fp32"}
                if not isinstance(attack, Clean):
                    identity |= {**protocol.threat.model_dump(mode="json"), "seed": 0, "package": package}
                    detail |= {} if pgd_doubts is None else {"doubts": list(pgd_doubts)}
                if isinstance(attack, AutoAttack):
                    identity["attacks"] = list(attack.cascade)
                    identity |= {"reduced_batch_size": reduced} if reduced else {}
                    detail["doubts"] = list(doubts.get(name, ()))
                outcome = Outcome(identity, attack.title, entries[name]["sha256"], verdicts, 1.5, detail)
                write_record(folder.outcome_path(name, f"{attack.name}-{number}"), outcome.to_record())
        if status is not None:
            costs = {
                "epochs": 2,
                "train_seconds": 3600.0,
                "track_seconds": 360.0,
                "evaluation_seconds": 1440.0,
                "train_pflop": 1.5,
            }
            folder.finish(status, **{**costs, "peak_memory_bytes": 5 * 2**30, **done})
        return folder


def epoch_record(epoch: int, *, test_tracked: bool = True) -> dict[str, Any]:
    """Return what the trainer writes after an epoch."""
    return {
        "epoch": epoch,
        "lr": 0.1 / (epoch + 1),
        "train": {"loss": 2.0 - epoch, "robust": 0.3},
        "validation": {"clean": 0.7, "robust": 0.4 + epoch / 10},
        "test": {"clean": 0.69, "robust": 0.39} if test_tracked else None,
        "train_seconds": 4.0,
        "seconds": 5.0,
    }


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Execute a statement past the package, as whoever tampers with a store would; return its rows."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            done = connection.exec_driver_sql(statement)
            return [tuple(row) for row in done] if done.returns_rows else []
    finally:
        engine.dispose()


def contents(url: str) -> list[str]:
    """Return every row of a store, whatever database it is, in one order: its whole content."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = Base.metadata.sorted_tables
            return sorted(f"{table} {row}" for table in tables for row in connection.execute(select(table)))
    finally:
        engine.dispose()


def empty(url: str) -> None:
    """Delete every row of a store."""
    for table in reversed(Base.metadata.sorted_tables):
        execute(url, f"DELETE FROM {table}")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results folder."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


@pytest.fixture
def make_run(results: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Make run folders by hand; see `Maker`."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # nothing here has to survive a power cut
    return Maker(results)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server of this session's own."""
    try:
        with running() as started:
            yield started
    except CannotStart as why:
        pytest.skip(f"no PostgreSQL: {why}")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, results: Path) -> Iterator[str]:
    """The URL of a database that is empty: on SQLite the default store's, on PostgreSQL one of this test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{results / 'bench.sqlite'}"
        return
    server: Server = request.getfixturevalue("server")
    with server.database() as name:
        yield server.url(name)


@pytest.fixture
def store(results: Path, store_url: str | None):
    """An empty store: by default the one of the results folder."""
    with Store.of(results, store_url) as opened:
        yield opened
