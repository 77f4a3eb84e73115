"""A suite's results beside the published figures that it names: points, standard errors and a verdict for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.config.cell import ResolvedMethod
from bench.config.suite import LoadedSuite
from bench.registry import DATASETS
from bench.reporting.leaderboard import Leaderboard, leaderboard_of
from bench.reporting.notes import percent
from bench.reporting.published import ATTACKS, Published
from bench.reporting.published_comparison import attack_title, column_of, other_images, why_no_best
from bench.reporting.published_rows import published_rows
from bench.reporting.released_curves import Point
from bench.reporting.rows import CompleteRun, Row, Selection, complete_run, correct, row_key
from bench.reporting.statistics import CONFIDENCE, Distance, Gaps, binomial_error, distance, image_noise_of
from bench.reporting.table import NONE, Table, points, text_table
from bench.storage.schema import RunRow
from bench.storage.store import Epoch, Store, mean_of_last_five
from bench.utils.files import canonical_json

OWN = "run"
"""Status of published lines that are figures of runs under the suite's own protocol: they saw the same images."""

ASSUMED: Mapping[str, float] = {"best": 0.005, "last": 0.012, "gap": math.hypot(0.005, 0.012), "epoch": 0.012}
"""Standard deviation over seeds that is assumed of one run, if there is only one: what plain adversarial training
has on CIFAR-10, at best at most 0.5 points, at last 1.2."""

Verdict = Literal["within noise", "better", "worse", "not comparable"]


@dataclass(frozen=True)
class ReproducedFigure:
    """A published figure and ours, as shares; `distance` is ours minus the published one, None if not comparable.

    `checkpoint`: best, last, gap, or "epoch k" of a released curve, from 0. `reason`: why they are not comparable.
    `different`: because their settings differ, not because ours is not measured yet.
    """

    row: str
    source: str
    attack: str
    checkpoint: str
    published: float
    ours: float | None
    seeds: int
    distance: Distance | None
    reason: str = ""
    different: bool = False

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is significant, and whether it is in our favour; a larger gap is worse."""
        if self.distance is None:
            return "not comparable"
        if self.distance.p >= 1 - CONFIDENCE:
            return "within noise"
        return "better" if (self.distance.mean > 0) != (self.checkpoint == "gap") else "worse"

    @property
    def sentence(self) -> str:
        """The verdict with its size or its reason."""
        if self.distance is None:
            return f"not comparable: {self.reason}"
        if self.verdict == "within noise":
            return self.verdict
        size = abs(self.distance.mean)
        return f"{self.verdict} by {percent(size)} points, {size / self.distance.error:.1f} standard errors"


@dataclass(frozen=True)
class Reproduced:
    """All published figures that a suite names, in its order, beside ours."""

    suite: str
    figures: tuple[ReproducedFigure, ...]
    notes: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether some figure is comparable, and none has other settings than ours."""
        return any(one.distance for one in self.figures) and not any(one.different for one in self.figures)

    def tables(self) -> list[Table]:
        """Return the table to show; accuracies in percent."""
        headings = ["Method", "Attack", "Checkpoint", "Published", "Ours", "Difference", "Standard error", "Seeds"]
        lines = [
            [
                *(one.row, one.attack, one.checkpoint, percent(one.published)),
                NONE if one.ours is None else percent(one.ours),
                points(one.distance.mean) if one.distance else NONE,
                percent(one.distance.error) if one.distance else NONE,
                *(str(one.seeds), one.sentence, one.source),
            ]
            for one in self.figures
        ]
        title = f"Published figures and ours: {self.suite}"
        return [text_table(title, [*headings, "Verdict", "Source"], lines, range(3, 8), notes=self.notes)]


def reproduced(
    store: Store, loaded: LoadedSuite, lines: Sequence[Published], curves: Sequence[Point] = ()
) -> Reproduced:
    """Compare a suite's results with the published figures that it names.

    Works on unfinished runs: their epochs are compared with those of `curves`. Each figure is tested on its own at the
    5 % level, see `statistics.distance`; a source that does not state its seeds counts as one.

    Raises:
        BenchError: the suite names no published figure, or one that does not exist.
        NotComparable: one that is of another threat.
    """
    pairs = published_rows(loaded, lines)
    fingerprint = loaded.suite.protocol.fingerprint
    runs = store.runs(protocol=fingerprint, bits=True)
    boards = {name: leaderboard_of(store, fingerprint, name) for name in {_selection(line) for _, line in pairs}}
    epochs = store.curves([run.fingerprint for run in runs])
    figures: list[ReproducedFigure] = []
    notes = [
        "Difference: ours minus published, in points. Standard error: of the difference, over seeds and images; "
        "with one seed of ours, seeds are assumed to vary by "
        f"{percent(ASSUMED['best'])} points at best and {percent(ASSUMED['last'])} at last. "
        "Each verdict at the 5 % level."
    ]
    for method, line in pairs:
        key = canonical_json([method.name, method.version, method.params])
        own = [run for run in runs if row_key(run) == key]
        board = boards[_selection(line)]
        row = next((row for row in board.rows if row_key(row) == key), None) if board else None
        figures += _finals(loaded, method, line, own, board, row)
        released = [point for point in curves if point.belongs_to(line)]
        figures += _epochs(loaded, method, line, released, [epochs.get(run.fingerprint, []) for run in own])
        notes += _notes(loaded, method, own, epochs)
    return Reproduced(loaded.suite.name, tuple(figures), tuple(dict.fromkeys(notes)))


# --- final attacks ---------------------------------------------------------------------------------------------------


def _finals(
    loaded: LoadedSuite,
    method: ResolvedMethod,
    line: Published,
    runs: Sequence[RunRow],
    board: Leaderboard | None,
    row: Row | None,
) -> Iterator[ReproducedFigure]:
    """Yield best, last and gap under each attack that the line has figures of; `row` is the method's in `board`."""
    images = [] if line.status == OWN else other_images(loaded.suite.dataset)
    for attack in ATTACKS:
        at_best, at_last = line.best.get(attack), line.last.get(attack)
        gap = at_best - at_last if at_best is not None and at_last is not None else None
        index, other = column_of(board, attack, line, same_images=line.status == OWN) if board else (None, [])
        title = attack_title(attack, line)
        for checkpoint, published in (("best", at_best), ("last", at_last), ("gap", gap)):
            if published is None:
                continue
            values = None
            reasons = [*images, *other]
            different = bool(reasons)
            if board is None or row is None or not row.figures:
                reasons = reasons or ["no seed of ours is finished"]
            else:
                reasons += why_no_best(line, row) if checkpoint != "last" else []
            if board and row and row.figures and index is not None:
                finals = board.protocol["evaluation"]["final"]
                done = [complete_run(run, finals, board.selection) for run in runs if run.seed in row.seeds]
                values = _values([run for run in done if run], index, checkpoint)
            yield _figure(method, line, title, checkpoint, published, values, reasons, different=different)


def _selection(line: Published) -> Selection:
    """Return which of our leaderboards a line is compared with."""
    return "test" if line.selection == "test" else "validation"


def _values(done: Sequence[CompleteRun], attack: int, checkpoint: str) -> Gaps:
    """Return for each seed and image whether it is classified correctly, or for the gap the difference: [n, m]."""
    best, last = (correct([getattr(run, side)[attack] for run in done]).astype("int8") for side in ("best", "last"))
    sides: dict[str, Gaps] = {"best": best, "last": last, "gap": best - last}
    return sides[checkpoint]


def _figure(
    method: ResolvedMethod,
    line: Published,
    attack: str,
    checkpoint: str,
    published: float,
    values: Gaps | None,
    reasons: Sequence[str],
    *,
    different: bool,
) -> ReproducedFigure:
    shares = [] if values is None else [float(share) for share in values.mean(1)]
    found = None
    if values is not None and not reasons:
        found = distance(shares, image_noise_of(values), published, line.seeds or 1, ASSUMED[checkpoint])
    ours = sum(shares) / len(shares) if shares else None
    return ReproducedFigure(
        *(method.label, line.source, attack, checkpoint, published, ours, len(shares), found, "; ".join(reasons)),
        different=different,
    )


# --- epochs ----------------------------------------------------------------------------------------------------------


def _epochs(
    loaded: LoadedSuite,
    method: ResolvedMethod,
    line: Published,
    released: Sequence[Point],
    curves: Sequence[Sequence[Epoch]],
) -> Iterator[ReproducedFigure]:
    """Yield clean and PGD accuracy at the epochs that a curve was released for and that a run of ours has."""
    suite = loaded.suite
    steps = suite.evaluation.track.attack.steps
    images = DATASETS.get(suite.dataset.name).configured(suite.dataset).test_images
    for point in released:
        reasons = other_images(suite.dataset)
        if point.epochs != suite.training.epochs:
            reasons.append(f"a curve of {point.epochs} epochs, ours of {suite.training.epochs}")
        reached = [one for curve in curves for one in curve if one.epoch == point.epoch]
        for name, published in (("clean", point.clean), ("pgd", point.pgd)) if reached else ():
            why = list(reasons)
            if name == "pgd" and steps != point.pgd_steps:
                why.append(f"PGD-{point.pgd_steps}, ours PGD-{steps}")
            different = bool(why)
            found = [one.test_clean if name == "clean" else one.test_robust for one in reached]
            shares = [share for share in found if share is not None]
            if not shares:
                tracks = suite.evaluation.track.test or not suite.dataset.held_out
                why.append("ours did not track this epoch" if tracks else "ours does not track the test images")
            ours = sum(shares) / len(shares) if shares else None
            over_images = binomial_error(shares[0], images) if len(shares) == 1 and images else 0.0
            yield ReproducedFigure(
                method.label,
                point.source,
                "Clean" if name == "clean" else f"PGD-{point.pgd_steps}",
                f"epoch {point.epoch}",
                published,
                ours,
                len(shares),
                None if why else distance(shares, over_images, published, line.seeds or 1, ASSUMED["epoch"]),
                "; ".join(why),
                different,
            )


def _notes(
    loaded: LoadedSuite, method: ResolvedMethod, runs: Sequence[RunRow], curves: Mapping[str, Sequence[Epoch]]
) -> Iterator[str]:
    """Yield our mean over the last five epochs of complete curves, and the runs that have not finished."""
    complete = [curve for run in runs if len(curve := curves.get(run.fingerprint, [])) == loaded.suite.training.epochs]
    last = [means for curve in complete if (means := mean_of_last_five(curve))]
    if last:
        clean, robust = (percent(fmean(mean[name] for mean in last)) for name in ("test_clean", "test_robust"))
        yield (
            f"{method.label}, mean of the last five epochs under the attack of tracking: clean {clean}, "
            f"PGD-{loaded.suite.evaluation.track.attack.steps} {robust} (seeds: {len(last)})."
        )
    for run in runs:
        if run.status != "finished":
            yield f"{method.label}, seed {run.seed}: {run.status} after {run.epochs} epochs."
