"""`bench bundle` and `bench check-bundle`: the records of runs in one file, and whether such a file is valid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import Json, Results, complete_run, complete_suite
from bench.cli.output import print_json, print_rows, write_file
from bench.utils.formatting import counted


def bundle(
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the bundle to this file, atomically.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="The beginning of a run's folder name or fingerprint; default: all finished runs.",
            autocompletion=complete_run,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", help="All finished runs of this suite's protocol.", autocompletion=complete_suite),
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--origin", help="Where the runs come from, in one line; shown after `bench ingest`.")
    ] = None,
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """Pack records of runs into one file.

    Add it to another results folder with `bench ingest`. A bundle has everything that leaderboards show, and no
    weights. Equal runs give equal bytes. Runs that have not finished are left out.
    """
    from bench.storage.bundle import finished_runs, make_bundle
    from bench.storage.find import find_run

    if runs and suite:
        raise typer.BadParameter("name runs or --suite, not both")
    if runs:
        folders, unfinished = [find_run(run, results) for run in runs], 0
    else:
        folders, unfinished = finished_runs(results, _protocol(suite))
    made = make_bundle(folders, origin)
    write_file(output, made.data)
    if unfinished:
        print(f"bench: left out {counted(unfinished, 'unfinished run')}", file=sys.stderr)
    if json:
        print_json({"file": str(output), "sha256": made.sha256, "runs": [run.folder for run in made.runs]})
    else:
        print(f"{output}: {counted(len(made.runs), 'run')}, SHA-256 {made.sha256}")


def _protocol(suite: str | None) -> str | None:
    """Return the fingerprint of a suite's protocol, None without a suite."""
    from bench.config.suite import load_suite

    return None if suite is None else load_suite(suite).suite.protocol.fingerprint


def check_bundle(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Files that `bench bundle` wrote.")],
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="Refuse runs of another protocol than this suite's.", autocompletion=complete_suite
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check bundles without importing them.

    Lists their runs. Exit 2 if a bundle is damaged, of another protocol than --suite, or states what no run of its
    protocol can have.
    """
    from bench.storage.bundle import check_bundle as check
    from bench.storage.bundle import check_protocol, describe_bundle, read_bundle

    protocol = _protocol(suite)
    described: list[dict[str, Any]] = []
    for path in bundles:
        read = read_bundle(path)
        rows = check(read, str(path))
        if protocol is not None:
            check_protocol(read, str(path), protocol)
        described.append(
            {"file": str(path), "sha256": read.sha256, "origin": read.origin, "runs": describe_bundle(rows)}
        )
    if json:
        print_json(described)
        return
    for item in described:
        print(f"{item['file']}: valid, SHA-256 {item['sha256']}, origin: {item['origin'] or 'not stated'}")
        print_rows(item["runs"])
