"""`bench check`: the regression gate, which compares the runs of a suite with its baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import Json, Results, StoreURL, Suite
from bench.cli.output import print_json, table_console
from bench.errors import printable

if TYPE_CHECKING:
    from bench.regression.baseline import Snapshot
    from bench.regression.gate import Check


def check(
    suite: Suite,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="The baseline; default: results/baselines/NAME.json, with the suite's name."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, max=100, help="Points that a figure may change without being a regression."),
    ] = 2.0,
    accept_improvements: Annotated[
        bool, typer.Option("--accept-improvements", help="Exit 0 even if accuracy under attack has improved.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Write the runs as the new baseline, and print what changed.")
    ] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML here.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", help="Append a summary in markdown to this file, such as $GITHUB_STEP_SUMMARY."),
    ] = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Compare a suite's runs with its baseline.

    Exit 1 for a regression or an unexpected improvement, 4 if the protocol is not the baseline's or something was not
    measured.
    """
    from bench.config.suite import load_suite
    from bench.errors import BenchError
    from bench.regression import formats
    from bench.regression.baseline import read_baseline, snapshot, write_baseline
    from bench.regression.gate import check as compare
    from bench.storage.store import Store

    loaded = load_suite(suite)
    path = baseline or Path("results") / "baselines" / f"{loaded.suite.name}.json"
    try:
        with Store.of(results, store, create=False) as opened:
            runs = snapshot(opened, loaded)
        if update:
            runs.require_complete()
            _print_changes(runs, path, tolerance)
            write_baseline(path, runs)
            print(f"bench: wrote the baseline {path}; commit it", file=sys.stderr)
            return
        result = compare(runs, read_baseline(path), tolerance=tolerance)
    except BenchError as error:
        _write(junit, formats.junit_error(loaded.suite.name, error))
        _write(summary, formats.markdown_error(error), append=True)
        raise
    _write(junit, formats.junit(result, accept_improvements=accept_improvements))
    _write(summary, formats.markdown(result, accept_improvements=accept_improvements), append=True)
    if json:
        print_json(formats.as_data(result, accept_improvements=accept_improvements))
    else:
        _print(result, accept_improvements=accept_improvements)
    code = result.exit_code(accept_improvements=accept_improvements)
    if code:
        raise typer.Exit(code)


def _print_changes(runs: Snapshot, path: Path, tolerance: float) -> None:
    """Print how the runs differ from the baseline that they replace, if the two are comparable."""
    from bench.errors import BenchError
    from bench.regression.baseline import read_baseline
    from bench.regression.gate import check as compare

    if not path.exists():
        print(f"bench: {path} is new", file=sys.stderr)
        return
    try:
        _print(compare(runs, read_baseline(path), tolerance=tolerance), accept_improvements=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)


def _print(result: Check, *, accept_improvements: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from bench.regression import formats

    table = Table(box=None, pad_edge=False)
    for heading in formats.HEADINGS:
        table.add_column(heading, justify="left" if heading in {"row", "figure", "verdict"} else "right")
    for change in formats.ordered(result):
        style = {"regression": "bold red", "improvement": "bold green", "not judged": "bold yellow"}
        table.add_row(*(Text(printable(cell)) for cell in formats.cells(change)), style=style.get(change.verdict))
    table_console().print(table)
    for line in (*formats.remarks(result), formats.rules(result)):
        print(printable(line))
    print(printable(formats.conclusion(result, accept_improvements=accept_improvements)))


def _write(path: Path | None, text: str, *, append: bool = False) -> None:
    """Write a report to `path`, if any. Raises BenchError if it cannot be written."""
    from bench.errors import BenchError

    if path is None:
        return
    try:
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from error
