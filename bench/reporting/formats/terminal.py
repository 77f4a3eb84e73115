"""A leaderboard in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench.reporting.leaderboard import Leaderboard
from bench.reporting.table import Column, Table, table

UNLIMITED = 10_000  # characters; wider than any table


def render_terminal(board: Leaderboard, console: Console) -> None:
    """Print a leaderboard; where it is wider than the console, as one table for each attack."""
    shown = table(board)
    console.print(Text(shown.title, style="bold"))
    whole = _table(shown, range(len(shown.columns)))
    if console.measure(whole, options=console.options.update(width=UNLIMITED)).maximum <= console.width:
        console.print(whole)
    else:
        for columns in _parts(shown.columns):
            console.print(_table(shown, columns))
    for note in shown.notes:
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)
    console.print()


def _parts(columns: Sequence[Column]) -> list[list[int]]:
    """Return the columns of each part: rank and method, followed by those of one attack, or by the remaining ones."""
    groups = list(dict.fromkeys(column.group for column in columns if column.group))
    lead = [0, 1]
    rest = [index for index, column in enumerate(columns) if not column.group and index not in lead]
    attacks = [[index for index, column in enumerate(columns) if column.group == group] for group in groups]
    return [[*lead, *part] for part in (*attacks, rest)]


def _table(shown: Table, columns: Sequence[int]) -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for index in columns:
        column = shown.columns[index]
        heading = f"{column.group}\n{column.title}" if column.group else column.title
        rich.add_column(Text(heading), justify="right" if column.numeric else "left", no_wrap=column.numeric)
    for row in shown.rows:
        rich.add_row(*(Text(row[index]) for index in columns))
    return rich
