"""`bench ingest`: import the run folders into the database."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from bench.cli.options import Json, Results, StoreURL
from bench.cli.output import print_json
from bench.errors import ExitCode


def ingest(results: Results = Path("results"), store: StoreURL = None, json: Json = False) -> None:
    """Import run folders into the database.

    Creates the database if necessary. Use it to rebuild a lost or damaged database: delete it, then import. Run folders
    archived by `--rerun` are left out. Exit 3 if a run folder is damaged; the others are imported.
    """
    from bench.storage.ingest import ingest_results

    imported = ingest_results(results, store)
    damaged = [item for item in imported if item.damage]
    if json:
        print_json([{"name": item.name, "ok": item.damage is None, "reason": item.damage or ""} for item in imported])
    else:
        for item in damaged:
            print(f"bench: {item.damage}", file=sys.stderr)
        print(f"{len(imported) - len(damaged)} of {len(imported)} run folders imported")
    if damaged:
        raise typer.Exit(ExitCode.SOME_FAILED)
