"""`bench plot`: the figures of each leaderboard as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Json, Methods, OnlySuite, Results, SelectedBy, Selection, StoreURL, words
from bench.cli.output import print_json, write_file
from bench.errors import BenchError, NothingMeasured, did_you_mean


def plot(
    suite: OnlySuite = None,
    output: Annotated[Path, typer.Option("--output", help="Output folder; created if necessary.")] = Path("figures"),
    format: Annotated[str, typer.Option("--format", help="png, svg, pdf; comma-separated.")] = "png",
    figure: Annotated[
        str | None, typer.Option("--figure", help="curves, gap, cost, work, agreement; comma-separated; default: all.")
    ] = None,
    selection: SelectedBy = Selection.VALIDATION,
    methods: Methods = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Draw the figures of leaderboards.

    Prints the paths of the files.
    """
    from bench.config.suite import load_suite
    from bench.reporting.leaderboard import leaderboards
    from bench.reporting.plots.data import figures
    from bench.reporting.plots.render import FORMATS, NAMES, render
    from bench.storage.store import Store

    formats = _known(format, FORMATS, "format")
    names = list(NAMES) if figure is None else _known(figure, NAMES, "figure")
    only = load_suite(suite).suite if suite else None
    protocol = only.protocol.fingerprint if only else None
    with Store.of(results, store, create=False) as opened:
        boards = leaderboards(opened, protocol=protocol, methods=words(methods, "--methods"), selection=selection.value)
        drawable = [(board, figures(opened, board)) for board in boards if any(row.figures for row in board.rows)]
    if not drawable:
        raise NothingMeasured("nothing to draw: no row has an averaged seed; `bench report` states the reasons")
    written = []
    for board, data in drawable:
        stem = only.name if only else board.fingerprint[:12]
        for name in names:
            for extension in formats:
                path = output / f"{stem}-{name}.{extension}"
                write_file(path, render(data, name, extension), parents=True)
                written.append(
                    {"file": str(path), "figure": name, "format": extension, "protocol": board.fingerprint[:12]}
                )
                if not json:
                    print(path)
    if json:
        print_json(written)


def _known(text: str, known: tuple[str, ...], what: str) -> list[str]:
    """Return the words of `text`, each once. Raises BenchError for one that is not among `known`."""
    chosen = list(dict.fromkeys(words(text, f"--{what}")))
    for word in chosen:
        if word not in known:
            raise BenchError(f"there is no {what} '{word:.40}'{did_you_mean(word, known)}")
    return chosen
