"""`bench report`: leaderboards from the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from bench.cli.options import Methods, OnlySuite, Results, SelectedBy, Selection, StoreURL, words

if TYPE_CHECKING:
    from bench.reporting.leaderboard import Leaderboard
    from bench.storage.store import Store


class Format(StrEnum):
    """How leaderboards are written."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


def report(
    suite: OnlySuite = None,
    format: Annotated[Format, typer.Option("--format", help="Where it is to be read.")] = Format.TERMINAL,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Write to this file, whole or not at all; default: stdout."),
    ] = None,
    selection: SelectedBy = Selection.VALIDATION,
    methods: Methods = None,
    sort: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--sort",
            metavar="KEY",
            help="Order of the rows: rank, an attack of the suite (clean, fgsm, pgd, cw, autoattack), last, gap, cost, "
            "pflop, memory or method. Ranks stay what they are.",
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Put the papers' figures beside ours, as far as they are known.")
    ] = False,
    results: Results = Path("results"),
    store: StoreURL = None,
) -> None:
    """Print the leaderboard of each protocol in the store."""
    from bench.config.suite import load_suite
    from bench.reporting.leaderboard import leaderboards
    from bench.reporting.order import by
    from bench.storage.store import Store

    protocol = load_suite(suite).suite.protocol.fingerprint if suite else None
    with Store.of(results, store, create=False) as opened:
        boards = leaderboards(opened, protocol=protocol, methods=words(methods), selection=selection.value)
        if published:
            boards = _with_papers(boards, opened, protocol)
        if sort:
            boards = by(boards, sort)
        if format is Format.HTML:
            from bench.reporting.formats.html import render_html

            text = render_html(opened, boards)
        elif output is None:
            print_boards(boards, format)
            return
        else:
            text = _rendered(boards, format)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)


def print_boards(boards: Sequence[Leaderboard], format: Format) -> None:
    """Print leaderboards on stdout, in a format that needs no more than them (all but HTML)."""
    if format is Format.TERMINAL:
        from rich.console import Console

        from bench.reporting.formats.terminal import render_terminal

        console = Console()  # as wide as the terminal is, and in its colours
        for board in boards:
            render_terminal(board, console)
    else:
        sys.stdout.write(_rendered(boards, format))


def _rendered(boards: Sequence[Leaderboard], format: Format) -> str:
    """Return leaderboards as the text of a file."""
    if format is Format.TERMINAL:
        from bench.reporting.formats.terminal import render_text

        return render_text(boards)
    if format is Format.MARKDOWN:
        from bench.reporting.formats.markdown import render_markdown

        return "\n\n".join(map(render_markdown, boards)) + "\n"
    if format is Format.LATEX:
        from bench.reporting.formats.latex import render_latex

        return render_latex(boards) + "\n"
    if format is Format.CSV:
        from bench.reporting.formats.csv import render_csv

        return render_csv(boards)
    from bench.reporting.formats.json import render_json

    return render_json(boards) + "\n"


def _with_papers(boards: Sequence[Leaderboard], store: Store, protocol: str | None) -> list[Leaderboard]:
    """Return `boards` with the papers' figures, which need our figures under the other selection too."""
    from bench.errors import NothingMeasured
    from bench.reporting.beside import beside
    from bench.reporting.leaderboard import leaderboards
    from bench.reporting.published import read_published

    papers = read_published()
    other = Selection.TEST if boards[0].selection == Selection.VALIDATION.value else Selection.VALIDATION
    try:
        others = leaderboards(store, protocol=protocol, selection=other.value)
    except NothingMeasured:
        others = []
    return beside(boards, others, papers)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises BenchError if it cannot be written."""
    from bench.errors import BenchError
    from bench.utils.files import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from None
