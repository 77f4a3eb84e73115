"""`bench list` and `bench show`: what there is, and all that is known of one thing."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import Json, Results, StoreURL, print_json


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    MODELS = "models"
    DATASETS = "datasets"
    SUITES = "suites"
    RUNS = "runs"


class Thing(StrEnum):
    """What can be shown."""

    METHOD = "method"
    MODEL = "model"
    DATASET = "dataset"
    SUITE = "suite"
    RUN = "run"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """List methods, models, datasets, suites or runs, one line each."""
    from bench.cli import catalogue

    if kind is Kind.RUNS:
        rows = catalogue.runs(results, store)
    else:
        rows = getattr(catalogue, kind.value)()
    print_json(rows) if json else print_rows(rows)


def show(
    thing: Annotated[Thing, typer.Argument(help="What kind of thing.")],
    name: Annotated[
        str, typer.Argument(help="Its name; for a run, the beginning of its folder's name or fingerprint.")
    ],
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Show all that is known of one method, model, dataset, suite or run."""
    from bench.cli import catalogue

    if thing is Thing.RUN:
        found = catalogue.run(name, results, store)
    else:
        found = getattr(catalogue, thing.value)(name)
    print_json(found) if json else print_fields(found)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a table of equal dicts; nothing at all for an empty list."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    console = Console()
    texts = [[_text(value) for value in row.values()] for row in rows]
    headings = [key.replace("_", " ") for key in rows[0]]
    widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
    if console.is_terminal:  # one line each: the last column gives way
        widths[-1] = max(10, min(widths[-1], console.width - sum(widths[:-1]) - 2 * len(widths) + 2))
    else:  # a file or another program has no edge to wrap at
        console.width = sum(widths) + 2 * len(widths)
    table = Table(box=None, pad_edge=False)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, width=width, no_wrap=True, overflow="ellipsis")
    for row in texts:
        table.add_row(*row)
    console.print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """Print one dict: plain values as lines, lists of dicts as tables."""
    for key, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{key.replace('_', ' ')}:")
            print_rows(value)
        elif isinstance(value, dict):
            print(f"{key.replace('_', ' ')}:")
            for name, item in value.items():
                print(f"  {name}: {_text(item)}")
        else:
            print(f"{key.replace('_', ' ')}: {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
