"""What the figures of a leaderboard show: two tidy tables, and how often pairs of rows agree.

Everything covers the rows that have an averaged seed, in the order of the leaderboard, and only these seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.config.cell import EVALUATED
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.published_comparison import other_images, plain, threat_of
from bench.reporting.released_curves import read_curves
from bench.reporting.rows import BEST, CompleteRun, Row, Selection, correct, device_of
from bench.reporting.statistics import Floats
from bench.reporting.work import averaged_runs, work_after
from bench.storage.schema import RunRow
from bench.storage.store import Epoch, Store
from bench.utils.environment import different_data

CURVES = (
    *("row", "label", "method", "seed", "epoch", "lr"),
    *("train", "validation", "test", "best", "last", "work", "drop"),
)  # fmt: skip
RELEASED = ("row", "epoch", "test")
RESULTS = (
    *("row", "label", "method", "by_construction", "attack", "checkpoint"),
    *("mean", "low", "high", "cost"),
)  # fmt: skip


@dataclass(frozen=True)
class FigureData:
    """The data of the five figures of a leaderboard; the tables are empty if no seed was averaged.

    `curves`: one line per row, seed and epoch. `row` counts from 0, `epoch` from 1. `train` is accuracy in percent
    under the attack of training, `validation` and `test` under `tracking`; they are NaN after epochs that a seed did
    not track, `test` also where it does not track test images. `best` and `last` say whether the checkpoint is of this
    epoch; `drop`, whether the learning rate fell to half or less from a plateau. (The protocol's own schedules fall on
    the last step of such an epoch.) `work` is the work of training up to here in PFLOP (`work.work_after`), NaN if it
    is not known.

    `released`: points that the authors of a row's method released of a curve under the same settings: `row`, `epoch`
    and `test` as in `curves`, as far as shipped.

    `results`: one line per row, attack and checkpoint (best, last or gap). `mean`, and the 95 % interval from `low` to
    `high`, are in percent. A row that was only evaluated has no gap. `cost` is the mean over seeds of the cost of
    training, in `unit`; NaN if it is unknown.

    `unit` is PFLOP if every row that was trained here counted them. Otherwise it is hours by the clock on `device`, the
    kind on which most rows were trained, and `hardware` counts these runs by the name of their device.

    `same[a, b]`: the percentage of the `images` under the ranking attack, at best, on which rows a and b are both
    correct or both wrong. `only[a, b]`: on which a is correct and b is not. Both are means over all pairs of seeds; the
    diagonals compare two seeds of one row, and are NaN where it has one; all is NaN if runs record different data.
    `none_right` and `all_right` count the images on which no seed of any row is correct, and every seed of every row.
    """

    title: str
    attacks: tuple[str, ...]
    ranked_by: int
    tracking: str
    curves: pd.DataFrame
    results: pd.DataFrame
    unit: Literal["PFLOP", "hours"]
    device: str | None
    hardware: dict[str, int]
    images: int
    same: Floats
    only: Floats
    none_right: int
    all_right: int
    released: pd.DataFrame = field(default_factory=lambda: pd.DataFrame([], columns=RELEASED))

    @property
    def ranking(self) -> str:
        """The title of the ranking attack."""
        return self.attacks[self.ranked_by]

    @property
    def rows(self) -> pd.DataFrame:
        """One line per row: label, method, by_construction, cost, and its results at best under the ranking attack."""
        chosen = self.results[(self.results.attack == self.ranking) & (self.results.checkpoint == "best")]
        return chosen.set_index("row")

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows that every figure shows, best first."""
        return tuple(self.rows.label)

    @property
    def without_cost(self) -> tuple[str, ...]:
        """The rows whose cost is unknown, or not comparable with the others'."""
        return tuple(self.rows.label[self.rows.cost.isna()])


def figures(store: Store, board: Leaderboard, runs: Sequence[RunRow] | None = None) -> FigureData:
    """Return the data of the figures of `board`, with what only `store` has: curves, costs and per-image results.

    Args:
        store: what the leaderboard was made from.
        board: its rows are drawn, those that have figures.
        runs: the runs of its protocol with their per-image results, if they are loaded already.

    Raises:
        BenchError: the store no longer holds the runs of the leaderboard.
    """
    rows = [row for row in board.rows if row.figures]
    seeds = averaged_runs(store.runs(protocol=board.fingerprint, bits=True) if runs is None else runs, board, rows)
    epochs = store.curves([seed.run.fingerprint for group in seeds for seed in group])
    costs, device, hardware = _costs(rows, seeds)
    titles = tuple(attack.title for attack in board.attacks)
    return FigureData(
        title=board.title,
        attacks=titles,
        ranked_by=board.ranked_by,
        tracking=f"PGD-{board.protocol['evaluation']['track']['attack']['steps']}",
        curves=_curves(
            [
                line
                for number, (row, group) in enumerate(zip(rows, seeds, strict=True))
                for seed in group
                for line in _epochs(
                    number, row.label, seed.run, epochs.get(seed.run.fingerprint, []), BEST[board.selection]
                )
            ]
        ),
        released=_released(board, rows),
        results=_results(rows, titles, costs),
        unit="PFLOP" if device is None else "hours",
        device=device,
        hardware=hardware,
        **_agreement(seeds, board.ranked_by),
    )


def run_figures(run: RunRow, label: str, epochs: Sequence[Epoch], selection: Selection) -> FigureData:
    """Return the data of the figure `curves` of one run, which need not be complete."""
    results = [(0, label, run.method, False, "", "best", *[math.nan] * 4)]
    steps = run.protocol.content["evaluation"]["track"]["attack"]["steps"]
    return FigureData(
        title=label,
        attacks=("",),
        ranked_by=0,
        tracking=f"PGD-{steps}",
        curves=_curves(_epochs(0, label, run, epochs, BEST[selection])),
        results=pd.DataFrame(results, columns=RESULTS),
        unit="PFLOP",
        device=None,
        hardware={},
        **_agreement([], 0),
    )


def _epochs(row: int, label: str, run: RunRow, epochs: Sequence[Epoch], best: str) -> list[tuple[Any, ...]]:
    """Return the lines of a run in the table of curves, without the last column."""
    trained = run.method != EVALUATED  # the one checkpoint of an external model is of no epoch
    ends = {name: checkpoint.epoch for name, checkpoint in run.checkpoints.items()} if trained else {}
    work = work_after(run, epochs) or [math.nan] * len(epochs)
    return [
        (
            *(row, label, run.method, run.seed, epoch.epoch + 1, epoch.lr),
            *(epoch.train_robust, epoch.validation_robust, epoch.test_robust),
            *(epoch.epoch == ends.get(best), epoch.epoch == ends.get("last"), amount),
        )
        for epoch, amount in zip(epochs, work, strict=True)
    ]


def _curves(records: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    curves = pd.DataFrame(records, columns=CURVES[:-1])
    accuracies = ["train", "validation", "test"]
    curves[accuracies] = 100 * curves[accuracies].astype(float)
    rates = curves.groupby(["row", "seed"]).lr
    before = rates.shift(1)
    plateau = before == rates.shift(2).fillna(before)
    return curves.assign(drop=plateau & (before > 0) & (curves.lr <= before / 2))


def _released(board: Leaderboard, rows: Sequence[Row]) -> pd.DataFrame:
    records = [
        (number, point.epoch + 1, 100 * point.pgd)
        for point in ([] if other_images(board.dataset) else read_curves())
        if (point.dataset, plain(point.architecture)) == (board.dataset.name, plain(board.protocol["model"]))
        and point.threat == threat_of(board)
        and point.epochs == board.protocol["training"]["epochs"]
        and point.pgd_steps == board.protocol["evaluation"]["track"]["attack"]["steps"]
        for number, row in enumerate(rows)
        if row.method == point.method and not row.custom
    ]
    return pd.DataFrame(records, columns=RELEASED)


def _results(rows: Sequence[Row], titles: Sequence[str], costs: Sequence[float]) -> pd.DataFrame:
    records = [
        (
            *(number, row.label, row.method, row.gap_by_construction, title, checkpoint),
            *(100 * share for share in (estimate.mean, *estimate.interval)),
            cost,
        )
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True))
        for title, under in zip(titles, row.figures, strict=True)
        for checkpoint, estimate in (("best", under.best), ("last", under.last), ("gap", under.gap))
        if estimate is not None
    ]
    return pd.DataFrame(records, columns=RESULTS)


def _costs(
    rows: Sequence[Row], seeds: Sequence[Sequence[CompleteRun]]
) -> tuple[list[float], str | None, dict[str, int]]:
    """Return the mean cost of a seed of each row, and if it is in hours, on which kind of device and which of it."""
    work = [[seed.run.train_pflop for seed in group if seed.run.train_pflop is not None] for group in seeds]
    timed = [[seed.run for seed in group if seed.run.train_seconds is not None] for group in seeds]
    kinds = Counter(kind for group in timed for kind in {device_of(run)[0] for run in group})
    device, hardware = None, Counter[str]()
    counted = all(amounts for row, amounts in zip(rows, work, strict=True) if not row.evaluated_only)
    if not counted and kinds:
        device = max(sorted(kinds), key=kinds.__getitem__)
        timed = [[run for run in group if device_of(run)[0] == device] for group in timed]
        hardware = Counter(device_of(run)[1] for group in timed for run in group)
        work = [[(run.train_seconds or 0.0) / 3600 for run in group] for group in timed]
    means = [math.fsum(amounts) / len(amounts) if amounts else math.nan for amounts in work]
    return means, device, dict(hardware.most_common())


def _agreement(seeds: Sequence[Sequence[CompleteRun]], attack: int) -> dict[str, Any]:
    if not seeds:
        return {"images": 0, "same": np.zeros((0, 0)), "only": np.zeros((0, 0)), "none_right": 0, "all_right": 0}
    right = np.stack([correct([seed.best[attack] for seed in group]).sum(0) for group in seeds])  # [rows, images]
    count = np.array([[len(group)] for group in seeds])
    share = right / count
    only = share @ (1 - share).T / right.shape[1]
    # Of one row's seeds, a pair is of two different ones: n (n - 1) pairs, of which k (n - k) have one right, one not.
    pairs = np.maximum(count * (count - 1), 1)
    np.fill_diagonal(only, (right * (count - right) / pairs).mean(1))
    only[np.diag(count[:, 0] == 1)] = np.nan
    if different_data({seed.run.fingerprint: seed.run.environment for group in seeds for seed in group}):
        only[:] = np.nan
    return {
        "images": right.shape[1],
        "same": 100 * (1 - only - only.T),
        "only": 100 * only,
        "none_right": int((right == 0).all(0).sum()),
        "all_right": int((right == count).all(0).sum()),
    }
