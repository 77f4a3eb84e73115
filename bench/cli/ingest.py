"""`bench ingest`: make the store anew from the run folders."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from bench.cli.options import Json, Results, StoreURL, print_json


def ingest(results: Results = Path("results"), store: StoreURL = None, json: Json = False) -> None:
    """Take every run folder into the store, which is made if there is none; exit 3 if one is damaged.

    The run folders are the truth: a store that is lost or damaged can be deleted and made again. Folders that
    `--rerun` set aside are left out.
    """
    from bench.storage.cleanup import ingest as take_in

    taken = take_in(results, store)
    damaged = [item for item in taken if item.damage]
    if json:
        print_json([{"name": item.name, "ok": item.damage is None, "reason": item.damage or ""} for item in taken])
    else:
        for item in damaged:
            print(f"bench: {item.damage}", file=sys.stderr)
        print(f"{len(taken) - len(damaged)} of {len(taken)} run folders taken in")
    if damaged:
        raise typer.Exit(3)
