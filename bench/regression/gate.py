"""Compare the new runs of a suite with its baseline. docs/regression-gate.md explains the choices.

A regression needs an effect and evidence: a figure moved by more than a tolerance, and by more than chance explains.

Seeds. Baseline and runs are evaluated on the same images by the same attacks, and the question is about these images;
the remaining source of variance is the seed. The figures of each side are samples of seeds. If nothing changed, both
have one distribution, and the test is Student's t with the pooled variance (n + k - 2 degrees of freedom). That holds
for other seeds, and for the same seeds on another machine, whose rounding makes them partly other draws.

Repeatable training. A seed repeats if its last epoch has exactly the baseline's loss and accuracy: same kind of
machine, same versions, training unchanged. Then only the evaluation can differ. Equal weights are the same network, and
a change of its results is tested over images (`statistics.mcnemar`). Weights that differ all the same, for instance
through statistics that the evaluation changed, and results that flip both ways show in the share of flipped results. It
is zero if nothing changed; beyond the tolerance it is a regression, whatever the mean does.

Multiple figures. The p-values of all figures of a check are adjusted together, so that at most `LEVEL` of checks of
unchanged code raise any false alarm.

Sources: Student, The probable error of a mean, Biometrika 1908; Holm, A simple sequentially rejective multiple test
procedure, Scandinavian Journal of Statistics 1979; McNemar, Psychometrika 1947.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bench.attacks.outcome import Correct
from bench.errors import NotComparable, NothingMeasured
from bench.regression.baseline import CHECKPOINTS, CheckpointResult, Row, SeedResult, Snapshot, check_same_images
from bench.regression.evidence import least_spread, students_t
from bench.reporting.comparison import differing_settings
from bench.reporting.statistics import Floats, holm, mcnemar

LEVEL = 0.01
"""Share of checks of unchanged code that may raise an alarm; also the level at which a figure counts as changed."""

TOLERANCE = 2.0
"""Default: how far a figure may move, in points (hundredths), without being a regression."""

FLOOR = 0.001
"""Lower bound of the standard deviation over seeds, as a share, of a figure of training. Our choice: a tenth of what
digits show. For figures of the test images, `least_spread` estimates it."""

Test = Literal["seeds", "images", "flips", "count", "none"]
"""The evidence: chance of seeds; chance of images, for the same networks; flipped results although training repeats
exactly; cells without a figure; or none."""

Conclusion = Literal["regression", "improvement", "unchanged", "not judged"]


@dataclass(frozen=True)
class Change:
    """One figure of one row, in shares; `change` is run minus baseline.

    `p` is two-sided, `adjusted` is it after Holm's correction; None if there is no test. `suspicious`: an improvement
    under attack counts as unexpected, because a broken attack looks like that. `why`: an explanation, if needed.
    """

    row: str
    figure: str
    baseline: float | None
    run: float | None
    change: float
    seeds: tuple[int, int]
    test: Test
    p: float | None = None
    adjusted: float | None = None
    verdict: Conclusion = "unchanged"
    suspicious: bool = False
    why: str = ""


@dataclass(frozen=True)
class Check:
    """The result of a check.

    `missing`: rows and cells that the baseline has and the runs do not; `new`: rows that the baseline does not have.
    `notes`: remarks for the reader.
    """

    suite: str
    fingerprint: str
    tolerance: float
    findings: tuple[Change, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "regression")

    @property
    def improvements(self) -> tuple[Change, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "improvement")

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Figures and cells that could not be tested, in words."""
        unjudged = (
            f"{finding.row}, {finding.figure}: {finding.why}"
            for finding in self.findings
            if finding.verdict == "not judged"
        )
        return (*self.missing, *unjudged)

    def exit_code(self, *, accept_improvements: bool = False) -> int:
        """Return 1 for a regression or an unexpected improvement, 4 if something was not measured, else 0."""
        suspicious = any(finding.suspicious for finding in self.improvements) and not accept_improvements
        return 1 if self.regressions or suspicious else 4 if self.incomplete else 0


def check(run: Snapshot, baseline: Snapshot, *, tolerance: float = TOLERANCE) -> Check:
    """Compare the runs of a suite with its baseline.

    Args:
        run: the results of the new runs.
        baseline: the expected results.
        tolerance: points (hundredths) that a figure may move whatever the evidence.

    Raises:
        NotComparable: the protocol, the number of images or the images are not the baseline's.
        NothingMeasured: no cell of the suite has finished or diverged.
    """
    if run.fingerprint != baseline.fingerprint:
        changed = "; ".join(differing_settings(baseline.protocol, run.protocol))
        raise NotComparable(
            f"not comparable: the protocol is not the baseline's; settings that changed (baseline, now): {changed}; "
            "if this is intended, create a new baseline with --update"
        )
    ended = [seed for row in run.rows for seed in row.seeds if seed.status in {"finished", "diverged"}]
    if not ended:
        raise NothingMeasured(
            f"nothing to check: no run of {run.suite} has finished; run `bench run {run.suite}` first"
        )
    check_same_images(run, baseline)
    rows = {row.key: row for row in run.rows}
    pairs = [(expected, rows[expected.key]) for expected in baseline.rows if expected.key in rows]
    findings = [finding for expected, row in pairs for finding in _row(row, expected, tolerance / 100)]
    known = {row.key for row in baseline.rows}
    return Check(
        suite=run.suite,
        fingerprint=run.fingerprint,
        tolerance=tolerance,
        findings=tuple(_concluded(findings, tolerance / 100)),
        missing=(*_missing_rows(run, baseline), *_missing_cells(run)),
        new=tuple(row.label for row in run.rows if row.key not in known),
        notes=tuple(_notes(run, baseline, pairs)),
    )


def _missing_rows(run: Snapshot, baseline: Snapshot) -> list[str]:
    keys, versions = {row.key for row in run.rows}, {row.method: row.version for row in run.rows}
    missing = []
    for row in baseline.rows:
        if row.key not in keys:
            now = versions.get(row.method, row.version)
            other = f" in version {row.version} (now {now})" if now != row.version else ""
            missing.append(f"{row.label}{other} is in the baseline but not in the suite")
    return missing


def _missing_cells(run: Snapshot) -> list[str]:
    return [
        f"{row.label} seed {seed.seed} has no results: {seed.status}"
        for row in run.rows
        for seed in row.seeds
        if seed.status not in {"finished", "diverged"}
    ]


def _notes(run: Snapshot, baseline: Snapshot, pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    before, now = (_seeds_text(side) for side in (baseline, run))
    notes = [f"baseline: seeds {before}; these runs: seeds {now}"]
    both = [(seed, expected) for row_before, row in pairs for seed, expected in _same_seeds(row, row_before).values()]
    repeated = sum(_repeats(*pair) for pair in both)
    if both:
        notes.append(
            f"{repeated} of {len(both)} cells with a seed of the baseline repeat its training exactly"
            + ("" if repeated else "; flipped results cannot be distinguished from rounding and are not tested")
        )
    versions = [{**made.get("versions", {}), "cpu": made.get("cpu"), "gpu": made.get("gpu")} for made in run.made_with]
    expected = [
        {**made.get("versions", {}), "cpu": made.get("cpu"), "gpu": made.get("gpu")} for made in baseline.made_with
    ]
    if versions and expected and versions[0] != expected[0]:
        notes.append(
            "the environment differs (baseline, now): " + "; ".join(differing_settings(expected[0], versions[0]))
        )
    if not (baseline.data and run.data):
        side = "baseline" if run.data else "runs"
        notes.append(f"the {side} of an older version did not record the images; whether they are the same is unknown")
    if any(made.get("git", {}).get("dirty") for made in run.made_with):
        notes.append("the checkout had uncommitted changes when these runs were made")
    return notes


def _seeds_text(side: Snapshot) -> str:
    return ", ".join(map(str, sorted({seed.seed for row in side.rows for seed in row.seeds})))


# --- one row ---------------------------------------------------------------------------------------------------------


def _row(row: Row, baseline: Row, tolerance: float) -> list[Change]:
    """Return the figures of one row, without the conclusions that need all rows."""
    findings = []
    for checkpoint in CHECKPOINTS:
        findings += _broken(row, baseline, checkpoint)
        attacks = next((_at(seed, checkpoint).judged for seed in baseline.seeds if seed.status == "finished"), ())
        for index, result in enumerate(attacks):
            name = f"{result.attack} at {checkpoint}"
            tested = _seeds_test(
                row, baseline, name, _spread(row, baseline, checkpoint, index),
                lambda seed, c=checkpoint, i=index: _accuracy(seed, c, i),  # type: ignore[misc]
            )  # fmt: skip
            tested = _images_test(tested, row, baseline, checkpoint, index)
            findings.append(replace(tested, suspicious=result.attack != "Clean"))
            findings += _flips(row, baseline, name, checkpoint, index, tolerance)
    findings.append(_seeds_test(row, baseline, "training likelihood", FLOOR, _likelihood))
    findings.append(_seeds_test(row, baseline, "training accuracy", FLOOR, _training_accuracy))
    return findings


def _at(seed: SeedResult, checkpoint: str) -> CheckpointResult:
    result: CheckpointResult = getattr(seed, checkpoint)
    return result


def _averaged(seed: SeedResult, checkpoint: str) -> bool:
    return seed.status == "finished" and not seed.broken(checkpoint)


def _accuracy(seed: SeedResult, checkpoint: str, attack: int) -> float | None:
    """Return an accuracy, or None for a cell that is not averaged."""
    if not _averaged(seed, checkpoint):
        return None
    result = _at(seed, checkpoint).judged[attack]
    return result.right / result.count


def _spread(row: Row, baseline: Row, checkpoint: str, attack: int) -> float:
    """Return `least_spread` of the cells that are averaged."""
    sides = [
        [_at(seed, checkpoint).judged[attack].correct() for seed in side.seeds if _averaged(seed, checkpoint)]
        for side in (baseline, row)
    ]
    return least_spread([np.stack(side) for side in sides if side]) if any(sides) else 0.0


def _likelihood(seed: SeedResult) -> float | None:
    """Return exp(-loss) of the last epoch: for the cross-entropy, the geometric mean of what labels are given.

    On this scale, from 0 to 1, a point means as much as one of accuracy, wherever the loss lies.
    """
    return math.exp(-max(seed.training.loss, 0.0)) if seed.training and not seed.broken("best") else None


def _training_accuracy(seed: SeedResult) -> float | None:
    return seed.training.robust if seed.training and not seed.broken("best") else None


def _broken(row: Row, baseline: Row, checkpoint: str) -> list[Change]:
    """Return a regression for each cell that diverged or collapsed, unless the baseline gives a reason to expect it.

    It gives none if the same seed did not, or no seed did.
    """
    before = {seed.seed: seed.broken(checkpoint) for seed in baseline.seeds}
    worse: list[tuple[SeedResult, str]] = [
        (seed, how)
        for seed in row.seeds
        if (how := seed.broken(checkpoint)) and (before.get(seed.seed, "new") is None or not any(before.values()))
    ]
    shares = sum(map(bool, before.values())) / len(before), len(worse) / len(row.seeds)
    return [
        Change(
            row.label, f"seed {seed.seed} at {checkpoint}", None, None, shares[1] - shares[0],
            (len(before), len(row.seeds)), "count", verdict="regression",
            why=f"it {how}; in the baseline {sum(map(bool, before.values()))} of {len(before)} seeds did",
        )
        for seed, how in worse
    ]  # fmt: skip


def _seeds_test(
    row: Row, baseline: Row, name: str, floor: float, value: Callable[[SeedResult], float | None]
) -> Change:
    """Compare the seeds' figures of both sides by Student's t with the pooled variance."""
    before, now = (
        np.array([figure for seed in side.seeds if (figure := value(seed)) is not None]) for side in (baseline, row)
    )
    n, k = len(before), len(now)
    if not (n and k):
        why = f"no cell of the {'baseline' if not n else 'runs'} has it"
        return Change(row.label, name, None, None, 0.0, (n, k), "none", verdict="not judged", why=why)
    change = float(now.mean() - before.mean())
    finding = Change(row.label, name, float(before.mean()), float(now.mean()), change, (n, k), "seeds")
    if n + k == 2:
        if {seed.seed for seed in row.seeds} == {seed.seed for seed in baseline.seeds} and change == 0:
            return replace(finding, p=1.0)
        why = "one seed on each side gives no variance; create the baseline with several seeds"
        return replace(finding, test="none", verdict="not judged", why=why)
    return replace(finding, p=students_t(before.tolist(), now.tolist(), floor))


# --- repeatable training ---------------------------------------------------------------------------------------------


def _same_seeds(row: Row, baseline: Row) -> dict[int, tuple[SeedResult, SeedResult]]:
    """Return the finished cells that both sides have, by seed."""
    before = {seed.seed: seed for seed in baseline.seeds if seed.status == "finished"}
    return {
        seed.seed: (seed, before[seed.seed]) for seed in row.seeds if seed.status == "finished" and seed.seed in before
    }


def _repeats(seed: SeedResult, baseline: SeedResult) -> bool:
    return seed.training == baseline.training


def _images_test(finding: Change, row: Row, baseline: Row, checkpoint: str, attack: int) -> Change:
    """Test over images instead, if all networks of the runs equal the baseline's bit for bit.

    An image counts as lost if more seeds lost it than won it.
    """
    both = {
        number: pair
        for number, pair in _same_seeds(row, baseline).items()
        if not any(seed.broken(checkpoint) for seed in pair)
    }
    same = all(_at(seed, checkpoint).weights == _at(before, checkpoint).weights for seed, before in both.values())
    if not same or len(both) < max(finding.seeds[1], 1):
        return finding
    now, before = _paired(both, checkpoint, attack)
    balance = now.sum(0, dtype=np.float64) - before.sum(0, dtype=np.float64)
    return replace(
        finding,
        baseline=float(before.mean()),
        run=float(now.mean()),
        change=float(now.mean() - before.mean()),
        seeds=(len(both), len(both)),
        test="images",
        verdict="unchanged",
        why="",
        p=mcnemar(balance > 0, balance < 0),
    )


def _flips(row: Row, baseline: Row, name: str, checkpoint: str, attack: int, tolerance: float) -> list[Change]:
    """Return a regression if results flipped although training repeats exactly, else nothing."""
    both = {number: pair for number, pair in _same_seeds(row, baseline).items() if _repeats(*pair)}
    if not both:
        return []
    now, before = _paired(both, checkpoint, attack)
    share = float((now != before).mean())
    if share <= tolerance:
        return []
    why = f"training repeats exactly, but {100 * share:.1f} % of the per-image results flipped: the evaluation changed"
    return [
        Change(
            row.label, f"flipped results, {name}", 0.0, share, share, (len(both), len(both)), "flips",
            verdict="regression", why=why,
        )
    ]  # fmt: skip


def _paired(
    both: dict[int, tuple[SeedResult, SeedResult]], checkpoint: str, attack: int
) -> tuple[Correct | Floats, Correct | Floats]:
    """Return whether the runs and the baseline are correct on the same images, as `AttackResult.correct`: [n, m]."""
    now, before = (
        np.stack([_at(pair[side], checkpoint).judged[attack].correct() for pair in both.values()]) for side in (0, 1)
    )
    return now, before


# --- all figures together --------------------------------------------------------------------------------------------


def _concluded(findings: Sequence[Change], tolerance: float) -> list[Change]:
    """Return the figures with adjusted p-values and the conclusions that follow from them."""
    tested = [index for index, finding in enumerate(findings) if finding.p is not None]
    concluded = list(findings)
    for index, p in zip(tested, holm(np.array([findings[index].p or 0.0 for index in tested])).tolist(), strict=True):
        finding = replace(findings[index], adjusted=p)
        if p <= LEVEL and abs(finding.change) > tolerance:
            finding = replace(finding, verdict="regression" if finding.change < 0 else "improvement")
        concluded[index] = finding
    return concluded
