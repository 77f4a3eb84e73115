"""Are the fresh runs of a suite worse than its baseline?

A regression needs an effect and evidence: a figure that moved by more than a tolerance, and by more than chance does.

Chance. Baseline and runs are judged on the same images by the same attacks, and the question is about these images;
what is left to chance is the seed. So the figures of each side are samples of seeds. If nothing has changed, both are
drawn from one distribution, and Student's t with the pooled variance (n + k - 2 degrees of freedom) is the test; that
holds for other seeds, and for the same seeds on another machine, whose rounding makes them other draws in part.

Where training repeats exactly. A seed is said to repeat if its last epoch has the same loss and accuracy as in the
baseline: same machine, same versions, training unchanged. Then only the judging can differ. Equal weights are the same
network, and a change of its verdicts is tested over images (`statistics.mcnemar`). Weights that differ all the same, as
through statistics that the evaluation disturbed, or verdicts that flip both ways show in the share of verdicts that
flipped, which is zero if nothing changed: beyond the tolerance it is a regression, whatever the mean does.

Many figures. The p-values of all figures of a check are adjusted together so that at most `LEVEL` of checks raise any
false alarm.

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
from bench.regression.baseline import CHECKPOINTS, Checkpoint, Row, Seed, Snapshot
from bench.regression.evidence import least_spread, students_t
from bench.reporting.comparison import differing_settings
from bench.reporting.statistics import holm, mcnemar

LEVEL = 0.01
"""Share of checks of unchanged code that may raise an alarm; also the level at which a figure counts as changed."""

TOLERANCE = 2.0
"""Default: how far a figure may move, in points (hundredths), before it can be a regression."""

FLOOR = 0.001
"""Least standard deviation over seeds, as a share, that is believed of a figure of training. Declared: a tenth of what
digits show; for figures of the test images, `least_spread` measures it."""

Test = Literal["seeds", "images", "flips", "count", "none"]
"""What the evidence is: chance of seeds; of images, for the same networks; verdicts that flipped though training
repeats exactly; cells without a figure; or none that could be had."""

Verdict = Literal["regression", "improvement", "unchanged", "not judged"]


@dataclass(frozen=True)
class Finding:
    """One figure of one row, in shares; `change` is run minus baseline.

    `p` is two-sided, `adjusted` is it after Holm's correction; None where the test has none. `suspicious`: an
    improvement under attack, which is what a broken attack looks like. `why` says it in words where it needs some.
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
    verdict: Verdict = "unchanged"
    suspicious: bool = False
    why: str = ""


@dataclass(frozen=True)
class Check:
    """What a check found.

    `missing`: rows and cells that the baseline has and the runs do not; `new`: rows that it does not know. `notes` says
    what else to know when reading it.
    """

    suite: str
    fingerprint: str
    tolerance: float
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "regression")

    @property
    def improvements(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "improvement")

    @property
    def incomplete(self) -> tuple[str, ...]:
        """What could not be judged, in words."""
        unjudged = (
            f"{finding.row}, {finding.figure}: {finding.why}"
            for finding in self.findings
            if finding.verdict == "not judged"
        )
        return (*self.missing, *unjudged)

    def exit_code(self, *, accept_improvements: bool = False) -> int:
        """Return 1 for a regression or an improvement that is suspicious, 4 if something was not measured, else 0."""
        suspicious = any(finding.suspicious for finding in self.improvements) and not accept_improvements
        return 1 if self.regressions or suspicious else 4 if self.incomplete else 0


def check(run: Snapshot, baseline: Snapshot, *, tolerance: float = TOLERANCE) -> Check:
    """Hold the runs of a suite against its baseline.

    Args:
        run: what the runs came to.
        baseline: what they are expected to.
        tolerance: points (hundredths) that a figure may move whatever the evidence.

    Raises:
        NotComparable: the protocol is another, or the images are.
        NothingMeasured: no cell of the suite has ended in a figure.
    """
    if run.fingerprint != baseline.fingerprint:
        changed = "; ".join(differing_settings(baseline.protocol, run.protocol))
        raise NotComparable(
            f"not comparable: the protocol is not the baseline's; settings that changed (baseline, now): {changed}; "
            "if that is meant, make a new baseline with --update"
        )
    ended = [seed for row in run.rows for seed in row.seeds if seed.status in {"finished", "diverged"}]
    if not ended:
        raise NothingMeasured(f"nothing to check: no run of {run.suite} has ended; run `bench run` on it first")
    _check_same_images(run, baseline)
    rows = {row.key: row for row in run.rows}
    pairs = [(expected, rows[expected.key]) for expected in baseline.rows if expected.key in rows]
    findings = [finding for expected, row in pairs for finding in _row(row, expected, tolerance / 100)]
    known = {row.key for row in baseline.rows}
    return Check(
        suite=run.suite,
        fingerprint=run.fingerprint,
        tolerance=tolerance,
        findings=tuple(_judged(findings, tolerance / 100)),
        missing=(*_missing_rows(run, baseline), *_missing_cells(run)),
        new=tuple(row.label for row in run.rows if row.key not in known),
        notes=tuple(_notes(run, baseline, pairs)),
    )


def _check_same_images(run: Snapshot, baseline: Snapshot) -> None:
    counts = [
        next(
            (tuple(one.count for one in seed.best.judged) for row in side.rows for seed in row.seeds if seed.best), None
        )
        for side in (baseline, run)
    ]
    if None not in counts and counts[0] != counts[1]:
        raise NotComparable(f"not comparable: the baseline was judged on {counts[0]} images, these runs on {counts[1]}")


def _missing_rows(run: Snapshot, baseline: Snapshot) -> list[str]:
    keys, versions = {row.key for row in run.rows}, {row.method: row.version for row in run.rows}
    found = []
    for row in baseline.rows:
        if row.key not in keys:
            now = versions.get(row.method, row.version)
            other = f" in version {row.version} (now {now})" if now != row.version else ""
            found.append(f"{row.label}{other} is in the baseline, and not in the suite")
    return found


def _missing_cells(run: Snapshot) -> list[str]:
    return [
        f"{row.label} seed {seed.seed} has no figures: {seed.status}"
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
            + ("" if repeated else "; so verdicts that flip cannot be told from rounding, and are not judged")
        )
    versions = [{**made.get("versions", {}), "cpu": made.get("cpu"), "gpu": made.get("gpu")} for made in run.made_with]
    expected = [
        {**made.get("versions", {}), "cpu": made.get("cpu"), "gpu": made.get("gpu")} for made in baseline.made_with
    ]
    if versions and expected and versions[0] != expected[0]:
        notes.append(
            "made with other things (baseline, now): " + "; ".join(differing_settings(expected[0], versions[0]))
        )
    if any(made.get("git", {}).get("dirty") for made in run.made_with):
        notes.append("the checkout had changes that were not committed when these runs were made")
    return notes


def _seeds_text(side: Snapshot) -> str:
    return ", ".join(map(str, sorted({seed.seed for row in side.rows for seed in row.seeds})))


# --- one row ---------------------------------------------------------------------------------------------------------


def _row(row: Row, baseline: Row, tolerance: float) -> list[Finding]:
    """Return the findings of one row, without the verdicts that need those of the others."""
    findings = []
    for checkpoint in CHECKPOINTS:
        findings += _broken(row, baseline, checkpoint)
        attacks = next((_at(seed, checkpoint).judged for seed in baseline.seeds if seed.status == "finished"), ())
        for index, judged in enumerate(attacks):
            name = f"{judged.attack} at {checkpoint}"
            found = _seeds_test(
                row, baseline, name, _spread(row, baseline, checkpoint, index),
                lambda seed, c=checkpoint, i=index: _accuracy(seed, c, i),  # type: ignore[misc]
            )  # fmt: skip
            found = _images_test(found, row, baseline, checkpoint, index)
            findings.append(replace(found, suspicious=judged.attack != "Clean"))
            findings += _flips(row, baseline, name, checkpoint, index, tolerance)
    findings.append(_seeds_test(row, baseline, "training likelihood", FLOOR, _likelihood))
    findings.append(_seeds_test(row, baseline, "training accuracy", FLOOR, _training_accuracy))
    return findings


def _at(seed: Seed, checkpoint: str) -> Checkpoint:
    found: Checkpoint = getattr(seed, checkpoint)
    return found


def _averaged(seed: Seed, checkpoint: str) -> bool:
    return seed.status == "finished" and not seed.broken(checkpoint)


def _accuracy(seed: Seed, checkpoint: str, attack: int) -> float | None:
    """Return an accuracy, or None for a cell that is not averaged."""
    if not _averaged(seed, checkpoint):
        return None
    judged = _at(seed, checkpoint).judged[attack]
    return judged.right / judged.count


def _spread(row: Row, baseline: Row, checkpoint: str, attack: int) -> float:
    """Return `least_spread` of the cells that are averaged."""
    sides = [
        [_at(seed, checkpoint).judged[attack].unpacked() for seed in side.seeds if _averaged(seed, checkpoint)]
        for side in (baseline, row)
    ]
    return least_spread([np.stack(side) for side in sides if side]) if any(sides) else 0.0


def _likelihood(seed: Seed) -> float | None:
    """Return exp(-loss) of the last epoch: for the cross-entropy, the geometric mean of what labels are given.

    On this scale, from 0 to 1, a point means as much as one of accuracy, wherever the loss lies.
    """
    return math.exp(-max(seed.training.loss, 0.0)) if seed.training and not seed.broken("best") else None


def _training_accuracy(seed: Seed) -> float | None:
    return seed.training.robust if seed.training and not seed.broken("best") else None


def _broken(row: Row, baseline: Row, checkpoint: str) -> list[Finding]:
    """Return a finding for each cell that diverged or collapsed where the baseline gives no reason to expect it.

    That is: the same seed did not, or no seed did.
    """
    before = {seed.seed: seed.broken(checkpoint) for seed in baseline.seeds}
    worse: list[tuple[Seed, str]] = [
        (seed, how)
        for seed in row.seeds
        if (how := seed.broken(checkpoint)) and (before.get(seed.seed, "new") is None or not any(before.values()))
    ]
    shares = sum(map(bool, before.values())) / len(before), len(worse) / len(row.seeds)
    return [
        Finding(
            row.label, f"seed {seed.seed} at {checkpoint}", None, None, shares[1] - shares[0],
            (len(before), len(row.seeds)), "count", verdict="regression",
            why=f"it {how}; in the baseline {sum(map(bool, before.values()))} of {len(before)} seeds did",
        )
        for seed, how in worse
    ]  # fmt: skip


def _seeds_test(row: Row, baseline: Row, name: str, floor: float, value: Callable[[Seed], float | None]) -> Finding:
    """Compare the seeds' figures of both sides by Student's t with the pooled variance."""
    before, now = (
        np.array([found for seed in side.seeds if (found := value(seed)) is not None]) for side in (baseline, row)
    )
    n, k = len(before), len(now)
    if not (n and k):
        why = f"no cell of the {'baseline' if not n else 'runs'} has it"
        return Finding(row.label, name, None, None, 0.0, (n, k), "none", verdict="not judged", why=why)
    change = float(now.mean() - before.mean())
    finding = Finding(row.label, name, float(before.mean()), float(now.mean()), change, (n, k), "seeds")
    if n + k == 2:
        if {seed.seed for seed in row.seeds} == {seed.seed for seed in baseline.seeds} and change == 0:
            return replace(finding, p=1.0)
        why = "one seed on each side says nothing of how much seeds differ; give the baseline several"
        return replace(finding, test="none", verdict="not judged", why=why)
    return replace(finding, p=students_t(before.tolist(), now.tolist(), floor))


# --- where training repeats ------------------------------------------------------------------------------------------


def _same_seeds(row: Row, baseline: Row) -> dict[int, tuple[Seed, Seed]]:
    """Return the finished cells that both sides have, by seed."""
    before = {seed.seed: seed for seed in baseline.seeds if seed.status == "finished"}
    return {
        seed.seed: (seed, before[seed.seed]) for seed in row.seeds if seed.status == "finished" and seed.seed in before
    }


def _repeats(seed: Seed, baseline: Seed) -> bool:
    return seed.training == baseline.training


def _images_test(finding: Finding, row: Row, baseline: Row, checkpoint: str, attack: int) -> Finding:
    """Test over images instead, if all of the runs' networks are the baseline's to the last bit.

    An image that all in all more seeds lost than won counts as lost.
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
    balance = now.sum(0, dtype=np.int64) - before.sum(0, dtype=np.int64)
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


def _flips(row: Row, baseline: Row, name: str, checkpoint: str, attack: int, tolerance: float) -> list[Finding]:
    """Return a regression if verdicts flipped although training repeats exactly, else nothing."""
    both = {number: pair for number, pair in _same_seeds(row, baseline).items() if _repeats(*pair)}
    if not both:
        return []
    now, before = _paired(both, checkpoint, attack)
    share = float((now != before).mean())
    if share <= tolerance:
        return []
    why = f"training repeats exactly, yet {100 * share:.1f} % of the verdicts flipped: they are judged in another way"
    return [
        Finding(
            row.label, f"verdicts, {name}", 0.0, share, share, (len(both), len(both)), "flips",
            verdict="regression", why=why,
        )
    ]  # fmt: skip


def _paired(both: dict[int, tuple[Seed, Seed]], checkpoint: str, attack: int) -> tuple[Correct, Correct]:
    """Return the verdicts of the runs and of the baseline on the same images, bool, [n, m] each."""
    now, before = (
        np.stack([_at(pair[side], checkpoint).judged[attack].unpacked() for pair in both.values()]) for side in (0, 1)
    )
    return now, before


# --- all figures together --------------------------------------------------------------------------------------------


def _judged(findings: Sequence[Finding], tolerance: float) -> list[Finding]:
    """Return the findings with adjusted p-values and the verdicts that follow from them."""
    tested = [index for index, finding in enumerate(findings) if finding.p is not None]
    judged = list(findings)
    for index, p in zip(tested, holm(np.array([findings[index].p or 0.0 for index in tested])).tolist(), strict=True):
        finding = replace(findings[index], adjusted=p)
        if p <= LEVEL and abs(finding.change) > tolerance:
            finding = replace(finding, verdict="regression" if finding.change < 0 else "improvement")
        judged[index] = finding
    return judged
