"""`bench ingest`: import run folders into the database, or bundles into the results folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Json, Results, StoreURL
from bench.cli.output import print_json
from bench.errors import ExitCode
from bench.utils.formatting import counted


def ingest(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BUNDLE", help="Bundles to import; default: all run folders of the results folder."),
    ] = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Import run folders or bundles of runs.

    Without BUNDLE, import every run folder into the database, which is created if necessary. Use it to rebuild a lost
    or damaged database: delete it, then import. Run folders archived by `--rerun` are left out. Exit 3 if a run folder
    is damaged; the others are imported.

    With BUNDLE, a file that `bench bundle` wrote, add its runs to the results folder and the database, each marked with
    its origin. Exit 2 if the bundle is not valid, or a run exists with other contents; nothing of it is written then.
    """
    if bundles:
        _ingest_bundles(bundles, results, store, json)
        return
    from bench.storage.ingest import ingest_results

    imported = ingest_results(results, store)
    damaged = [item for item in imported if item.damage]
    if json:
        print_json([{"name": item.name, "ok": item.damage is None, "reason": item.damage or ""} for item in imported])
    else:
        for item in damaged:
            print(f"bench: {item.damage}", file=sys.stderr)
        print(f"{len(imported) - len(damaged)} of {counted(len(imported), 'run folder')} imported")
    if damaged:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _ingest_bundles(bundles: list[Path], results: Path, store: str | None, json: bool) -> None:
    from bench.errors import BenchError
    from bench.storage.ingest import ingest_bundle

    rows = []
    for path in bundles:
        if path.is_dir():
            raise BenchError(f"{path} is a folder, not a bundle; import its run folders with --results {path}")
        received = ingest_bundle(path, results, store)
        rows += [{"name": run.name, "ok": True, "reason": "" if run.new else "exists already"} for run in received]
        if not json:
            new = sum(run.new for run in received)
            print(f"{path}: {counted(new, 'run')} imported, {len(received) - new} already existed")
    if json:
        print_json(rows)
