"""In which order the rows of a leaderboard are shown; their ranks stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.errors import BenchError, did_you_mean
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.rows import Row

Value = float | str | None
"""What rows are ordered by, smallest first; None comes last."""


def by(boards: Sequence[Leaderboard], key: str) -> list[Leaderboard]:
    """Return `boards` with their rows in the order of `key`; equal ones, and those without a value, keep theirs.

    Keys: `rank`; the attacks by name (`clean`, `fgsm`, `pgd`, `cw`, `autoattack`: highest accuracy at best first; where
    there are several of a name, under the first); `last` (highest first) and `gap` (smallest first) under the attack
    that ranks; `cost` (hours of training and evaluation), `pflop` and `memory` of a seed, least first, as means over
    the row's devices; `method` (labels by the alphabet). A board without the attack stays as it is.

    Raises:
        BenchError: no such key, or no board has the attack.
    """
    attacks = {final["name"] for board in boards for final in board.protocol["evaluation"]["final"]}
    known = {*_KEYS, *attacks}
    if key not in known:
        raise BenchError(f"rows cannot be sorted by '{key:.40}'{did_you_mean(key, known)}")
    return [replace(board, rows=tuple(_sorted(board, key))) for board in boards]


def _sorted(board: Leaderboard, key: str) -> list[Row]:
    names = [final["name"] for final in board.protocol["evaluation"]["final"]]
    value = _KEYS.get(key)
    if value is None and key not in names:
        return list(board.rows)

    def of(row: Row) -> Value:
        if value is None:
            return -row.figures[names.index(key)].best.mean if row.figures else None
        return value(board, row)

    values = [(of(row), row) for row in board.rows]
    with_value = sorted((pair for pair in values if pair[0] is not None), key=lambda pair: pair[0])  # type: ignore[arg-type, return-value]
    return [row for _, row in with_value] + [row for found, row in values if found is None]


_KEYS: dict[str, Callable[[Leaderboard, Row], Value]] = {
    "rank": lambda board, row: row.rank,
    "last": lambda board, row: -row.figures[board.ranked_by].last.mean if row.figures else None,
    "gap": lambda board, row: gap.mean if row.figures and (gap := row.figures[board.ranked_by].gap) else None,
    "cost": lambda board, row: row.mean_cost(lambda cost: cost.training + cost.evaluation),
    "pflop": lambda board, row: row.mean_cost(lambda cost: cost.pflop),
    "memory": lambda board, row: row.mean_cost(lambda cost: cost.memory),
    "method": lambda board, row: row.label.casefold(),
}
