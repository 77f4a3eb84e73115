"""`bench diff-protocol`: the settings in which two protocols differ, and the points between their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import FORMAT, Json, Output, Results, SelectedBy, Selection, StoreURL, complete_suite
from bench.cli.output import TableFormat, format_of, write_tables

SIDE = "a suite, a method's name or label, or the beginning of a run's name."


def diff_protocol(
    a: Annotated[str, typer.Argument(help=f"One side: {SIDE}", autocompletion=complete_suite)],
    b: Annotated[str, typer.Argument(help=f"The other side: {SIDE}", autocompletion=complete_suite)],
    format: Annotated[TableFormat | None, FORMAT] = None,
    output: Output = None,
    selection: SelectedBy = Selection.VALIDATION,
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Show in which settings two protocols differ.

    Also shows the differences of their figures in points, where both were run.
    """
    from contextlib import nullcontext
    from dataclasses import asdict

    from bench.reporting.protocol_difference import protocol_difference
    from bench.storage.database import NoStore
    from bench.storage.store import Store

    chosen = format_of(TableFormat.JSON if json else format, output, TableFormat)
    try:
        opened: Store | nullcontext[None] = Store.of(results, store, create=False)
    except NoStore:
        if store is not None:
            raise
        opened = nullcontext()
    with opened as runs:
        difference = protocol_difference(runs, a, b, selection=selection.value)
    write_tables(difference.tables(), asdict(difference), chosen, output)
