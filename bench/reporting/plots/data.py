"""What the figures of a leaderboard show, as plain data: `plots` draws it, the HTML report tables it.

Every part has one entry for each row of the leaderboard that has an averaged seed, in its order, and speaks of those
seeds only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.errors import BenchError
from bench.reporting import rows
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.rows import Measured, Row, device_of, measured, row_key
from bench.reporting.statistics import Estimate
from bench.storage.schema import RunRow
from bench.storage.store import Epoch, Store


@dataclass(frozen=True)
class Value:
    """A figure and its interval at 95 %, in percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """An accuracy over the epochs, in percent: mean, lowest and highest of the seeds that were trained so long.

    `epochs` counts those trained, so the first is 1. `seeds`: how many there are at each; fewer where seeds stopped
    earlier than others.
    """

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Mark:
    """A checkpoint of one seed: after how many epochs, and the accuracies there in percent (None: not recorded)."""

    seed: int
    epochs: int
    validation: float | None
    test: float | None


@dataclass(frozen=True)
class Curve:
    """How a row learned: accuracy under the attack of training (`train`) and of tracking (the others).

    `test` is None where not every seed tracks the test images. `best` and `last` have one mark a seed. `drops`: at the
    end of which epochs (from 1) the learning rate had fallen to half or less from a plateau; none for a rate that falls
    all the time. The protocol's own schedules fall on the last step of such an epoch.
    """

    label: str
    method: str
    train: Line
    validation: Line
    test: Line | None
    best: tuple[Mark, ...]
    last: tuple[Mark, ...]
    drops: tuple[int, ...]


@dataclass(frozen=True)
class Curves:
    """The attack that tracks, on which images `best` was chosen, and a curve for each row."""

    attack: str
    chosen_on: rows.Selection
    rows: tuple[Curve, ...]


@dataclass(frozen=True)
class Triple:
    """A row under one attack; `gap` in percentage points, None where it was not measured."""

    best: Value
    last: Value
    gap: Value | None


@dataclass(frozen=True)
class GapRow:
    """A row under every attack, in the order of `Gap.attacks`."""

    label: str
    method: str
    by_construction: bool
    attacks: tuple[Triple, ...]


@dataclass(frozen=True)
class Gap:
    """Best, last and gap of every row, best row first; `attacks` are titles, `ranked_by` the index of one."""

    attacks: tuple[str, ...]
    ranked_by: int
    rows: tuple[GapRow, ...]


@dataclass(frozen=True)
class CostPoint:
    """A row's accuracy at best under the ranking attack, and the mean cost of training a seed."""

    label: str
    method: str
    robust: Value
    cost: float


@dataclass(frozen=True)
class Costs:
    """Robust accuracy against the cost of training.

    `unit` is PFLOP if every row that was trained here counted them. Otherwise hours by the clock on `device`, the kind
    on which most rows were trained; `hardware` counts the runs behind the hours by the name of their device, and
    `left_out` names the rows without hours on that kind. For PFLOP, which no hardware changes, `hardware` is empty,
    `device` is None, and only rows that were trained elsewhere are left out.
    """

    attack: str
    unit: Literal["PFLOP", "hours"]
    device: str | None
    hardware: dict[str, int]
    rows: tuple[CostPoint, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """On which test images rows are right at best under the ranking attack; shares in percent, over all seed pairs.

    `same[a][b]`: both verdicts are equal. `only[a][b]`: row a is right and row b is not. The diagonals compare two
    seeds of one row, and are None where it has one. `none_right` and `all_right` count the images that no seed of any
    row, or every seed of every row, has right.
    """

    attack: str
    images: int
    labels: tuple[str, ...]
    methods: tuple[str, ...]
    same: tuple[tuple[float | None, ...], ...]
    only: tuple[tuple[float | None, ...], ...]
    none_right: int
    all_right: int


@dataclass(frozen=True)
class Figures:
    """The data of the four figures of a leaderboard; without a row if no seed was averaged."""

    title: str
    curves: Curves
    gap: Gap
    cost: Costs
    agreement: Agreement

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows that every figure shows, best first."""
        return self.agreement.labels


def figures(store: Store, board: Leaderboard, runs: Sequence[RunRow] | None = None) -> Figures:
    """Return the data of the figures of `board`, with what only `store` knows: curves, costs and verdicts.

    Args:
        store: what the leaderboard was made from.
        board: its rows are drawn, those that have figures.
        runs: the runs of its protocol with their verdicts, where they are loaded already.

    Raises:
        BenchError: the store no longer holds the runs of the leaderboard.
    """
    shown = [row for row in board.rows if row.figures]
    if runs is None:
        runs = store.runs(protocol=board.fingerprint, bits=True)
    seeds = _seeds(runs, board, shown)
    attack = board.attacks[board.ranked_by].title
    return Figures(
        title=board.title,
        curves=_curves(store, board, shown, seeds),
        gap=Gap(
            tuple(attack.title for attack in board.attacks),
            board.ranked_by,
            tuple(_gap_row(row) for row in shown),
        ),
        cost=_costs(attack, shown, seeds, board.ranked_by),
        agreement=_agreement(attack, shown, seeds, board.ranked_by),
    )


def _seeds(all_runs: Sequence[RunRow], board: Leaderboard, shown: Sequence[Row]) -> list[list[Measured]]:
    """Return the averaged runs of each row, in the order of its seeds."""
    finals = board.protocol["evaluation"]["final"]
    wanted = {(row_key(row), seed) for row in shown for seed in row.seeds}
    runs = {
        key: found
        for run in all_runs
        if (key := (row_key(run), run.seed)) in wanted and (found := measured(run, finals, board.selection))
    }
    if wanted - set(runs):
        raise BenchError("the store has changed since the leaderboard was made; make it again")
    return [[runs[(row_key(row), seed)] for seed in row.seeds] for row in shown]


# --- curves ----------------------------------------------------------------------------------------------------------


def _curves(store: Store, board: Leaderboard, shown: Sequence[Row], seeds: Sequence[Sequence[Measured]]) -> Curves:
    epochs = store.curves([seed.run.fingerprint for group in seeds for seed in group])
    steps = board.protocol["evaluation"]["track"]["attack"]["steps"]
    return Curves(
        attack=f"PGD-{steps}",
        chosen_on=board.selection,
        rows=tuple(
            _curve(row, group, [epochs.get(seed.run.fingerprint, []) for seed in group], board.selection)
            for row, group in zip(shown, seeds, strict=True)
        ),
    )


def _curve(row: Row, seeds: Sequence[Measured], curves: Sequence[Sequence[Epoch]], selection: rows.Selection) -> Curve:
    tracked = all(epoch.test_robust is not None for curve in curves for epoch in curve)
    return Curve(
        label=row.label,
        method=row.method,
        train=_line([[epoch.train_robust for epoch in curve] for curve in curves]),
        validation=_line([[epoch.validation_robust for epoch in curve] for curve in curves]),
        test=_line([[epoch.test_robust or 0.0 for epoch in curve] for curve in curves]) if tracked else None,
        best=() if row.evaluated_only else _marks(seeds, curves, rows.BEST[selection]),
        last=() if row.evaluated_only else _marks(seeds, curves, "last"),
        drops=tuple(sorted({drop for curve in curves for drop in _drops([epoch.lr for epoch in curve])})),
    )


def _line(curves: Sequence[Sequence[float]]) -> Line:
    """Return mean and extremes, epoch by epoch, of accuracies as shares, one sequence a seed."""
    longest = max(map(len, curves))
    values = np.full((len(curves), longest), np.nan)
    for line, curve in zip(values, curves, strict=True):
        line[: len(curve)] = curve
    reached = ~np.isnan(values)
    counts = reached.sum(0)
    percent = 100 * values
    return Line(
        epochs=tuple(range(1, longest + 1)),
        mean=tuple((np.where(reached, percent, 0).sum(0) / np.maximum(counts, 1)).tolist()),
        low=tuple(np.where(reached, percent, np.inf).min(0).tolist()),
        high=tuple(np.where(reached, percent, -np.inf).max(0).tolist()),
        seeds=tuple(counts.tolist()),
    )


def _marks(seeds: Sequence[Measured], curves: Sequence[Sequence[Epoch]], checkpoint: str) -> tuple[Mark, ...]:
    marks = []
    for seed, curve in zip(seeds, curves, strict=True):
        epoch = seed.run.checkpoints[checkpoint].epoch
        at = curve[epoch] if epoch < len(curve) else None
        marks.append(
            Mark(
                seed.run.seed,
                epoch + 1,
                None if at is None else 100 * at.validation_robust,
                None if at is None or at.test_robust is None else 100 * at.test_robust,
            )
        )
    return tuple(marks)


def _drops(rates: Sequence[float]) -> list[int]:
    """Return in which epochs, from 1, the rate fell to half or less, having stood still before."""
    return [
        epoch + 1
        for epoch in range(1, len(rates))
        if rates[epoch - 1] == rates[max(epoch - 2, 0)] > 0 and rates[epoch] <= rates[epoch - 1] / 2
    ]


# --- gap and cost ----------------------------------------------------------------------------------------------------


def _percent(estimate: Estimate) -> Value:
    return Value(100 * estimate.mean, 100 * estimate.interval[0], 100 * estimate.interval[1])


def _gap_row(row: Row) -> GapRow:
    triples = (
        Triple(_percent(under.best), _percent(under.last), None if under.gap is None else _percent(under.gap))
        for under in row.figures
    )
    return GapRow(row.label, row.method, row.gap_by_construction, tuple(triples))


def _costs(attack: str, shown: Sequence[Row], seeds: Sequence[Sequence[Measured]], ranked_by: int) -> Costs:
    work = [[seed.run.train_pflop for seed in group if seed.run.train_pflop is not None] for group in seeds]
    timed = [[seed.run for seed in group if seed.run.train_seconds is not None] for group in seeds]
    kinds = Counter(kind for group in timed for kind in {device_of(run)[0] for run in group})
    device, hardware = None, Counter[str]()
    counted = all(amounts for row, amounts in zip(shown, work, strict=True) if not row.evaluated_only)
    if not counted and kinds:
        device = max(sorted(kinds), key=kinds.__getitem__)
        timed = [[run for run in group if device_of(run)[0] == device] for group in timed]
        hardware = Counter(device_of(run)[1] for group in timed for run in group)
        work = [[(run.train_seconds or 0.0) / 3600 for run in group] for group in timed]
    points = [
        CostPoint(row.label, row.method, _percent(row.figures[ranked_by].best), math.fsum(costs) / len(costs))
        for row, costs in zip(shown, work, strict=True)
        if costs
    ]
    return Costs(
        attack=attack,
        unit="PFLOP" if device is None else "hours",
        device=device,
        hardware=dict(hardware.most_common()),
        rows=tuple(points),
        left_out=tuple(row.label for row, costs in zip(shown, work, strict=True) if not costs),
    )


# --- agreement -------------------------------------------------------------------------------------------------------


def _agreement(attack: str, shown: Sequence[Row], seeds: Sequence[Sequence[Measured]], ranked_by: int) -> Agreement:
    labels, methods = tuple(row.label for row in shown), tuple(row.method for row in shown)
    if not shown:
        return Agreement(attack, 0, (), (), (), (), 0, 0)
    images = seeds[0][0].best[ranked_by].count
    right = np.stack([_right(group, ranked_by, images) for group in seeds])  # [rows, images], how many seeds
    count = np.array([[len(group)] for group in seeds])
    share = right / count
    only = share @ (1 - share).T / images
    # Of one row's seeds, a pair is of two different ones: n (n - 1) pairs, of which k (n - k) have one right, one not.
    pairs = np.maximum(count * (count - 1), 1)
    np.fill_diagonal(only, (right * (count - right) / pairs).mean(1))
    same = 1 - only - only.T
    single = np.diag(count[:, 0] == 1)
    return Agreement(
        attack=attack,
        images=images,
        labels=labels,
        methods=methods,
        same=_table(same, single),
        only=_table(only, single),
        none_right=int((right == 0).all(0).sum()),
        all_right=int((right == count).all(0).sum()),
    )


def _right(seeds: Sequence[Measured], ranked_by: int, images: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many of the seeds are right about each image: [images]."""
    packed = np.frombuffer(b"".join(seed.best[ranked_by].correct for seed in seeds), np.uint8)
    bits = np.unpackbits(packed.reshape(len(seeds), -1), axis=1, count=images)
    right: np.ndarray[Any, np.dtype[np.int64]] = bits.sum(0, dtype=np.int64)
    return right


def _table(shares: np.ndarray[Any, Any], missing: np.ndarray[Any, Any]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(None if absent else 100 * share for share, absent in zip(line, gone, strict=True))
        for line, gone in zip(shares.tolist(), missing.tolist(), strict=True)
    )
