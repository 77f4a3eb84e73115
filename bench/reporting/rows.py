"""From the runs of one protocol to the rows of its leaderboard, and their ranks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bench.attacks.outcome import Correct
from bench.config.attacks import STANDARD
from bench.config.cell import EVALUATED
from bench.config.hyperparameters import least_reliable
from bench.reporting.flags import Flag, flags_of, unchecked
from bench.reporting.labels import differences, disambiguate
from bench.reporting.statistics import (
    CONFIDENCE,
    Estimate,
    Floats,
    Interval,
    binomial_error,
    estimate,
    mean_interval,
    paired_interval,
    pairwise,
    rank_intervals,
    wilson_interval,
)
from bench.storage.schema import OutcomeRow, RunRow
from bench.utils.environment import DATA, different_data
from bench.utils.files import canonical_json, fingerprint

Selection = Literal["validation", "test"]
"""Which images selected the best checkpoint. With `test` they are those of the evaluation: an oracle."""

BEST: Mapping[Selection, str] = {"validation": "best", "test": "best_on_test"}

NEAR_ZERO = 0.01
"""Robust accuracy that counts as none, whatever the number of classes."""

REDUCED = "reduced_batch_size"
"""In AutoAttack's identity, if the protocol's batch did not fit in memory."""

RECORDED = {"code": "code", "kernels": "kernels in training"} | {f"data.{part}": words for part, words in DATA.items()}
"""What should be equal for all runs of a board: keys of a run's environment, each with its name in notes."""

_UNSET = {"images": None, "restarts": None, "iterate": None, "attacks": list(STANDARD), "threat": None} | dict.fromkeys(
    ("severity", "path", "kinds")
)
"""Defaults of settings that a protocol may omit; without them PGD would match PGD with five restarts."""


@dataclass(frozen=True)
class AttackSummary:
    """A row under one attack; `gap` is best minus last, seed by seed.

    An external model has one checkpoint, which counts as both, and no gap.
    """

    best: Estimate
    last: Estimate
    gap: Estimate | None


@dataclass(frozen=True)
class SeedResult:
    """One seed under the ranking attack; accuracies as shares."""

    seed: int
    best: float
    last: float


@dataclass(frozen=True)
class Cost:
    """Cost of one seed on one device; means over the seeds that state it.

    `device`: its kind ("CPU", "GPU"); `hardware`: its name. `training`, `evaluation`: wall-clock hours; evaluation
    includes tracking after every epoch. `pflop`: work of training in PFLOP (a multiply-add counts as two), None for
    runs of older versions. `memory`: peak memory of a seed in bytes, of the GPU, or on a CPU of the process; None if
    no run states it.
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

    `seeds` are averaged; without any, `figures` (one for each attack) is empty, and `rank` is None. `collapsed` seeds
    are not averaged: their best checkpoint is no better than guessing. `collapsed_at_last` ones are: only their last
    checkpoint is, which the gap measures. `diverged` maps a seed to the epoch (from 0) in which its loss was no longer
    a number. `origin` is the least reliable source of the parameters. `rank_interval`: the ranks
    that the row may have, see `statistics.rank_intervals`. `flags`: of all complete runs, averaged or not. `recorded`:
    of the same runs, by seed, the digest of each plug-in and each key of `RECORDED`, None if an older one has none;
    an external model has no training images. `unchecked`: indices of the attacks under which some run, of an older
    version, was not checked for flags.
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
    figures: tuple[AttackSummary, ...]
    costs: tuple[Cost, ...]
    collapsed: tuple[SeedResult, ...]
    collapsed_at_last: tuple[SeedResult, ...]
    diverged: dict[int, int | None]
    unfinished: tuple[int, ...]
    flags: tuple[Flag, ...]
    recorded: dict[str, dict[int, str | None]]
    unchecked: tuple[int, ...]

    @property
    def evaluated_only(self) -> bool:
        """Whether it is an external model; `params` says which."""
        return self.method == EVALUATED

    def mean_cost(self, of: Callable[[Cost], float | None]) -> float | None:
        """Return the mean of a cost over the devices that state it, None if none does."""
        values = [value for cost in self.costs if (value := of(cost)) is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class CompleteRun:
    """A finished run with its outcomes under every final attack, in the order of the protocol."""

    run: RunRow
    best: tuple[OutcomeRow, ...]
    last: tuple[OutcomeRow, ...]

    def at(self, attack: int) -> SeedResult:
        """Return the accuracies under one attack."""
        return SeedResult(self.run.seed, self.best[attack].accuracy, self.last[attack].accuracy)


def complete_run(run: RunRow, attacks: Sequence[dict[str, Any]], selection: Selection) -> CompleteRun | None:
    """Return a finished run with its outcomes under all final `attacks`, or None if it has not all of them.

    The one checkpoint of an external model is its best and its last.
    """
    best, last = (
        tuple(outcome for attack in attacks if (outcome := _outcome(run, checkpoint, attack)))
        for checkpoint in ("last" if run.method == EVALUATED else BEST[selection], "last")
    )
    complete = run.status == "finished" and len(best) == len(last) == len(attacks)
    return CompleteRun(run, best, last) if complete else None


def _outcome(run: RunRow, checkpoint: str, attack: dict[str, Any]) -> OutcomeRow | None:
    """Return the outcome under a final attack of the protocol; its identity repeats the attack's settings."""
    row = run.checkpoints.get(checkpoint)
    wanted = {**_UNSET, **attack}
    for outcome in row.outcomes.values() if row else ():
        identity = {**_UNSET, **outcome.identity}
        if all(identity.get(key) == value for key, value in wanted.items()):
            return outcome
    return None


def row_key(of: Row | RunRow) -> str:
    """Return what makes runs those of one row of a leaderboard: method, version and parameters; the label does not."""
    return canonical_json([of.method, of.version, of.params])


def ranking(attacks: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the final attack that ranks: AutoAttack, or if there is none, the last.

    `joint`, corruptions, and attacks with a threat of their own rank only if there are no others.
    """
    never = {"joint", "corruptions"}
    own = [index for index, attack in enumerate(attacks) if attack["name"] not in never and "threat" not in attack]
    complete = [index for index in own if attacks[index]["name"] == "autoattack"]
    return complete[0] if complete else own[-1] if own else len(attacks) - 1


def correct(outcomes: Sequence[OutcomeRow]) -> Correct | Floats:
    """Return for several seeds and the same images whether the prediction is correct: bool, [n, m].

    Under corruptions it is the share of an image's versions that are classified correctly: float, [n, m].
    """
    stacked: Correct | Floats = np.stack([outcome.per_image() for outcome in outcomes])
    return stacked


def variants(done: Sequence[CompleteRun], attack: int) -> list[str]:
    """Return for each variant of an attack the settings in which runs differ; none if all ran it alike.

    AutoAttack with a smaller batch than the protocol's, because memory was short, counts even if all runs have it.
    """
    identities = {
        canonical_json(outcome.identity): outcome.identity
        for run in done
        for outcome in (run.best[attack], run.last[attack])
    }
    if len(identities) > 1:
        return sorted(text or "as the protocol has it" for text in differences(list(identities.values())))
    return [f"{key}={value}" for one in identities.values() for key, value in one.items() if key == REDUCED]


def rows_of(
    runs: Sequence[RunRow], done: Mapping[str, CompleteRun], ranked_by: int, selection: Selection
) -> tuple[Row, ...]:
    """Return the rows of one protocol, best first; `done` has the complete runs by fingerprint.

    Runs of the same method, version and parameters make a row, whatever their label says.
    """
    groups: defaultdict[str, list[RunRow]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        groups[row_key(run)].append(run)
    members = list(groups.values())
    labels = disambiguate(
        [Counter(run.label for run in group).most_common(1)[0][0] for group in members],
        [{**group[0].params, "method": group[0].method, "version": group[0].version} for group in members],
    )
    rows: list[tuple[Row, Correct | Floats | None]] = []
    for label, group in zip(labels, members, strict=True):
        complete = [done[run.fingerprint] for run in group if run.fingerprint in done]
        averaged = [run for run in complete if not collapsed(run.best[ranked_by], run.run)]
        at_best = correct([run.best[ranked_by] for run in averaged]) if averaged else None
        rows.append((_row(label, group, complete, averaged, ranked_by, selection), at_best))
    same_data = different_data({name: complete.run.environment for name, complete in done.items()}) is None
    return _ranked(rows, ranked_by, same_data=same_data)


def _row(
    label: str,
    group: Sequence[RunRow],
    complete: Sequence[CompleteRun],
    averaged: Sequence[CompleteRun],
    ranked_by: int,
    selection: Selection,
) -> Row:
    first = group[0]
    finished = {seed.run.fingerprint for seed in complete}
    plugins = [(seed, seed.run.environment.get("plugins") or {}) for seed in complete]
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
        seeds=tuple(seed.run.seed for seed in averaged),
        figures=tuple(_figures(averaged, attack) for attack in range(len(averaged[0].best))) if averaged else (),
        costs=_costs([seed.run for seed in complete]),
        collapsed=tuple(seed.at(ranked_by) for seed in complete if seed not in averaged),
        collapsed_at_last=tuple(seed.at(ranked_by) for seed in averaged if collapsed(seed.last[ranked_by], seed.run)),
        diverged={run.seed: run.diverged_in for run in group if run.status == "diverged"},
        unfinished=tuple(run.seed for run in group if run.status != "diverged" and run.fingerprint not in finished),
        flags=tuple(
            flag
            for seed in complete
            for flag in flags_of(seed.run.seed, seed.best, seed.last, _guessing(seed.run, seed.last[ranked_by].count))
        ),
        unchecked=tuple(
            sorted({index for seed in complete for side in (seed.best, seed.last) for index in unchecked(side)})
        ),
        recorded={
            key: {seed.run.seed: _digest({"kernels": "eager", **seed.run.environment}, key) for seed in complete}
            for key in RECORDED
            if first.method != EVALUATED or key not in {"data.training", "kernels"}
        }
        | {
            f"sources of the plug-in for the {name}": {
                seed.run.seed: digests[name] for seed, digests in plugins if name in digests
            }
            for name in sorted({name for _, digests in plugins for name in digests})
        },
    )


def _digest(environment: Mapping[str, Any], key: str) -> str | None:
    recorded: Any = environment
    for word in key.split("."):
        recorded = (recorded or {}).get(word)
    return recorded if recorded is None or isinstance(recorded, str) else fingerprint(recorded)


def collapsed(outcome: OutcomeRow, run: RunRow) -> bool:
    """Return whether an accuracy is no better than guessing, or at most `NEAR_ZERO`.

    No better than guessing: at most two binomial standard errors above 1 / classes. A network that predicts one class
    for all images is unaffected by any attack, and scores just that. Standard training promises no robustness, so none
    of it counts as collapsed, nor does an external model, which is shown as it is.
    """
    if run.method == EVALUATED or run.protocol.content["training"]["attack"]["name"] == "none":
        return False
    return outcome.accuracy <= _guessing(run, outcome.count)


def _guessing(run: RunRow, images: int) -> float:
    """Return the highest accuracy on so many images that may come from guessing."""
    chance = 1 / run.classes if run.classes else 0
    return max(NEAR_ZERO, chance + 2 * binomial_error(chance, images))


def _figures(seeds: Sequence[CompleteRun], attack: int) -> AttackSummary:
    best, last = [seed.best[attack] for seed in seeds], [seed.last[attack] for seed in seeds]
    gaps = [before.accuracy - after.accuracy for before, after in zip(best, last, strict=True)]
    over_images: list[Interval | None] = [None, None, None]
    if len(seeds) == 1:
        (before,), (after,) = best, last
        over_images = [interval_of(outcome) for outcome in (before, after)]
        over_images.append(gap_interval_of(before, after))
    values = [outcome.accuracy for outcome in best], [outcome.accuracy for outcome in last], gaps
    at_best, at_last, gap = map(estimate, values, over_images)
    return AttackSummary(at_best, at_last, None if seeds[0].run.method == EVALUATED else gap)


def interval_of(outcome: OutcomeRow) -> Interval:
    """Return the interval of one seed's accuracy over images."""
    if outcome.versions > 1:
        return mean_interval(outcome.per_image())
    return wilson_interval(outcome.right, outcome.count)


def gap_interval_of(best: OutcomeRow, last: OutcomeRow) -> Interval:
    """Return the interval of one seed's gap, best minus last, over images."""
    return paired_interval(*correct([best, last]))


def _costs(runs: Sequence[RunRow]) -> tuple[Cost, ...]:
    """Return the cost of a seed on each device, leaving out runs that do not state their times."""
    by_device: defaultdict[tuple[str, str], list[RunRow]] = defaultdict(list)
    for run in runs:
        if run.train_seconds is not None and run.evaluation_seconds is not None:
            by_device[device_of(run)].append(run)
    costs = []
    for (kind, name), timed in sorted(by_device.items()):
        training = [run.train_seconds or 0.0 for run in timed]
        evaluation = [(run.evaluation_seconds or 0.0) + (run.track_seconds or 0.0) for run in timed]
        pflop = [run.train_pflop for run in timed if run.train_pflop is not None]
        memory = [run.peak_memory_bytes for run in timed if run.peak_memory_bytes is not None]
        costs.append(
            Cost(
                device=kind,
                training=sum(training) / len(timed) / 3600,
                evaluation=sum(evaluation) / len(timed) / 3600,
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


# --- ranks -----------------------------------------------------------------------------------------------------------


def _ranked(rows: Sequence[tuple[Row, Correct | Floats | None]], ranked_by: int, *, same_data: bool) -> tuple[Row, ...]:
    """Return the rows, best first, with their ranks; those without an averaged seed come last and have none.

    No row has a rank unless all were measured with the same data: a test pairs the results of each image.
    See `leaderboards` for the rule.
    """
    ranked_rows = sorted(
        ((row, at_best) for row, at_best in rows if at_best is not None),
        key=lambda pair: (-pair[0].figures[ranked_by].best.mean, pair[0].label),
    )
    without = sorted((row for row, at_best in rows if at_best is None), key=lambda row: row.label)
    if not same_data:
        return (*(row for row, _ in ranked_rows), *without)
    pairs = pairwise([at_best for _, at_best in ranked_rows])
    ranked: list[Row] = []
    leader = 0
    for place, ((row, _), (first, last)) in enumerate(zip(ranked_rows, rank_intervals(pairs), strict=True)):
        if pairs.p[leader, place] < 1 - CONFIDENCE:
            leader = place
        # Rank and interval come from different sets of tests; the interval always contains the rank.
        interval = min(first, leader + 1), max(last, leader + 1)
        ranked.append(replace(row, rank=leader + 1, rank_interval=interval))
    return (*ranked, *without)
