"""`bench doctor`: is everything here that a run needs?"""

from __future__ import annotations

from pathlib import Path

import typer

from bench.cli.options import Json, Results, StoreURL, print_json


def doctor(results: Results = Path("results"), store: StoreURL = None, json: Json = False) -> None:
    """Check the installation, the devices, the store and every run in it; exit 2 if something is amiss.

    Every file of a run folder is held against its digest, every outcome against its accuracy, and the store against
    the run folders.
    """
    from bench.cli.diagnosis import diagnose

    checks = diagnose(results, store)
    if json:
        print_json([{"check": check.name, "ok": check.ok, "detail": check.detail} for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok ' if check.ok else 'BAD'}  {check.name:<{width}}  {check.detail}")
    if not all(check.ok for check in checks):
        raise typer.Exit(2)
