"""A leaderboard in a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, OverflowMethod
from rich.table import Table as RichTable
from rich.text import Text

from bench.reporting.leaderboard import Leaderboard
from bench.reporting.table import Column, Table, tables

NARROWEST = 80  # columns; figures are not cut, the terminal breaks longer lines

UNLIMITED = 10_000  # characters; wider than any table


def render_terminal(board: Leaderboard, console: Console) -> None:
    """Print a leaderboard; where it is wider than the console, as one table for each attack."""
    console.width = max(console.width, NARROWEST)
    for shown in tables(board):
        _render(shown, console)


def render_text(boards: Sequence[Leaderboard]) -> str:
    """Return what `render_terminal` prints of all boards on a console of any width, for a file."""
    file = io.StringIO()
    console = Console(file=file, width=UNLIMITED)
    for board in boards:
        render_terminal(board, console)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def _render(shown: Table, console: Console) -> None:
    console.print(Text(shown.title, style="bold"))
    whole = _table(shown, range(len(shown.columns)))
    if not shown.rows:
        pass
    elif _fits(whole, console):
        console.print(whole)
    else:
        for lead, part in _parts(shown.columns):
            for columns in _fitting(shown, lead, part, console):
                console.print(_table(shown, columns))
    for note in shown.notes:
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)
    console.print()


def render_tables(tables: Sequence[Table], console: Console) -> None:
    """Print tables that are never divided."""
    for shown in tables:
        console.print(Text(shown.title, style="bold"))
        if shown.rows:
            console.print(_table(shown, range(len(shown.columns)), "fold"))
        for note in shown.notes:
            console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)
        console.print()


def _fits(table: RichTable, console: Console) -> bool:
    return console.measure(table, options=console.options.update(width=UNLIMITED)).maximum <= console.width


def _fitting(shown: Table, lead: list[int], part: list[int], console: Console) -> Iterator[list[int]]:
    """Divide a part further where it is too wide: each table has the columns `lead` and as many others as fit."""
    columns: list[int] = []
    for column in part:
        if columns and not _fits(_table(shown, [*lead, *columns, column]), console):
            yield [*lead, *columns]
            columns = []
        columns.append(column)
    yield [*lead, *columns]


def _parts(columns: Sequence[Column]) -> list[tuple[list[int], list[int]]]:
    """Return the columns of each part: rank and method, and one attack's columns, or the others, costs apart."""
    groups = list(dict.fromkeys(column.group for column in columns if column.group))
    lead = [index for index, column in enumerate(columns) if column.title in {"Rank", "Method"}]
    rest = [index for index, column in enumerate(columns) if not column.group and index not in lead]
    parts = [[index for index, column in enumerate(columns) if column.group == group] for group in groups]
    costs = [index for index in rest if columns[index].numeric and not columns[index].title.startswith("Rank")]
    parts += [[index for index in rest if index not in costs], costs]
    return [(lead, part) for part in parts if part]


def _table(shown: Table, columns: Sequence[int], overflow: OverflowMethod = "ellipsis") -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for index in columns:
        column = shown.columns[index]
        heading = f"{column.group}\n{column.title}" if column.group else column.title
        rich.add_column(
            Text(heading),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow=overflow,
        )
    for row in shown.rows:
        rich.add_row(*(Text(str(row[index])) for index in columns))
    return rich
