"""Leaderboards as one HTML file that needs nothing else and asks no network for anything.

The file is complete without its script, which only sorts, filters, copies and highlights. Its content security policy
allows this one script, by its digest, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from bench.config.attacks import TrainingAttack
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.method_card import ORIGINS, Description, describe
from bench.reporting.plots.data import FigureData, figures
from bench.reporting.plots.render import NAMES, svg
from bench.reporting.reproduction import Reproduction, reproduction
from bench.reporting.rows import Row, device_of, row_key
from bench.reporting.settings import protocol_settings, setting_text
from bench.reporting.table import Cell, Column, Table, published_table, table
from bench.storage.schema import RunRow
from bench.storage.store import Store
from bench.utils.files import canonical_json

ASSETS = Path(__file__).parent / "assets"

DRAWN_ROWS = 12
"""Rows that figures show, from the best: with more they are unreadable."""

DRAWN_SIZE = 1_500_000
"""Characters of SVG in one report; later protocols have their figures in a report of their own."""


@dataclass(frozen=True)
class Heading:
    """A heading over `span` columns, or if that is 0, of the column `index` down both rows of headings.

    `descending`: the first sorting puts the largest figure on top.
    """

    text: str
    index: int
    span: int
    numeric: bool = True
    descending: bool = False


@dataclass(frozen=True)
class Member:
    """A row of the leaderboard with its method's description and the command that reruns it.

    `anchor`: the id of the description. `href`: where the row's name leads.
    """

    anchor: str
    href: str
    row: Row
    cells: tuple[Cell, ...]
    description: Description
    command: str


@dataclass(frozen=True)
class Section:
    """A leaderboard as the template shows it.

    `papers`: the papers' figures, None unless asked for. `spreads` and `marks` tell of each column whether a cell of it
    has some, so that all of its cells keep room for them.
    """

    anchor: str
    board: Leaderboard
    title: str
    shown: Table
    papers: Table | None
    spreads: tuple[bool, ...]
    marks: tuple[bool, ...]
    members: tuple[Member, ...]
    figures: FigureData
    drawings: dict[str, Markup]
    drawn: int
    settings: list[tuple[str, str]]
    identity: str
    runs: list[tuple[str, list[tuple[str, int]]]]
    reproduction: Reproduction


def render_html(store: Store, boards: Sequence[Leaderboard]) -> str:
    """Return the report on `boards`, which were made from `store`, as one HTML document."""
    sections: list[Section] = []
    for number, board in enumerate(boards, start=1):
        drawn = sum(len(drawing) for section in sections for drawing in section.drawings.values())
        sections.append(section_of(store, board, f"b{number}", draw=drawn < DRAWN_SIZE))
    script = asset("report.js")
    return template("report.html.jinja").render(
        sections=sections,
        policy=policy(script),
        style=asset("report.css"),
        script=script,
        origins=ORIGINS,
        version=version("robust-overfitting-bench"),
    )


def render_tables_html(tables: Sequence[Table]) -> str:
    """Return tables as one HTML document without a script."""
    return template("tables.html.jinja").render(tables=tables, policy=policy(None), style=asset("report.css"))


@cache
def template(name: str, folder: Path = ASSETS) -> Template:
    """Return a template of `folder`, which may import those of the reports."""
    environment = Environment(
        loader=FileSystemLoader([folder, ASSETS]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"groups": _groups, "headings": _headings, "setting": setting_text}
    return environment.get_template(name)


@cache
def asset(name: str, folder: Path = ASSETS) -> Markup:
    """Return a file of the package as it is; nothing in it comes from the store."""
    return Markup((folder / name).read_text(encoding="utf-8"))  # noqa: S704


def policy(script: str | None) -> str:
    """Return a content security policy under which only this script runs, and nothing is fetched or sent."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() if script else ""
    allowed = f"'sha256-{digest}'" if script else "'none'"
    # Styles cannot be limited so: drawings have style attributes.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def section_of(
    store: Store, board: Leaderboard, anchor: str, *, draw: bool, page_of: Callable[[str], str] = lambda _method: ""
) -> Section:
    """Return a leaderboard for the template. `anchor`: of its ids; `page_of`: the page that describes a method."""
    shown, runs = table(board), _runs_of(store, board)
    data = figures(store, replace(board, rows=board.rows[:DRAWN_ROWS]), runs)
    threads = {run.environment.get("threads") for run in runs}
    again = reproduction(board, threads.pop() if len(threads) == 1 else None)
    regime = TrainingAttack.model_validate(board.protocol["training"]["attack"]).regime
    members = tuple(
        Member(
            anchor=f"{anchor}-row{number}",
            href=f"{page_of(row.method)}#{anchor}-row{number}",
            row=row,
            cells=cells,
            description=describe(row, board.dataset.name, regime),
            command=command,
        )
        for number, (row, cells, command) in enumerate(zip(board.rows, shown.rows, again.commands, strict=True))
    )
    return Section(
        anchor=anchor,
        board=board,
        title=shown.title.removesuffix(f", protocol {board.fingerprint[:12]}"),
        shown=shown,
        papers=None if board.published is None else published_table(board),
        spreads=tuple(any(member.cells[index].spread for member in members) for index in range(len(shown.columns))),
        marks=tuple(any(member.cells[index].marks for member in members) for index in range(len(shown.columns))),
        members=members,
        figures=data,
        drawings={name: Markup(svg(data, name, f"{anchor}-")) for name in NAMES if draw and data.labels},  # noqa: S704
        drawn=len(data.labels),
        settings=protocol_settings(again.protocol),
        identity=canonical_json(board.protocol),
        runs=_hardware(runs),
        reproduction=again,
    )


# --- the table -------------------------------------------------------------------------------------------------------


def _groups(columns: Sequence[Column]) -> Iterable[Heading]:
    """Yield the upper row of headings: a group over its columns, or a column that is in none."""
    for group, members in groupby(enumerate(columns), key=lambda pair: pair[1].group):
        indices = [index for index, _ in members]
        if group:
            yield Heading(group, indices[0], len(indices))
        else:
            yield from (_heading(index, columns[index], 0) for index in indices)


def _headings(columns: Sequence[Column]) -> Iterable[Heading]:
    """Return the lower row of headings: the columns of groups."""
    return (_heading(index, column, 1) for index, column in enumerate(columns) if column.group)


def _heading(index: int, column: Column, span: int) -> Heading:
    descending = bool(column.group) and column.title != "gap"  # the best first; the smallest gap first
    return Heading(column.title, index, span, column.numeric, descending)


# --- the runs --------------------------------------------------------------------------------------------------------


def _runs_of(store: Store, board: Leaderboard) -> list[RunRow]:
    """Return the runs of the rows of a leaderboard, with their per-image results."""
    rows = {row_key(row) for row in board.rows}
    return [run for run in store.runs(protocol=board.fingerprint, bits=True) if row_key(run) in rows]


def _hardware(runs: Sequence[RunRow]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return by topic what the runs recorded of where they took place, each value with the number of its runs."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for topic, value in recorded(run):
            counts.setdefault(topic, Counter())[value] += 1
    return [(topic, counter.most_common()) for topic, counter in counts.items()]


def recorded(run: RunRow) -> Iterable[tuple[str, str]]:
    """Yield what a run recorded of where it took place, by topic; not the host's name, which is private."""
    environment = run.environment
    kind, name = device_of(run)
    yield "Suite", run.suite
    yield "Device", f"{kind}: {name}"
    for topic, key in (("CPU threads of a worker", "threads"), ("System", "system"), ("CUDA", "cuda")):
        if environment.get(key) is not None:
            yield topic, str(environment[key])
    git = environment.get("git") or {}
    if git.get("revision"):
        yield "Revision of the code", f"{git['revision'][:12]}{' with changes' if git.get('dirty') else ''}"
    for package, installed in (environment.get("versions") or {}).items():
        yield package, installed or "not installed"
