"""`bench data`: which datasets are there, whether they are whole, and how to bring them there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from bench.cli.options import Data, Json, interruptible, print_json

app = typer.Typer(
    help="List, check, download and decode datasets.", no_args_is_help=True, rich_markup_mode=None
)  # fmt: skip


def complete_name(incomplete: str) -> list[str]:
    """Complete the name of a dataset or of a shipped suite."""
    from bench.data.status import names

    return [name for name in names() if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        help="A dataset's name, or a suite file, or the name of a shipped suite.", autocompletion=complete_name
    ),
]


@app.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """List the datasets: what they are, where they are found, and whether their images are prepared."""
    from bench.cli.listing import print_rows
    from bench.data.status import overview

    rows = overview(data)
    print_json(rows) if json else print_rows(rows)


@app.command()
def check(
    name: Name,
    data: Data = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image, and name the broken ones.")] = False,
    json: Json = False,
) -> None:
    """Say what there is of a dataset; exit 2 if it is missing, incomplete or damaged."""
    from bench.cli.listing import print_fields
    from bench.data import status

    with _progress("decoding") as tick:
        facts = status.check(status.named(name), data, decode=decode, tick=tick)
    if json:
        print_json(facts)
    else:
        print_fields({key: value for key, value in facts.items() if key != "problems"})
        for problem in facts["problems"]:
            print(f"problem: {problem}")
    if facts["problems"]:
        raise typer.Exit(2)


@app.command()
def prepare(name: Name, data: Data = None) -> None:
    """Download a dataset, or decode the files of one once, so that runs start at once; what is done stays done."""
    from bench.data import status

    with interruptible(lambda: "nothing half is left"), _progress("preparing") as tick:
        print(status.bring(status.named(name), data, tick, _say))


def _say(sentence: str) -> None:
    print(f"bench: {sentence}", file=sys.stderr)


@contextmanager
def _progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what is called with (done, of); on a terminal it draws a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=None, visible=False)
        yield lambda done, of: bar.update(task, completed=done, total=of, visible=True)
