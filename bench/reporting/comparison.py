"""Compare two methods, or two runs, of one protocol: differences, their intervals and p-values, and on which images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bench.config.cell import EVALUATED
from bench.config.protocol import NO_IMAGES
from bench.errors import BenchError, NotComparable, NothingMeasured, did_you_mean
from bench.reporting.labels import differences, disambiguate
from bench.reporting.rows import (
    CompleteRun,
    Selection,
    collapsed,
    complete_run,
    correct,
    ranking,
    row_key,
    variants,
)
from bench.reporting.statistics import Difference, compare, compare_gaps
from bench.storage.schema import RunRow
from bench.storage.store import Store
from bench.utils.environment import different_data
from bench.utils.files import canonical_json


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a method's runs, or one run.

    `seeds` are averaged; `left_out` names the others with the reason. An external model has one checkpoint, which
    counts as best and as last, and no gap.
    """

    label: str
    method: str
    version: int
    params: dict[str, Any]
    seeds: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def evaluated_only(self) -> bool:
        return self.method == EVALUATED


@dataclass(frozen=True)
class Figure:
    """Both sides under one attack, in shares; `difference` is a minus b.

    `checkpoint`: best, last, or gap, which is best minus last. `only_a`, `only_b`: the images, as positions among the
    `images` of the attack, on which one side is correct in more than half of its seeds and the other is not; empty for
    the gap.
    """

    attack: str
    checkpoint: str
    images: int
    a: float
    b: float
    difference: Difference
    only_a: tuple[int, ...] = ()
    only_b: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two sides of one protocol. `variants`: settings of the attacks that differ although the protocol does not."""

    protocol: str
    selection: Selection
    a: Side
    b: Side
    figures: tuple[Figure, ...]
    variants: tuple[str, ...]


def compared(
    store: Store, a: str, b: str, *, protocol: str | None = None, selection: Selection = "validation"
) -> Comparison:
    """Compare two methods, or two runs, or one of each, on their common test images.

    A method is its complete runs without the collapsed ones; a run is itself. The tests are those of the leaderboard
    (`statistics.compare`): seeds of the two sides count as independent, even if their numbers are equal.

    Args:
        store: where the runs are.
        a: a method's name or label, or the beginning of a run's folder name or fingerprint.
        b: the same.
        protocol: only runs of the protocols whose fingerprint begins so.
        selection: which images chose the best checkpoint; always the test images if the protocol holds out none.

    Raises:
        BenchError: a name is unknown or ambiguous.
        NotComparable: the two have different protocols, or used different images.
        NothingMeasured: one of them has no complete run.
    """
    runs = store.runs(protocol=protocol, bits=True)
    if not runs:
        which = f" of protocol {protocol:.12}" if protocol else ""
        raise NothingMeasured(f"the database holds no run{which}; `bench run SUITE` adds them when they end")
    named_a, named_b = runs_named(a, runs), runs_named(b, runs)
    chosen = _common_protocol(named_a, named_b)
    row_a, row_b = one_row(a, named_a[chosen], runs), one_row(b, named_b[chosen], runs)
    if {run.fingerprint for run in row_a} == {run.fingerprint for run in row_b}:
        raise BenchError(f"'{a:.80}' and '{b:.80}' are the same; name two methods or two runs")
    protocol_content = row_a[0].protocol.content
    attacks = protocol_content["evaluation"]["final"]
    if protocol_content["dataset"]["validation"] == NO_IMAGES:
        selection = "test"
    (side_a, done_a), (side_b, done_b) = (_side(row, attacks, selection) for row in (row_a, row_b))
    used = {f"{run.run.label} seed {run.run.seed}": run.run.environment for run in (*done_a, *done_b)}
    if different := different_data(used):
        raise NotComparable(f"not comparable: they used different data: {different}")
    titles = disambiguate([outcome.title for outcome in done_a[0].best], attacks)
    figures = [figure for index, title in enumerate(titles) for figure in figures_under(title, index, done_a, done_b)]
    return Comparison(chosen, selection, side_a, side_b, tuple(figures), _variants(titles, [*done_a, *done_b]))


def setting_differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """Return the settings in which two protocols differ, each as ("training.epochs", "8", "10"), in alphabetical order.

    A setting that only one of them has shows as "none" for the other; lists are compared as a whole.
    """
    settings = []
    for key in sorted(a.keys() | b.keys()):
        first, second = a.get(key), b.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            settings += setting_differences(first, second, f"{prefix}{key}.")
        elif canonical_json(first) != canonical_json(second):
            settings.append((f"{prefix}{key}", _shown(first), _shown(second)))
    return settings


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the same as texts, each as "training.epochs (8, 10)"."""
    return [f"{name} ({first}, {second})" for name, first, second in setting_differences(a, b)]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else canonical_json(value)


# --- which runs are meant --------------------------------------------------------------------------------------------

RunsByProtocol: TypeAlias = dict[str, list[RunRow]]


def runs_named(word: str, runs: Sequence[RunRow]) -> RunsByProtocol:
    """Return the runs of a method, or the one run whose folder or fingerprint begins with `word`."""
    by_label = [run for run in runs if run.label == word]
    by_method = by_label or [run for run in runs if run.method == word]
    matches = by_method or [
        run for run in runs if word and (Path(run.folder).name.startswith(word) or run.fingerprint.startswith(word))
    ]
    if not matches:
        known = {name for run in runs for name in (run.method, run.label)}
        raise BenchError(f"there is no method and no run '{word:.80}'{did_you_mean(word, known)}")
    if not by_method and len(matches) > 1:
        names = " and ".join(Path(run.folder).name for run in matches[:2])
        raise BenchError(f"'{word:.80}' is the beginning of several runs, such as {names}; add characters")
    found: defaultdict[str, list[RunRow]] = defaultdict(list)
    for run in matches:
        found[run.protocol_fingerprint].append(run)
    return found


def _common_protocol(a: RunsByProtocol, b: RunsByProtocol) -> str:
    """Return the only protocol that both sides have."""
    common = sorted(a.keys() & b.keys())
    if len(common) > 1:
        names = ", ".join(name[:12] for name in common)
        raise BenchError(f"both were run under several protocols ({names}); choose one with --protocol or --suite")
    if common:
        return common[0]
    contents = [(one[0].protocol.content, other[0].protocol.content) for one in a.values() for other in b.values()]
    nearest = min((differing_settings(one, other) for one, other in contents), key=len)
    raise NotComparable(f"not comparable: they were run under different protocols: {'; '.join(nearest)}")


def one_row(word: str, runs: Sequence[RunRow], all_runs: Sequence[RunRow]) -> list[RunRow]:
    """Return the runs of the one row of a leaderboard that `runs` belong to; a run that was named alone stays alone."""
    rows = {row_key(run): run for run in runs}
    if len(rows) > 1:
        labels = ", ".join(
            f"{run.label} ({text})"
            for run, text in zip(rows.values(), differences([run.params for run in rows.values()]), strict=True)
        )
        raise BenchError(f"'{word:.80}' names several rows: {labels}; name one by its label, or one of its runs")
    if word not in {runs[0].method, runs[0].label}:
        return list(runs)
    (key,) = rows
    protocol = runs[0].protocol_fingerprint
    return [run for run in all_runs if run.protocol_fingerprint == protocol and row_key(run) == key]


def _side(
    runs: Sequence[RunRow], attacks: Sequence[dict[str, Any]], selection: Selection
) -> tuple[Side, list[CompleteRun]]:
    """Return a side and what was measured of it, by seed; a single run counts even if it collapsed."""
    first = runs[0]
    ranked_by = ranking(attacks)
    done = sorted(
        (complete for run in runs if (complete := complete_run(run, attacks, selection))),
        key=lambda complete: complete.run.seed,
    )
    averaged = [run for run in done if len(runs) == 1 or not collapsed(run.best[ranked_by], run.run)]
    if not averaged:
        states = Counter("collapsed" if run.status == "finished" and done else run.status for run in runs)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        raise NothingMeasured(f"{first.label} has no run with an outcome for every final attack ({counts})")
    finished, included = ({run.run.fingerprint for run in some} for some in (done, averaged))
    left_out = [
        f"seed {run.seed} {'collapsed' if run.fingerprint in finished else 'has no results: ' + run.status}"
        for run in sorted(runs, key=lambda run: run.seed)
        if run.fingerprint not in included
    ]
    seeds = tuple(run.run.seed for run in averaged)
    return Side(first.label, first.method, first.version, first.params, seeds, tuple(left_out)), averaged


# --- figures ---------------------------------------------------------------------------------------------------------


def figures_under(title: str, attack: int, a: Sequence[CompleteRun], b: Sequence[CompleteRun]) -> list[Figure]:
    """Return the figures at best, at last and, if both sides have one, of the gap under one attack (by index).

    Raises NotComparable if the sides have different numbers of test images.
    """
    counts = {outcome.count for run in (*a, *b) for outcome in (run.best[attack], run.last[attack])}
    if len(counts) > 1:
        numbers = ", ".join(f"{count:,}" for count in sorted(counts))
        raise NotComparable(f"not comparable: under {title} they have different numbers of test images: {numbers}")
    images = a[0].best[attack].images
    best_a, best_b = (correct([run.best[attack] for run in side]) for side in (a, b))
    last_a, last_b = (correct([run.last[attack] for run in side]) for side in (a, b))
    figures = []
    for checkpoint, one, other in (("best", best_a, best_b), ("last", last_a, last_b)):
        majority_a, majority_b = (side.mean(0) > 0.5 for side in (one, other))
        figures.append(
            Figure(
                title,
                checkpoint,
                images,
                float(one.mean()),
                float(other.mean()),
                compare(one, other),
                tuple(np.flatnonzero(majority_a & ~majority_b).tolist()),
                tuple(np.flatnonzero(majority_b & ~majority_a).tolist()),
            )
        )
    if any(run.run.method == EVALUATED for run in (*a, *b)):
        return figures
    number = np.int8 if best_a.dtype == bool else np.float64
    gaps = [np.subtract(best, last, dtype=number) for best, last in ((best_a, last_a), (best_b, last_b))]
    gap_a, gap_b = (float(gap.mean()) for gap in gaps)
    return [*figures, Figure(title, "gap", images, gap_a, gap_b, compare_gaps(*gaps))]


def _variants(titles: Sequence[str], done: Sequence[CompleteRun]) -> tuple[str, ...]:
    """Return for each attack that differs between runs the settings that differ."""
    return tuple(
        f"{title}: {'; '.join(texts)}" for index, title in enumerate(titles) if (texts := variants(done, index))
    )
