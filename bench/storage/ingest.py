"""Importing run folders into the database, and bundles of runs into a results folder."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.errors import BenchError, DamagedFile, NothingMeasured
from bench.storage.bundle import BundledRun, check_bundle, read_bundle, records_of, write_run
from bench.storage.run_folder import ORIGIN, RunFolder, run_folders
from bench.storage.store import Store, problem
from bench.utils.files import sync_folder, write_record


class Ingested(NamedTuple):
    """A run folder that was read; `damage` says why it was not imported, None if it was."""

    name: str
    damage: str | None


def ingest_results(results: Path, store: str | None) -> list[Ingested]:
    """Import every run folder of `results` into the store at the URL `store`, by name; archived ones are left out.

    A new store then has the rows of the one that the runs were first stored in.

    Raises:
        NothingMeasured: there is no run folder.
        BenchError: the store cannot be opened or written.
    """
    folders = run_folders(results)
    if not folders:
        raise NothingMeasured(f"there is no run folder in {results / 'runs'}; `bench run SUITE` creates them")
    ingested = []
    with Store.of(results, store) as opened:
        for folder in folders:
            try:
                opened.ingest(folder)
                ingested.append(Ingested(folder.path.name, None))
            except (DamagedFile, OSError) as error:
                ingested.append(Ingested(folder.path.name, problem(error)))
    return ingested


class Received(NamedTuple):
    """A run of a bundle; `new` is whether the results folder lacked it."""

    name: str
    new: bool


def ingest_bundle(path: Path, results: Path, store: str | None) -> list[Received]:
    """Write the runs of a bundle into `results`, each with its origin, and import them into the store at `store`.

    Runs that are there with equal records stay as they are. Nothing is written unless all runs are valid.

    Raises:
        BenchError: a run is there with other records; the results folder or the store cannot be written; and as
            `read_bundle` and `check_bundle`.
    """
    bundle = read_bundle(path)
    stated = check_bundle(bundle, str(path))
    received = [Received(run.folder, _is_new(run, RunFolder(results / "runs" / run.folder))) for run in bundle.runs]
    try:
        (results / "runs").mkdir(parents=True, exist_ok=True)
        with Store.of(results, store) as opened:
            for row in stated:
                if (known := opened.result_digest(row.fingerprint)) and known != row.done_sha256:
                    raise BenchError(f"{path}: the database holds another run of {row.folder}; it is not replaced")
            for run, (name, new) in zip(bundle.runs, received, strict=True):
                folder = RunFolder(results / "runs" / name)
                if new:
                    _write(run, folder, {"bundle": bundle.sha256, "origin": bundle.origin})
                opened.ingest(folder) if new else opened.ingest_if_new(folder)
    except OSError as error:
        raise BenchError(f"{error.filename or results} cannot be written: {error.strerror or error}") from None
    return received


def _is_new(run: BundledRun, folder: RunFolder) -> bool:
    """Return whether there is no such run folder yet. Raises BenchError if there is one with other records."""
    if not os.path.lexists(folder.path):
        return True
    folder.refuse_links()
    if records_of(folder) != run.files:
        raise BenchError(f"{folder.path} exists with other contents than the bundle has; ingest it into another folder")
    return False


def _write(run: BundledRun, folder: RunFolder, origin: dict[str, str | None]) -> None:
    """Write a run folder that appears under its name when it is complete."""
    with TemporaryDirectory(prefix=".bundle-", dir=folder.path.parents[1]) as temporary:
        written = RunFolder(Path(temporary) / folder.path.name)
        write_run(run, written, durable=True)
        write_record(written.path / ORIGIN, origin)
        written.path.rename(folder.path)
        sync_folder(folder.path.parent)
