"""A leaderboard as GitHub-flavoured Markdown."""

from __future__ import annotations

import re

from bench.reporting.leaderboard import Leaderboard
from bench.reporting.table import Table, tables

_ACTIVE = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")  # an underscore inside a word is just that
_BLOCK = re.compile(r"^\s*(?:[#+=-]|\d+(?=[.)]))")  # at the start of a line: a heading, a list, a rule
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def render_markdown(board: Leaderboard) -> str:
    """Return a heading, a table and a list of notes, without a newline at the end; two of each with papers' figures."""
    return "\n\n".join(map(render_table, tables(board)))


def render_table(shown: Table) -> str:
    """Return a heading, the table unless it is empty, and a list of notes, without a newline at the end."""
    headings = [escape(f"{column.group} {column.title}".strip()) for column in shown.columns]
    rules = ["---:" if column.numeric else ":---" for column in shown.columns]
    lines = [headings, rules, *([escape(str(cell)) for cell in row] for row in shown.rows)]
    return "\n".join(
        [
            f"### {escape(shown.title)}",
            "",
            *((*(f"| {' | '.join(line)} |" for line in lines), "") if shown.rows else ()),
            *(f"- {escape_line(note)}" for note in shown.notes),
        ]
    )


def escape(text: str) -> str:
    """Return one line of plain text as Markdown that shows it as it is, also inside a table."""
    return _ACTIVE.sub(r"\\\1", text.translate(_ENTITIES))


def escape_line(text: str) -> str:
    """Return one line of plain text as Markdown, also at the start of a line, where it might be a heading or a list."""
    return _BLOCK.sub(_plain, escape(text))


def _plain(start: re.Match[str]) -> str:
    """Return what would start a block as an entity, which does not."""
    text = start[0].strip()
    return f"&#{ord(text[0])};{text[1:]}"
