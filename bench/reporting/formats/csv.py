"""Leaderboards as CSV: one line for each row and attack, in full precision. docs/report-format.md has the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from bench.reporting.leaderboard import Leaderboard
from bench.reporting.published import PublishedComparison
from bench.reporting.rows import Row, row_key
from bench.reporting.statistics import Estimate
from bench.utils.files import canonical_json

_SIDES = ("best", "last", "gap")
COLUMNS = (
    "record", "protocol", "title", "selection", "label", "method", "version", "params", "custom", "origin",
    "gap_by_construction", "evaluated_only", "rank", "rank_low", "rank_high",
    "attack", "attack_title", "ranks", "images",
    *(f"{side}_{part}" for side in _SIDES for part in ("mean", "sd", "low", "high", "covers", "values")),
    "doubts", "seeds", "collapsed", "diverged", "unfinished", "recorded",
    "device", "hardware", "training_hours", "evaluation_hours", "train_pflop", "peak_memory_bytes",
    "status", "source", "best_difference", "last_difference", "not_compared",
    "target", "pflop_to_target", "target_seeds",
)  # fmt: skip

_ACTIVE = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def render_csv(boards: Sequence[Leaderboard]) -> str:
    """Return a header and the lines of all boards, with the line ends of RFC 4180 (CR LF).

    Lines of the papers' figures have `published` in the column `record`, ours `row`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    for board in boards:
        for line in lines(board):
            writer.writerow({name: _cell(value) for name, value in line.items()})
    return text.getvalue()


def defuse(text: str) -> str:
    """Return `text` so that a spreadsheet takes it as text, not as a formula: an apostrophe before =, +, -, @ and such.

    Text that begins with an apostrophe gets one more, so that `restore` gives back exactly what was there. Source:
    OWASP, CSV Injection.
    """
    return f"'{text}" if text.startswith(_ACTIVE) else text


def restore(cell: str) -> str:
    """Undo `defuse`."""
    return cell.removeprefix("'")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # floats: the shortest text that reads as the same number
    return defuse(value if isinstance(value, str) else canonical_json(value))


def lines(board: Leaderboard) -> Iterator[dict[str, Any]]:
    """Yield the lines of a leaderboard, each with values for some of `COLUMNS`."""
    settings = board.protocol["evaluation"]["final"]
    about = {"protocol": board.fingerprint, "title": board.title, "selection": board.selection}
    for row in board.rows:
        of_row = {"record": "row", **about, **_of_row(row), **_to_target(board, row)}
        for index, (setting, attack) in enumerate(zip(settings, board.attacks, strict=True)):
            yield {
                **of_row,
                "attack": setting["name"],
                "attack_title": attack.title,
                "ranks": index == board.ranked_by,
                "images": attack.images,
                **(_figures(row, index) if row.figures else {}),
                "doubts": _flags(row, index),
            }
    for line in board.published or ():
        yield {"record": "published", **about, **_of_paper(line)}


def _to_target(board: Leaderboard, row: Row) -> dict[str, Any]:
    if board.target is None:
        return {}
    reached = board.target.reached.get(row_key(row))
    cells = {"pflop_to_target": reached.pflop, "target_seeds": list(reached.seeds)} if reached else {}
    return {"target": board.target.accuracy, **cells}


def _of_row(row: Row) -> dict[str, Any]:
    low, high = row.rank_interval or (None, None)
    costs = row.costs
    return {
        **{name: getattr(row, name) for name in ("label", "method", "version", "params", "custom", "origin")},
        "evaluated_only": row.evaluated_only,
        "gap_by_construction": row.gap_by_construction,
        "rank": row.rank,
        "rank_low": low,
        "rank_high": high,
        "seeds": list(row.seeds),
        "collapsed": [seed.seed for seed in row.collapsed],
        "diverged": sorted(row.diverged),
        "unfinished": list(row.unfinished),
        "recorded": row.recorded,
        "device": _each([cost.device for cost in costs]),
        "hardware": _each([cost.hardware for cost in costs]),
        "training_hours": _each([cost.training for cost in costs]),
        "evaluation_hours": _each([cost.evaluation for cost in costs]),
        "train_pflop": _each([cost.pflop for cost in costs]),
        "peak_memory_bytes": _each([cost.memory for cost in costs]),
    }


def _each(values: Sequence[Any]) -> Any:
    """Return the value of the only device, or a list with one for each of several."""
    return values[0] if len(values) == 1 else list(values) or None


def _figures(row: Row, index: int) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for side in _SIDES:
        figure: Estimate | None = getattr(row.figures[index], side)
        if figure is None:
            continue
        low, high = figure.interval
        parts = {"mean": figure.mean, "sd": figure.sd, "low": low, "high": high, "covers": figure.covers}
        cells |= {f"{side}_{part}": value for part, value in parts.items()} | {f"{side}_values": list(figure.values)}
    return cells


def _flags(row: Row, index: int) -> list[dict[str, Any]] | None:
    flags = [
        {"seed": flag.seed, "checkpoint": flag.checkpoint, "reason": flag.reason}
        for flag in row.flags
        if flag.attack == index
    ]
    return None if index in row.unchecked and not flags else flags


def _of_paper(line: PublishedComparison) -> dict[str, Any]:
    source = line.published
    return {
        "label": line.label,
        "method": source.method,
        "selection": source.selection,
        "attack": line.attack,
        "attack_title": line.title,
        "best_mean": line.best.paper,
        "last_mean": line.last.paper,
        "seeds": source.seeds,
        "status": source.status,
        "source": source.source,
        "best_difference": line.best.difference,
        "last_difference": line.last.difference,
        "not_compared": "; ".join(line.reasons) or None,
    }
