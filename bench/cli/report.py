"""`bench report`: leaderboards from the store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from bench.cli.options import Methods, Results, StoreURL, complete_suite, words


class Format(StrEnum):
    """How a leaderboard is printed."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"


class Selection(StrEnum):
    """Which images chose the best checkpoint."""

    VALIDATION = "validation"
    TEST = "test"


def report(
    suite: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Only this suite's protocol; default: every one.", autocompletion=complete_suite),
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="Where it is to be read.")] = Format.TERMINAL,
    selection: Annotated[
        Selection, typer.Option("--selection", help="Images that chose `best`; the test set is an oracle.")
    ] = Selection.VALIDATION,
    methods: Methods = None,
    results: Results = Path("results"),
    store: StoreURL = None,
) -> None:
    """Print the leaderboard of each protocol in the store."""
    from bench.reporting.leaderboard import leaderboards
    from bench.spec import load_suite
    from bench.store.store import Store

    protocol = load_suite(suite).suite.protocol.fingerprint if suite else None
    with Store.of(results, store, create=False) as opened:
        boards = leaderboards(opened, protocol=protocol, methods=words(methods), selection=selection.value)
    print_boards(boards, format)


def print_boards(boards: list, format: Format) -> None:  # type: ignore[type-arg]
    """Print leaderboards on stdout."""
    if format is Format.MARKDOWN:
        from bench.reporting.formats.markdown import render_markdown

        print("\n\n".join(render_markdown(board) for board in boards))
    else:
        from rich.console import Console

        from bench.reporting.formats.terminal import render_terminal

        console = Console()
        for board in boards:
            render_terminal(board, console)
