"""`bench report`: leaderboards from the database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import FORMAT, Methods, OnlySuite, Output, Results, SelectedBy, Selection, StoreURL, words
from bench.cli.output import Format, format_of, print_boards, render_boards, write_output


def report(
    suite: OnlySuite = None,
    format: Annotated[Format | None, FORMAT] = None,
    output: Output = None,
    selection: SelectedBy = Selection.VALIDATION,
    methods: Methods = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="KEY",
            help="Order of the rows: rank, an attack of the suite (clean, fgsm, pgd, cw, autoattack), last, gap, cost, "
            "pflop, memory or method. Ranks do not change.",
        ),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Add the papers' figures, where known.")] = False,
    reach: Annotated[
        float | None,
        typer.Option(
            "--reach",
            metavar="PERCENT",
            min=0,
            max=100,
            help="Add the work of training, in PFLOP, until this accuracy under the ranking attack was reached.",
        ),
    ] = None,
    results: Results = Path("results"),
    store: StoreURL = None,
) -> None:
    """Print or write leaderboards.

    One leaderboard for each protocol in the database.
    """
    from bench.config.suite import load_suite
    from bench.reporting.leaderboard import leaderboards, sort_rows
    from bench.reporting.published_comparison import with_published
    from bench.reporting.work import target
    from bench.storage.store import Store

    protocol = load_suite(suite).suite.protocol.fingerprint if suite else None
    chosen = format_of(format, output, Format)
    with Store.of(results, store, create=False) as opened:
        boards = leaderboards(opened, protocol=protocol, methods=words(methods, "--methods"), selection=selection.value)
        if published:
            boards = with_published(opened, boards, protocol, selection.value)
        if reach is not None:
            boards = [replace(board, target=target(opened, board, reach / 100)) for board in boards]
        if sort:
            boards = sort_rows(boards, sort)
        if chosen is Format.HTML:
            from bench.reporting.formats.html import render_html

            text = render_html(opened, boards)
        elif output is None:
            print_boards(boards, chosen)
            return
        else:
            text = render_boards(boards, chosen)
    write_output(output, text)
