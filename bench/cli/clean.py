"""`bench clean`: remove files that can be recreated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Data, Json, Results
from bench.cli.output import print_json


def clean(
    results: Results = Path("results"),
    data: Data = None,
    archived: Annotated[bool, typer.Option("--archived", help="Include run folders archived by `--rerun`.")] = False,
    aside: Annotated[bool, typer.Option("--aside", hidden=True)] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the files; without this option, nothing is removed.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove files that can be recreated.

    Lists them with their sizes; `--yes` removes them. These are leftovers of killed processes, intermediate state of
    attacks in runs that have ended, copies of the database in older schemas, and with --data prepared images whose
    original files exist. Checkpoints, outcomes and curves are kept.
    """
    from bench.storage.cleanup import removable, remove
    from bench.utils.formatting import byte_size

    files = removable(results, data, archived=archived or aside)
    total = sum(item.bytes for item in files)
    if json:
        print_json([{"path": str(item.path), "bytes": item.bytes, "what": item.what} for item in files])
    else:
        for item in files:
            print(f"{byte_size(item.bytes):>10}  {item.path}: {item.what}")
    if not files:
        print("bench: nothing to remove", file=sys.stderr)
    elif yes:
        remove(files)
        print(f"bench: {byte_size(total)} freed", file=sys.stderr)
    else:
        print(f"bench: {byte_size(total)} can be freed; add --yes to remove it", file=sys.stderr)
