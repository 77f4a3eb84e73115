"""`bench reproduce`: run a suite, and compare it with the published figures that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import (
    FORMAT,
    Data,
    Device,
    Json,
    Output,
    Results,
    Seeds,
    StoreURL,
    Suite,
    Threads,
    how_to_resume,
    interruptible,
    numbers,
)
from bench.cli.output import TableFormat, format_of, write_tables
from bench.errors import ExitCode

if TYPE_CHECKING:
    from bench.reporting.reproduced import Reproduced


def reproduce(
    suite: Suite,
    no_run: Annotated[bool, typer.Option("--no-run", help="Compare only what is stored.")] = False,
    published: Annotated[
        Path | None, typer.Option("--published", help="CSV file of published figures; default: the shipped one.")
    ] = None,
    seeds: Seeds = None,
    format: Annotated[TableFormat | None, FORMAT] = None,
    output: Output = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    data: Data = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run a suite and compare it with papers.

    Compares its rows with the published figures that the suite names.

    Unfinished runs are compared by epoch, where a curve was released. Exit 4 if figures are not comparable.
    """
    from bench.config.suite import load_suite
    from bench.errors import BenchError
    from bench.execution.driver import run_suite
    from bench.execution.executor import ExecutorSettings
    from bench.reporting.published import read_published
    from bench.reporting.published_rows import published_rows
    from bench.reporting.released_curves import read_curves
    from bench.reporting.reproduced import reproduced
    from bench.storage.store import Store

    chosen = format_of(TableFormat.JSON if json else format, output, TableFormat)
    if output is not None and not output.parent.is_dir():
        raise BenchError(f"{output} cannot be written: there is no folder {output.parent}")
    loaded = load_suite(suite)
    lines, curves = read_published(published), read_curves()
    published_rows(loaded, lines)  # refuses before anything is trained
    ended = True
    if not no_run:
        from bench.cli.progress import View

        with interruptible(lambda: how_to_resume(results)), View(quiet=json) as view:
            states = run_suite(
                loaded,
                results=results,
                store=store,
                data=data,
                settings=ExecutorSettings(device=device, threads=threads),
                seeds=numbers(seeds, "--seeds"),
                watch=view.show,
            )
            view.finish(states)
        ended = all(state.status == "finished" for state in states)
    with Store.of(results, store, create=False) as opened:
        found = reproduced(opened, loaded, lines, curves)
    write_tables(found.tables(), _as_json(found), chosen, output)
    if not ended:
        raise typer.Exit(ExitCode.SOME_FAILED)
    if not found.comparable:
        raise typer.Exit(ExitCode.NOTHING_MEASURED)


def _as_json(found: Reproduced) -> dict[str, Any]:
    from dataclasses import asdict

    figures = [
        {
            **asdict(one),
            "standard_errors": one.distance and one.distance.mean / one.distance.error,
            "verdict": one.verdict,
            "sentence": one.sentence,
        }
        for one in found.figures
    ]
    return {"suite": found.suite, "figures": figures, "notes": list(found.notes)}
