"""From the runs of one protocol to the rows of its leaderboard, and their ranks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bench.attacks.outcome import Correct
from bench.config.attacks import STANDARD
from bench.config.cell import EVALUATED
from bench.config.hyperparameters import least_reliable
from bench.reporting.autoattack_flags import Doubt, doubts_of
from bench.reporting.statistics import (
    CONFIDENCE,
    Estimate,
    Interval,
    binomial_error,
    estimate,
    paired_interval,
    pairwise,
    rank_intervals,
    wilson_interval,
)
from bench.storage.schema import OutcomeRow, RunRow
from bench.utils.files import canonical_json

Selection = Literal["validation", "test"]
"""Which images chose the best checkpoint. With `test` the choice saw what it is judged on: an oracle."""

BEST: Mapping[Selection, str] = {"validation": "best", "test": "best_on_test"}

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A SHA-256, of which people are shown the beginning."""

NEAR_ZERO = 0.01
"""Robust accuracy that counts as none, whatever the number of classes."""

REDUCED = "reduced_batch_size"
"""In AutoAttack's identity, where memory did not suffice for the protocol's batch."""

_UNSET = {"images": None, "restarts": None, "iterate": None, "attacks": list(STANDARD)}
"""What settings of final attacks are where a protocol leaves them out; without them PGD would be taken for PGD x5."""


@dataclass(frozen=True)
class Figures:
    """A row under one attack; `gap` is best minus last, seed by seed.

    A network that was only evaluated has one checkpoint, which stands as both, and no gap.
    """

    best: Estimate
    last: Estimate
    gap: Estimate | None


@dataclass(frozen=True)
class SeedFigures:
    """One seed under the ranking attack, shown on its own; accuracies as shares."""

    seed: int
    best: float
    last: float


@dataclass(frozen=True)
class Cost:
    """What one seed took on one device; means over the seeds that state it.

    `device`: its kind ("CPU", "GPU"); `hardware`: its name. `training`, `evaluation`: hours by the clock, the latter
    with measuring the curve after every epoch. `pflop`: work of training, in PFLOP (a multiply-add is two), None for
    runs of older versions. `memory`: the most that a seed held at once, in bytes: of the GPU's memory, or on a CPU of
    the process's; None where no run states it.
    """

    device: str
    training: float
    evaluation: float
    hardware: str
    pflop: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Row:
    """A method with its parameters.

    `seeds` are those that are averaged; without any, `rank` is None and `figures` (one for each attack) is empty.
    `collapsed` seeds are not averaged: their best checkpoint is no better than guessing. `fallen` ones are averaged:
    their best is better, their last is not, which is what the gap measures. `diverged` says in which epoch (from 0) the
    loss was no longer a number. `origin` is the least reliable provenance of its parameters. `rank_interval`: the ranks
    that the row may have, see `statistics.rank_intervals`. `doubts`: of all seeds that were measured, averaged or not.
    """

    rank: int | None
    rank_interval: tuple[int, int] | None
    label: str
    method: str
    version: int
    params: dict[str, Any]
    custom: bool
    origin: str | None
    gap_by_construction: bool
    seeds: tuple[int, ...]
    figures: tuple[Figures, ...]
    costs: tuple[Cost, ...]
    collapsed: tuple[SeedFigures, ...]
    fallen: tuple[SeedFigures, ...]
    diverged: dict[int, int | None]
    unfinished: tuple[int, ...]
    doubts: tuple[Doubt, ...]

    @property
    def evaluated_only(self) -> bool:
        """Whether it is a network that was trained elsewhere; `params` says which."""
        return self.method == EVALUATED

    def mean_cost(self, of: Callable[[Cost], float | None]) -> float | None:
        """Return the mean of a cost over the devices that state it, None if none does."""
        values = [value for cost in self.costs if (value := of(cost)) is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Measured:
    """A finished run with its outcomes under every final attack, in the order of the protocol."""

    run: RunRow
    best: tuple[OutcomeRow, ...]
    last: tuple[OutcomeRow, ...]

    def at(self, attack: int) -> SeedFigures:
        """Return the figures under one attack."""
        return SeedFigures(self.run.seed, self.best[attack].accuracy, self.last[attack].accuracy)


def measured(run: RunRow, finals: Sequence[dict[str, Any]], selection: Selection) -> Measured | None:
    """Return the outcomes of a run that has finished and has all of them, else None.

    The one checkpoint of a network that was only evaluated is its best and its last.
    """
    best, last = (
        tuple(outcome for final in finals if (outcome := _outcome(run, checkpoint, final)))
        for checkpoint in ("last" if run.method == EVALUATED else BEST[selection], "last")
    )
    complete = run.status == "finished" and len(best) == len(last) == len(finals)
    return Measured(run, best, last) if complete else None


def _outcome(run: RunRow, checkpoint: str, final: dict[str, Any]) -> OutcomeRow | None:
    """Return the outcome under a final attack of the protocol; its identity repeats the attack's settings."""
    row = run.checkpoints.get(checkpoint)
    wanted = {**_UNSET, **final}
    for outcome in row.outcomes.values() if row else ():
        identity = {**_UNSET, **outcome.identity}
        if all(identity.get(key) == value for key, value in wanted.items()):
            return outcome
    return None


def row_key(of: Row | RunRow) -> str:
    """Return what makes runs those of one row of a leaderboard: method, version and parameters; the label does not."""
    return canonical_json([of.method, of.version, of.params])


def ranking(finals: Sequence[Mapping[str, Any]]) -> int:
    """Return which of a protocol's final attacks ranks: AutoAttack, or if it has none, the last."""
    names = [final["name"] for final in finals]
    return names.index("autoattack") if "autoattack" in names else len(names) - 1


def verdicts(outcomes: Sequence[OutcomeRow]) -> Correct:
    """Return the verdicts of several seeds on the same images: bool, [n, m]."""
    return np.stack([outcome.bits.unpack() for outcome in outcomes])


def variants(done: Sequence[Measured], attack: int) -> list[str]:
    """Return the settings of an attack in which runs differ, for each way it was run; none if all ran it alike.

    AutoAttack with a smaller batch than the protocol's, for want of memory, is a way even where it is the only one.
    """
    identities = {
        canonical_json(outcome.identity): outcome.identity
        for found in done
        for outcome in (found.best[attack], found.last[attack])
    }
    if len(identities) > 1:
        return sorted(text or "as the protocol has it" for text in differences(list(identities.values())))
    return [f"{key}={value}" for one in identities.values() for key, value in one.items() if key == REDUCED]


def rows_of(
    runs: Sequence[RunRow], done: Mapping[str, Measured], ranked_by: int, selection: Selection
) -> tuple[Row, ...]:
    """Return the rows of one protocol, best first; `done` has the measured runs by fingerprint.

    Runs of the same method, version and parameters make a row, whatever their label says.
    """
    groups: defaultdict[str, list[RunRow]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        groups[row_key(run)].append(run)
    members = list(groups.values())
    labels = distinct(
        [Counter(run.label for run in group).most_common(1)[0][0] for group in members],
        [{**group[0].params, "method": group[0].method, "version": group[0].version} for group in members],
    )
    rows: list[tuple[Row, Correct | None]] = []
    for label, group in zip(labels, members, strict=True):
        found = [done[run.fingerprint] for run in group if run.fingerprint in done]
        kept = [seed for seed in found if not collapsed(seed.best[ranked_by], seed.run)]
        right = verdicts([seed.best[ranked_by] for seed in kept]) if kept else None
        rows.append((_row(label, group, found, kept, ranked_by, selection), right))
    return _ranked(rows, ranked_by)


def _row(
    label: str,
    group: Sequence[RunRow],
    found: Sequence[Measured],
    kept: Sequence[Measured],
    ranked_by: int,
    selection: Selection,
) -> Row:
    first = group[0]
    finished = {seed.run.fingerprint for seed in found}
    return Row(
        rank=None,
        rank_interval=None,
        label=label,
        method=first.method,
        version=first.version,
        params=first.params,
        custom=any(run.custom for run in group),
        origin=least_reliable([run.origin for run in group if run.origin is not None]),
        gap_by_construction=first.final_is_best and selection == "validation",
        seeds=tuple(seed.run.seed for seed in kept),
        figures=tuple(_figures(kept, attack) for attack in range(len(kept[0].best))) if kept else (),
        costs=_costs([seed.run for seed in found]),
        collapsed=tuple(seed.at(ranked_by) for seed in found if seed not in kept),
        fallen=tuple(seed.at(ranked_by) for seed in kept if collapsed(seed.last[ranked_by], seed.run)),
        diverged={run.seed: run.diverged_in for run in group if run.status == "diverged"},
        unfinished=tuple(run.seed for run in group if run.status != "diverged" and run.fingerprint not in finished),
        doubts=tuple(doubt for seed in found for doubt in doubts_of(seed.run.seed, seed.best, seed.last)),
    )


def collapsed(outcome: OutcomeRow, run: RunRow) -> bool:
    """Return whether an accuracy is no better than guessing, or next to nothing.

    Not better than guessing: at most two binomial standard errors above 1 / classes. A network that gives all images
    one class is untouched by any attack, and scores just that. Natural training promises no robustness: nothing of it
    counts as collapsed, nor does a network that was trained elsewhere, which is shown as it is.
    """
    if run.method == EVALUATED or run.protocol.content["training"]["attack"]["name"] == "none":
        return False
    limit = NEAR_ZERO
    if run.classes:
        chance = 1 / run.classes
        limit = max(limit, chance + 2 * binomial_error(chance, outcome.count))
    return outcome.accuracy <= limit


def _figures(seeds: Sequence[Measured], attack: int) -> Figures:
    best, last = [seed.best[attack] for seed in seeds], [seed.last[attack] for seed in seeds]
    gaps = [before.accuracy - after.accuracy for before, after in zip(best, last, strict=True)]
    over_images: list[Interval | None] = [None, None, None]
    if len(seeds) == 1:
        (before,), (after,) = best, last
        over_images = [wilson_interval(outcome.right, outcome.count) for outcome in (before, after)]
        over_images.append(paired_interval(*verdicts([before, after])))
    values = [outcome.accuracy for outcome in best], [outcome.accuracy for outcome in last], gaps
    at_best, at_last, gap = map(estimate, values, over_images)
    return Figures(at_best, at_last, None if seeds[0].run.method == EVALUATED else gap)


def _costs(runs: Sequence[RunRow]) -> tuple[Cost, ...]:
    """Return the cost of a seed on each device, leaving out runs that do not state their times."""
    by_device: defaultdict[tuple[str, str], list[RunRow]] = defaultdict(list)
    for run in runs:
        if run.train_seconds is not None and run.evaluation_seconds is not None:
            by_device[device_of(run)].append(run)
    costs = []
    for (kind, name), found in sorted(by_device.items()):
        training = [run.train_seconds or 0.0 for run in found]
        evaluation = [(run.evaluation_seconds or 0.0) + (run.track_seconds or 0.0) for run in found]
        pflop = [run.train_pflop for run in found if run.train_pflop is not None]
        memory = [run.peak_memory_bytes for run in found if run.peak_memory_bytes is not None]
        costs.append(
            Cost(
                device=kind,
                training=sum(training) / len(found) / 3600,
                evaluation=sum(evaluation) / len(found) / 3600,
                hardware=name,
                pflop=sum(pflop) / len(pflop) if pflop else None,
                memory=max(memory, default=None),
            )
        )
    return tuple(costs)


def device_of(run: RunRow) -> tuple[str, str]:
    """Return the kind ("CPU" or "GPU") and the name of the device a run used."""
    kind = "CPU" if run.environment.get("device", "cpu") == "cpu" else "GPU"
    return kind, run.environment.get(kind.lower()) or f"unknown {kind}"


def distinct(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return `names`; those that stand several times with the settings in which they differ."""
    twins: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        twins[name].append(index)
    shown = list(names)
    for indices in twins.values():
        for index, text in zip(indices, differences([settings[index] for index in indices]), strict=True):
            shown[index] += f" ({text})" if text else ""
    return shown


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each of `settings` the values that not all have, as "key=value, ..."; "" if they are equal."""
    keys = sorted({key for one in settings for key in one})
    varying = [key for key in keys if len({canonical_json(one.get(key)) for one in settings}) > 1]
    return [", ".join(f"{key}={_text(one[key])}" for key in varying if key in one) for one in settings]


def _text(value: Any) -> str:
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return value[:12]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- ranks -----------------------------------------------------------------------------------------------------------


def _ranked(rows: Sequence[tuple[Row, Correct | None]], ranked_by: int) -> tuple[Row, ...]:
    """Return the rows, best first, with their ranks; those without a figure come last and have none.

    See `leaderboards` for the rule.
    """
    standing = sorted(
        ((row, verdicts) for row, verdicts in rows if verdicts is not None),
        key=lambda pair: (-pair[0].figures[ranked_by].best.mean, pair[0].label),
    )
    pairs = pairwise([right for _, right in standing])
    ranked: list[Row] = []
    leader = 0
    for place, ((row, _), (first, last)) in enumerate(zip(standing, rank_intervals(pairs), strict=True)):
        if pairs.p[leader, place] < 1 - CONFIDENCE:
            leader = place
        # Both say what cannot be told apart, by different sets of tests; the interval never leaves out the rank.
        interval = min(first, leader + 1), max(last, leader + 1)
        ranked.append(replace(row, rank=leader + 1, rank_interval=interval))
    without = sorted((row for row, verdicts in rows if verdicts is None), key=lambda row: row.label)
    return (*ranked, *without)
