"""`bench data`: list, verify, download and decode datasets."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.cli.options import Data, Json, interruptible
from bench.cli.output import print_fields, print_json, print_rows, progress_bar
from bench.errors import ExitCode

app = typer.Typer(
    help="List, check and prepare datasets.", no_args_is_help=True, rich_markup_mode=None
)  # fmt: skip


def complete_name(incomplete: str) -> list[str]:
    """Complete the name of a dataset or of a shipped suite."""
    from bench.data.status import names

    return [name for name in names() if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        help="Name of a dataset, a suite file, or the name of a shipped suite.", autocompletion=complete_name
    ),
]


@app.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """List the datasets and their state.

    Shows the paths where they are found, and whether their images are prepared.
    """
    from bench.data.status import overview

    rows = overview(data)
    print_json(rows) if json else print_rows(rows)


@app.command()
def check(
    name: Name,
    data: Data = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image, and list the damaged ones.")] = False,
    ignore_unread: Annotated[
        bool, typer.Option("--ignore-unread", help="Accept files in the dataset's folders that are not read.")
    ] = False,
    json: Json = False,
) -> None:
    """Verify the files of a dataset.

    Exit 2 if files are missing, incomplete, damaged or not read.
    """
    from bench.data import status

    with progress_bar("decoding") as progress:
        facts = status.check(status.named(name), data, decode=decode, ignore_unread=ignore_unread, progress=progress)
    if json:
        print_json(facts)
    else:
        print_fields({key: value for key, value in facts.items() if key != "problems"})
        for problem in facts["problems"]:
            print(f"problem: {problem}")
    if facts["problems"]:
        raise typer.Exit(ExitCode.INVALID)


@app.command()
def prepare(name: Name, data: Data = None) -> None:
    """Download or decode a dataset.

    Decodes image files once, so that runs start faster.
    """
    from bench.data import status

    with interruptible(lambda: "no incomplete file is left"), progress_bar("preparing") as progress:
        print(status.fetch(status.named(name), data, progress, _say))


def _say(sentence: str) -> None:
    print(f"bench: {sentence}", file=sys.stderr)
