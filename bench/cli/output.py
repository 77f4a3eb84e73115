"""What commands print and write: JSON, tables, leaderboards, files."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.reporting.leaderboard import Leaderboard
    from bench.reporting.table import Table
    from bench.utils.progress import ProgressCallback

F = TypeVar("F", bound=StrEnum)


class Format(StrEnum):
    """Formats of leaderboards."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


class TableFormat(StrEnum):
    """Formats of other tables."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"
    HTML = "html"


ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html", ".htm": "html"}


def format_of(stated: F | None, output: Path | None, formats: type[F]) -> F:
    """Return the `stated` format, else the one of `formats` that the ending of `output` names.

    A file without an ending, or with `.txt`, is written as to a terminal. Raises typer.BadParameter for other endings.
    """
    if stated or output is None or output.suffix.lower() in {"", ".txt"}:
        return stated or formats("terminal")
    named = ENDINGS.get(output.suffix.lower())
    if named not in set(formats):
        raise typer.BadParameter(f"no format of this command ends in '{output.suffix:.20}'; state one with --format")
    return formats(named)


def print_json(value: object) -> None:
    """Print `value` as JSON on stdout."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=not unicode))


def table_console() -> Console:
    """Return a console on stdout; a table that goes to a file or another program is not wrapped at 80 columns."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a table of dicts with equal keys, one line each; nothing for an empty list."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    console = Console()
    texts = [[_text(value) for value in row.values()] for row in rows]
    headings = [key.replace("_", " ") for key in rows[0]]
    widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
    if console.is_terminal:  # cut the last column, then the first, whose names may be given by their beginnings
        for cut in (-1, 0):
            excess = sum(widths) + 2 * len(widths) - 2 - console.width
            widths[cut] = min(widths[cut], max(10, widths[cut] - excess))
    else:
        console.width = sum(widths) + 2 * len(widths)
    table = Table(box=None, pad_edge=False)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, width=width, no_wrap=True, overflow="ellipsis")
    for row in texts:
        table.add_row(*row)
    console.print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """Print one dict: plain values as lines, dicts with equal keys as tables, other nested values as YAML."""
    for key, value in fields.items():
        heading = f"{key.replace('_', ' ')}:"
        if isinstance(value, list) and value and all(isinstance(row, dict) and [*row] == [*value[0]] for row in value):
            print(heading)
            print_rows(value)
        elif isinstance(value, dict) and value:
            print(heading)
            print(indent(_yaml(value), "  "))
        else:
            print(heading, _text(value))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return _yaml(value, flow=True)
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _yaml(value: dict[str, Any], *, flow: bool | None = None) -> str:
    """Return a dict as a suite file states it; by default the innermost values take one line each."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=math.inf).strip()


def print_leaderboard(protocol: str, results: Path, store: str | None) -> None:
    """Print the leaderboard of a protocol (by fingerprint), unless none of its cells has been measured."""
    from bench.errors import NothingMeasured
    from bench.reporting.leaderboard import leaderboards
    from bench.storage.store import Store

    try:
        with Store.of(results, store) as opened:
            print_boards(leaderboards(opened, protocol=protocol, selection="validation"), Format.TERMINAL)
    except NothingMeasured as error:
        print(f"bench: {error}", file=sys.stderr)


def print_boards(boards: Sequence[Leaderboard], format: Format) -> None:
    """Print leaderboards on stdout, in any format but HTML."""
    if format is Format.TERMINAL:
        from rich.console import Console

        from bench.reporting.formats.terminal import render_terminal

        console = Console()  # with the terminal's width and colours
        for board in boards:
            render_terminal(board, console)
    else:
        sys.stdout.write(render_boards(boards, format))


def render_boards(boards: Sequence[Leaderboard], format: Format) -> str:
    """Return leaderboards as the text of a file, in any format but HTML."""
    from bench.reporting.formats import csv, json, latex, markdown, terminal

    renderers: dict[Format, Callable[[Sequence[Leaderboard]], str]] = {
        Format.TERMINAL: terminal.render_text,
        Format.MARKDOWN: lambda boards: "\n\n".join(map(markdown.render_markdown, boards)) + "\n",
        Format.LATEX: lambda boards: latex.render_latex(boards) + "\n",
        Format.CSV: csv.render_csv,
        Format.JSON: lambda boards: json.render_json(boards) + "\n",
    }
    return renderers[format](boards)


def write_tables(tables: Sequence[Table], data: object, format: TableFormat, output: Path | None) -> None:
    """Write tables, or as JSON `data`, to the file `output`, or to stdout if it is None; raises as `write_output`."""
    from rich.console import Console

    from bench.reporting.formats.html import render_tables_html
    from bench.reporting.formats.terminal import UNLIMITED, render_tables

    if format is TableFormat.JSON and output is None:
        print_json(data)
    elif format is TableFormat.JSON:
        write_output(output, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    elif format is TableFormat.TERMINAL and output is None:
        render_tables(tables, table_console())
    elif format is TableFormat.TERMINAL:
        file = io.StringIO()
        render_tables(tables, Console(file=file, width=UNLIMITED))
        write_output(output, file.getvalue())
    else:
        render = render_tables_html if format is TableFormat.HTML else _markdown
        write_output(output, render(tables))


def _markdown(tables: Sequence[Table]) -> str:
    from bench.reporting.formats.markdown import render_table

    return "\n\n".join(map(render_table, tables)) + "\n"


def write_output(output: Path | None, text: str) -> None:
    """Write `text` to the file `output`, or to stdout if it is None. Raises BenchError as `write_file`."""
    if output is None:
        sys.stdout.write(text)
    else:
        write_file(output, text.encode())


def write_file(path: Path, data: bytes, *, parents: bool = False) -> None:
    """Write a file atomically, and its folder if `parents`. Raises BenchError if it cannot be written.

    Links, pipes and devices, such as /dev/stdout, are written to and not replaced.
    """
    from bench.errors import BenchError
    from bench.utils.files import write_atomically

    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(data)
        else:
            write_atomically(path, data)
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}") from None


@contextmanager
def progress_bar(verb: str) -> Iterator[ProgressCallback]:
    """Yield a callback that draws a progress bar on stderr, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=None, visible=False)
        yield lambda done, total, robust=None: bar.update(task, completed=done, total=total, visible=True)
