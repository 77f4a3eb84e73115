"""Importing all run folders of a results folder into the database."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bench.errors import DamagedFile, NothingMeasured
from bench.storage.run_folder import run_folders
from bench.storage.store import Store, problem


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
