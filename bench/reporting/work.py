"""The work of training: after each epoch, and until a level of robust accuracy was reached."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean

from bench.errors import BenchError
from bench.reporting.leaderboard import Leaderboard, Reached, Target
from bench.reporting.rows import CompleteRun, Row, complete_run, row_key
from bench.storage.schema import RunRow
from bench.storage.store import Epoch, Store


def work_after(run: RunRow, epochs: Sequence[Epoch]) -> list[float] | None:
    """Return the work in PFLOP from the start of training to the end of each epoch; None if it is not known.

    The training of teachers comes first: it is what the work of the run has beyond that of its epochs.
    """
    own = [epoch.train_pflop for epoch in epochs]
    counted = [amount for amount in own if amount is not None]
    if run.train_pflop is None or len(counted) < len(own):
        return None
    teachers = run.train_pflop - sum(counted)
    return list(accumulate(counted, initial=teachers if teachers > 1e-9 * run.train_pflop else 0.0))[1:]


def target(store: Store, board: Leaderboard, accuracy: float) -> Target:
    """Return which rows of `board` reached `accuracy` under the ranking attack, and with how much work of training.

    A seed has reached it if its measured accuracy at best or at last is at least `accuracy`. The work is that up to the
    earlier such checkpoint: checkpoints in between are not attacked, so it is an upper bound.

    Raises:
        BenchError: the store no longer holds the runs of the leaderboard.
    """
    rows = [row for row in board.rows if row.figures and not row.evaluated_only]
    runs = averaged_runs(store.runs(protocol=board.fingerprint, bits=True), board, rows)
    curves = store.curves([seed.run.fingerprint for group in runs for seed in group])
    reached = {}
    for row, group in zip(rows, runs, strict=True):
        work = {}
        for seed in group:
            amounts = work_after(seed.run, curves.get(seed.run.fingerprint, []))
            outcomes = seed.best[board.ranked_by], seed.last[board.ranked_by]
            epochs = [seed.run.checkpoints[one.checkpoint].epoch for one in outcomes if one.accuracy >= accuracy]
            if amounts and epochs:
                work[seed.run.seed] = amounts[min(epochs)]
        if work:
            reached[row_key(row)] = Reached(fmean(work.values()), tuple(work))
    return Target(accuracy, reached)


def averaged_runs(runs: Sequence[RunRow], board: Leaderboard, rows: Sequence[Row]) -> list[list[CompleteRun]]:
    """Return the averaged runs of each row, in the order of its seeds."""
    attacks = board.protocol["evaluation"]["final"]
    wanted = {(row_key(row), seed) for row in rows for seed in row.seeds}
    complete = {
        key: run
        for stored in runs
        if (key := (row_key(stored), stored.seed)) in wanted and (run := complete_run(stored, attacks, board.selection))
    }
    if wanted - set(complete):
        raise BenchError("the database has changed since the leaderboard was built; build it again")
    return [[complete[(row_key(row), seed)] for seed in row.seeds] for row in rows]
