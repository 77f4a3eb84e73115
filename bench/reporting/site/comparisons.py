"""The data of the page that compares two runs in the browser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.errors import NotComparable
from bench.reporting.comparison import Figure, figures_under
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.rows import CompleteRun, complete_run, gap_interval_of, interval_of
from bench.reporting.statistics import Interval
from bench.storage.schema import OutcomeRow, RunRow
from bench.storage.store import Epoch
from bench.utils.environment import different_data

MOST_PAIRS = 8_000
"""Pairs of runs of a board whose differences are part of the page; with more runs there are none.

Three seeds of 42 methods are 7,875 pairs. With three attacks and 1,000 images a pair takes about 3 ms and 0.4 kB.
"""


def comparison_data(
    boards: Sequence[Leaderboard],
    runs: Mapping[str, Sequence[RunRow]],
    curves: Mapping[str, Sequence[Epoch]],
    name_of: Callable[[RunRow], str],
    page_of: Callable[[RunRow], str],
) -> dict[str, Any]:
    """Return the data of the page, as JSON takes it; accuracies in percent.

    Args:
        boards: the leaderboards, whose runs can be compared.
        runs: of each protocol, with their per-image results.
        curves: the epochs of each run.
        name_of: what to call a run.
        page_of: the page of a run.
    """
    described: list[dict[str, Any]] = []
    pairs: dict[str, list[dict[str, list[float]]]] = {}
    for number, board in enumerate(boards):
        attacks, first = board.protocol["evaluation"]["final"], len(described)
        done = [complete_run(run, attacks, board.selection) for run in runs[board.fingerprint]]
        for run, complete in zip(runs[board.fingerprint], done, strict=True):
            described.append(
                {
                    "id": run.fingerprint[:12],
                    "board": number,
                    "name": name_of(run),
                    "page": page_of(run),
                    "folder": Path(run.folder).name,
                    "figures": _figures(complete) if complete else None,
                    "curves": _curves(curves.get(run.fingerprint, ())),
                    "ends": {name: row.epoch + 1 for name, row in sorted(run.checkpoints.items())},
                }
            )
        complete_ones = [(index, run) for index, run in enumerate(done, start=first) if run]
        if len(complete_ones) * (len(complete_ones) - 1) / 2 <= MOST_PAIRS:
            for (one, a), (other, b) in combinations(complete_ones, 2):
                if differences := _differences(a, b, len(attacks)):
                    pairs[f"{one}-{other}"] = differences
    about = [
        {
            "title": board.title,
            "attacks": [attack.title for attack in board.attacks],
            "best": "best_on_test" if board.selection == "test" else "best",
            "tracking": f"PGD-{board.protocol['evaluation']['track']['attack']['steps']}",
        }
        for board in boards
    ]
    return {"boards": about, "runs": described, "pairs": pairs}


def _figures(run: CompleteRun) -> list[list[list[float] | None]]:
    """Return for each attack the accuracy at best, at last and the gap, each with its interval."""
    return [[_share(best), _share(last), _gap(best, last)] for best, last in zip(run.best, run.last, strict=True)]


def _share(outcome: OutcomeRow) -> list[float]:
    return _percent(outcome.accuracy, interval_of(outcome))


def _gap(best: OutcomeRow, last: OutcomeRow) -> list[float] | None:
    """Return best minus last; None for an external model, whose one checkpoint is both."""
    if best is last:
        return None
    return _percent(best.accuracy - last.accuracy, gap_interval_of(best, last))


def _percent(share: float, interval: Interval) -> list[float]:
    return [round(100 * value, 4) for value in (share, *interval)]


def _differences(a: CompleteRun, b: CompleteRun, attacks: int) -> list[dict[str, list[float]]] | None:
    """Return for each attack the paired differences by checkpoint: mean, interval and p; None if nothing is paired."""
    if different_data({"a": a.run.environment, "b": b.run.environment}):
        return None
    try:
        return [
            {figure.checkpoint: _difference(figure) for figure in figures_under("", index, [a], [b])}
            for index in range(attacks)
        ]
    except NotComparable:
        return None


def _difference(figure: Figure) -> list[float]:
    return [*_percent(figure.difference.mean, figure.difference.interval), float(f"{figure.difference.p:.4g}")]


def _curves(epochs: Sequence[Epoch]) -> dict[str, list[float | None]]:
    """Return accuracy under the tracking attack after each epoch, on the images that are tracked.

    It is None after epochs that are not tracked.
    """
    curves: dict[str, list[float | None]] = {
        "training": [epoch.train_robust for epoch in epochs],
        "validation": [epoch.validation_robust for epoch in epochs],
        "test": [epoch.test_robust for epoch in epochs],
    }
    return {
        name: [None if share is None else round(100 * share, 2) for share in shares]
        for name, shares in curves.items()
        if any(share is not None for share in shares)
    }
