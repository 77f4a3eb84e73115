"""Leaderboards as one HTML file that needs nothing else and asks no network for anything.

The file is complete without scripts: they only sort, filter, copy and highlight. Its policy allows no other script than
the two that it holds, by their digest, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from bench.config.attacks import TrainingAttack
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.method_card import Description, describe
from bench.reporting.plots.data import Figures, figures
from bench.reporting.plots.render import NAMES, svg
from bench.reporting.reproduction import Reproduction, reproduction
from bench.reporting.rows import Row, device_of, row_key
from bench.reporting.table import Column, Table, published_table, table
from bench.storage.schema import RunRow
from bench.storage.store import Store
from bench.utils.files import canonical_json

ASSETS = Path(__file__).parent / "assets"

DRAWN_ROWS = 12
"""Rows that figures show, from the best: of more, nobody can read them."""

DRAWN_SIZE = 1_500_000
"""Characters of SVG in one report; the protocols that come after these have their figures in a report of their own."""

_FIGURE = re.compile(r"(-?\d[\d.,]*)( ± [\d.]+)?((?: [†‡§])*)")
_LEADING = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)(?: (s|min|h|[KMGT]iB)\b)?")
_UNITS = {"s": 1, "min": 60, "h": 3600, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_ORIGINS = {
    "paper": "in the paper",
    "code": "in the authors' released code",
    "log": "recomputed from a released training log",
    "secondary": "as quoted by others",
    "declared": "this benchmark's choice, because no readable source gives it",
    "suite": "set in the suite, so the row is custom",
}

_WORDS = {"model": "architecture", "threat": "threat model", "lr": "rate", "eps": "radius", "track": "every epoch"}
_FRACTIONS = {"eps", "step_size"}  # which the field writes as k/255


@dataclass(frozen=True)
class Cell:
    """A cell of a leaderboard: its text, or a figure with spread and marks; `order` is what it is sorted by."""

    text: str
    order: float | None
    figure: str = ""
    spread: str = ""
    marks: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading over `span` columns. `descending`: the first sorting puts the largest figure on top."""

    text: str
    span: int
    numeric: bool = True
    descending: bool = False


@dataclass(frozen=True)
class Member:
    """A row with all that is said of it."""

    anchor: str
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
    figures: Figures
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
        sections.append(_section(store, board, f"b{number}", draw=drawn < DRAWN_SIZE))
    style, script, library = (_asset(name) for name in ("report.css", "report.js", "datatables/dataTables.min.js"))
    return _template().render(
        sections=sections,
        policy=_policy(library, script),
        style=style,
        library=library,
        script=script,
        origins=_ORIGINS,
        version=version("robust-overfitting-bench"),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"groups": _groups, "headings": _headings, "setting": _setting}
    return environment.get_template("report.html.jinja")


@cache
def _asset(name: str) -> Markup:
    """Return a file of the package as it is; nothing in it comes from the store."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))  # noqa: S704


def _policy(*scripts: str) -> str:
    """Return a content security policy under which these scripts run, and nothing is fetched or sent."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Styles cannot be limited so: drawings have style attributes, and the table's script sets some.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _section(store: Store, board: Leaderboard, anchor: str, *, draw: bool) -> Section:
    shown, runs = table(board), _runs_of(store, board)
    data = figures(store, replace(board, rows=board.rows[:DRAWN_ROWS]), runs)
    threads = {run.environment.get("threads") for run in runs}
    again = reproduction(board, threads.pop() if len(threads) == 1 else None)
    setting = TrainingAttack.model_validate(board.protocol["training"]["attack"]).setting
    members = tuple(
        Member(
            anchor=f"{anchor}-row{number}",
            row=row,
            cells=tuple(map(_cell, cells)),
            description=describe(row, board.dataset.name, setting),
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
        settings=_settings(again.protocol),
        identity=canonical_json(board.protocol),
        runs=_hardware(runs),
        reproduction=again,
    )


# --- the table -------------------------------------------------------------------------------------------------------


def _groups(columns: Iterable[Column]) -> Iterable[Heading]:
    """Yield the upper row of headings: a group over its columns, or a column that is in none."""
    for group, members in groupby(columns, key=lambda column: column.group):
        held = list(members)
        if group:
            yield Heading(group, len(held))
        else:
            yield from (_heading(column, 0) for column in held)


def _headings(columns: Iterable[Column]) -> Iterable[Heading]:
    """Yield the lower row of headings: the columns of groups."""
    return (_heading(column, 1) for column in columns if column.group)


def _heading(column: Column, span: int) -> Heading:
    descending = bool(column.group) and column.title != "gap"  # the best first; the smallest gap first
    return Heading(column.title, span, column.numeric, descending)


def _cell(text: str) -> Cell:
    """Return a cell with its parts, so that figures stand under each other whatever follows them."""
    number = _LEADING.match(text)
    order = float(number[1].replace(",", "")) * _UNITS.get(number[2], 1) if number else None
    if match := _FIGURE.fullmatch(text):
        return Cell(text, order, match[1].replace("-", "\N{MINUS SIGN}"), (match[2] or "").strip(), match[3].strip())
    return Cell(text, order)


# --- the protocol ----------------------------------------------------------------------------------------------------


def _settings(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every setting of a protocol, as terms and what they are."""
    terms: list[tuple[str, str]] = []
    for key, value in protocol.items():
        if key in ("training", "evaluation"):
            terms += [(_term(key, inner), _setting(held, inner)) for inner, held in value.items()]
        else:
            terms.append((_term(key), _setting(value, key)))
    return terms


def _term(*keys: str) -> str:
    return ": ".join(_WORDS.get(key, key.replace("_", " ")) for key in keys).capitalize()


def _setting(value: Any, key: str = "") -> str:
    """Return a setting as one line of text."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float() if key in _FRACTIONS and abs(value * 255 - round(value * 255)) < 1e-6:
            return f"{round(value * 255)}/255"
        case float():
            return f"{value:g}"
        case None:
            return "none"
        case list() | tuple():
            nested = any(isinstance(item, dict) for item in value)
            return ("; " if nested else ", ").join(_setting(item, key) for item in value) or "none"
        case dict():
            parts = [str(value["name"])] if "name" in value else []
            for inner, held in value.items():
                if inner != "name":
                    parts.append(f"{_term(inner).lower()} {_setting(held, inner)}")
            return ", ".join(parts)
        case _:
            return str(value)


# --- the runs --------------------------------------------------------------------------------------------------------


def _runs_of(store: Store, board: Leaderboard) -> list[RunRow]:
    """Return the runs of the rows of a leaderboard, with their verdicts."""
    rows = {row_key(row) for row in board.rows}
    return [run for run in store.runs(protocol=board.fingerprint, bits=True) if row_key(run) in rows]


def _hardware(runs: Sequence[RunRow]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return by topic what the runs recorded of where they took place, each value with the number of its runs."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for topic, value in _recorded(run):
            counts.setdefault(topic, Counter())[value] += 1
    return [(topic, counter.most_common()) for topic, counter in counts.items()]


def _recorded(run: RunRow) -> Iterable[tuple[str, str]]:
    """Yield topics and values; not the host's name, which is nobody's business."""
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
