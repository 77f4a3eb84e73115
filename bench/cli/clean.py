"""`bench clean`: free the disk of what can be made again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Data, Json, Results, print_json


def clean(
    results: Results = Path("results"),
    data: Data = None,
    aside: Annotated[bool, typer.Option("--aside", help="The runs too that `--rerun` set aside.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this option, nothing is removed.")] = False,
    json: Json = False,
) -> None:
    """Say what can be removed and made again, and how large it is; with --yes, remove it.

    That is: what killed processes left, places of attacks in runs that have ended, copies of the store in older
    schemas, and with --data, prepared images whose original files are there. Checkpoints, outcomes and curves stay.
    """
    from bench.storage.cleanup import removable, remove

    found = removable(results, data, aside=aside)
    total = sum(item.bytes for item in found)
    if json:
        print_json([{"path": str(item.path), "bytes": item.bytes, "what": item.what} for item in found])
    else:
        for item in found:
            print(f"{_size(item.bytes):>10}  {item.path}: {item.what}")
    if not found:
        print("bench: there is nothing to remove", file=sys.stderr)
    elif yes:
        remove(found)
        print(f"bench: {_size(total)} freed", file=sys.stderr)
    else:
        print(f"bench: {_size(total)} can be freed; add --yes to remove it", file=sys.stderr)


def _size(count: int) -> str:
    """Return a number of bytes as people say it."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
