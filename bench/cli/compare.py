"""`bench compare`: compare two methods or runs on the same test images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import Json, Results, SelectedBy, Selection, StoreURL, complete_suite
from bench.cli.output import print_json, table_console
from bench.errors import printable

if TYPE_CHECKING:
    from bench.reporting.comparison import Comparison, Figure, Side


def compare(
    a: Annotated[str, typer.Argument(help="A method's name or label, or the beginning of a run's name.")],
    b: Annotated[str, typer.Argument(help="The method or run to compare with.")],
    suite: Annotated[
        str | None, typer.Option("--suite", help="Only this suite's protocol.", autocompletion=complete_suite)
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Only this protocol: the beginning of its fingerprint.")
    ] = None,
    selection: SelectedBy = Selection.VALIDATION,
    images: Annotated[bool, typer.Option("--images", help="List the images on which they differ.")] = False,
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Compare two methods or runs.

    Pairs their results by test image. Exit 4 if they are not comparable.
    """
    from bench.config.suite import load_suite
    from bench.reporting.comparison import compared
    from bench.storage.store import Store

    if suite and protocol:
        raise typer.BadParameter("name a suite or a protocol, not both")
    if suite:
        protocol = load_suite(suite).suite.protocol.fingerprint
    with Store.of(results, store, create=False) as opened:
        comparison = compared(opened, a, b, protocol=protocol, selection=selection.value)
    print_json(_as_json(comparison)) if json else _print(comparison, images=images)


def _as_json(comparison: Comparison) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(comparison),
        "figures": [{**asdict(figure), "difference": asdict(figure.difference)} for figure in comparison.figures],
    }


def _print(comparison: Comparison, *, images: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    for name, side in (("A", comparison.a), ("B", comparison.b)):
        print(f"{name}: {printable(_described(side))}")
    table = Table(box=None, pad_edge=False)
    for heading in ("attack", "checkpoint", "A", "B", "A - B", "95 %", "p", "only A", "only B", "images"):
        table.add_column(heading, justify="left" if heading in {"attack", "checkpoint"} else "right")
    for figure in comparison.figures:
        table.add_row(*(Text(printable(cell)) for cell in _cells(figure)))
    table_console().print(table)
    covers = " and ".join(sorted({figure.difference.covers for figure in comparison.figures}, key=len))
    print(f"Percent of the test images; gap: best minus last. Interval and p cover the choice of {covers}.")
    if comparison.selection == "test":
        print("best: selected on the test images, optimistic for both.")
    if len(comparison.a.seeds) > 1 or len(comparison.b.seeds) > 1:
        print("only A, only B: images that more than half of the seeds of only one side classify correctly.")
    if comparison.a.evaluated_only or comparison.b.evaluated_only:
        print("evaluated only: one checkpoint, which counts as best and as last; it has no gap to compare.")
    for variant in comparison.variants:
        print(f"Compare with care, the attack differs between runs, or from the protocol's: {printable(variant)}.")
    for figure in comparison.figures if images else ():
        for name, positions in (("A", figure.only_a), ("B", figure.only_b)):
            if positions:
                print(f"{printable(figure.attack)}, {figure.checkpoint}, only {name}: {', '.join(map(str, positions))}")


def _described(side: Side) -> str:
    if side.evaluated_only:
        return f"{side.label}, evaluated only"
    seeds = f"{'seed' if len(side.seeds) == 1 else 'seeds'} {', '.join(map(str, side.seeds))}"
    return "; ".join([f"{side.label}, {seeds}", *side.left_out])


def _cells(figure: Figure) -> tuple[str, ...]:
    difference = figure.difference
    low, high = difference.interval
    only = ("", "") if figure.checkpoint == "gap" else (str(len(figure.only_a)), str(len(figure.only_b)))
    return (
        figure.attack,
        figure.checkpoint,
        f"{100 * figure.a:.2f}",
        f"{100 * figure.b:.2f}",
        f"{100 * difference.mean:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        "<0.0001" if difference.p < 1e-4 else f"{difference.p:.4f}",
        *only,
        f"{figure.images:,}",
    )
