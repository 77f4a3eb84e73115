"""Leaderboards: one for each protocol, one row for each method with its parameters.

Only finished runs with an outcome under every final attack are averaged, and of these not the collapsed ones. Every
other seed is counted and named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.config.attacks import Threat
from bench.config.protocol import NO_IMAGES, DatasetSettings
from bench.errors import BenchError, NothingMeasured, did_you_mean
from bench.reporting.labels import disambiguate
from bench.reporting.published import PublishedComparison
from bench.reporting.rows import (
    BEST,
    CompleteRun,
    Row,
    Selection,
    complete_run,
    device_of,
    ranking,
    row_key,
    rows_of,
    variants,
)
from bench.storage.schema import RunRow
from bench.storage.store import Store
from bench.utils.formatting import counted


@dataclass(frozen=True)
class Attack:
    """A final attack, as a group of columns.

    `images`: the number of test images. `balanced_subset`: they are as many of each class, not the whole test set.
    `variants`: the settings in which runs differ although their protocol is the same, such as the version of the
    package that attacks; empty if all agree with each other and with the protocol.
    """

    title: str
    images: int
    balanced_subset: bool
    variants: tuple[str, ...]


@dataclass(frozen=True)
class IngestedBundle:
    """A bundle that runs came in: its SHA-256, its origin in words, and label of the row and seed of each run."""

    sha256: str
    origin: str | None
    runs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Bound:
    """A preview of AutoAttack that has not finished: the robust accuracy of a checkpoint is `at_most` this share."""

    label: str
    seed: int
    checkpoint: str
    attack: str
    images: int
    at_most: float


@dataclass(frozen=True)
class Reached:
    """The work until a row reached an accuracy: `pflop`, the mean over `seeds`, those of its seeds that reached it."""

    pflop: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """An accuracy (a share) under the ranking attack, and the rows (`row_key`) that reached it, as far as known."""

    accuracy: float
    reached: Mapping[str, Reached]


@dataclass(frozen=True)
class Leaderboard:
    """The rows of one protocol, best first.

    `fingerprint`, `protocol`: its digest (64 hex digits) and its settings. `selection`: the images that selected the
    checkpoint `best`. `attacks`: the final attacks; `ranked_by` is the index of the one that ranks. `hardware` counts
    runs by device. `published`: what papers report of the same methods, see `compare_with_published`; `target`: the
    work until an accuracy was reached, see `work.target`; both are None unless requested. `bundles`: where imported
    runs come from. `previews`: upper bounds for runs whose AutoAttack has not finished.
    """

    fingerprint: str
    protocol: dict[str, Any]
    selection: Selection
    attacks: tuple[Attack, ...]
    ranked_by: int
    rows: tuple[Row, ...]
    hardware: dict[str, int]
    published: tuple[PublishedComparison, ...] | None = None
    target: Target | None = None
    bundles: tuple[IngestedBundle, ...] = ()
    previews: tuple[Bound, ...] = ()

    @property
    def dataset(self) -> DatasetSettings:
        """Which images, and how they are split."""
        return DatasetSettings.model_validate(self.protocol["dataset"])

    @property
    def title(self) -> str:
        """The protocol in words."""
        epochs = self.protocol["training"]["epochs"]
        parts = (
            _images(self.dataset),
            self.protocol["model"],
            Threat.model_validate(self.protocol["threat"]).title,
            counted(epochs, "epoch"),
            *([] if self.dataset.held_out else ["best selected on test images"]),
            f"protocol {self.fingerprint[:12]}",
        )
        return ", ".join(parts)


def _images(dataset: DatasetSettings) -> str:
    """Return the name of a dataset, with what is used of it if that is not all of it as it is."""
    parts = [dataset.files.path] if dataset.files else []
    parts += ["a part"] if dataset.subset or dataset.digest else []
    parts += [f"{dataset.resize}x{dataset.resize}"] if dataset.resize else []
    return f"{dataset.name} ({', '.join(parts)})" if parts else dataset.name


def leaderboards(
    store: Store, *, protocol: str | None = None, methods: Collection[str] = (), selection: Selection = "validation"
) -> list[Leaderboard]:
    """Return a leaderboard for each protocol with a complete or diverged run, or a preview.

    Rows are ordered by their mean accuracy at best under AutoAttack, or if the protocol has none, under its last
    attack. The first row has rank 1. Every other row is compared with the first row of the rank above it
    (`statistics.compare`, 5 % level): it shares that rank if the test does not separate them, and otherwise its rank is
    its place in the table. Its rank interval comes from its comparisons with all rows (`statistics.rank_intervals`).
    No row has a rank if the runs record different data.

    Args:
        store: where the runs are.
        protocol: only protocols whose fingerprint begins so.
        methods: only rows of these methods, by name or label; all if empty.
        selection: which images chose the checkpoint of the `best` columns; always the test images if a protocol holds
            out none.

    Raises:
        BenchError: there is no run of a requested method, or runs of a protocol have different numbers of test images.
        NothingMeasured: no run has finished or diverged.
    """
    runs = store.runs(protocol=protocol, bits=True)
    wanted, known = set(methods), {name for run in runs for name in (run.method, run.label)}
    for name in sorted(wanted - known) if runs else ():
        raise BenchError(f"there is no run of a method '{name:.80}'{did_you_mean(name, known)}")
    runs = [run for run in runs if not wanted or wanted & {run.method, run.label}]
    by_protocol: defaultdict[str, list[RunRow]] = defaultdict(list)
    for run in runs:
        by_protocol[run.protocol_fingerprint].append(run)
    boards = [board for group in by_protocol.values() if (board := _board(group, selection))]
    if not boards:
        raise NothingMeasured(_why_nothing(runs, protocol, selection))
    return sorted(boards, key=lambda board: board.title)


def leaderboard_of(store: Store, fingerprint: str, selection: Selection) -> Leaderboard | None:
    """Return the leaderboard of one protocol, or None if none of its runs has finished or diverged."""
    try:
        (board,) = leaderboards(store, protocol=fingerprint, selection=selection)
    except NothingMeasured:
        return None
    return board


def _why_nothing(runs: Sequence[RunRow], protocol: str | None, selection: Selection) -> str:
    if not runs:
        which = "the database holds no run" + (f" of protocol {protocol:.12}" if protocol else "")
        return f"{which}; `bench run SUITE` adds them when they end"
    status = Counter(run.status for run in runs)
    if status["finished"]:
        return (
            f"no finished run has a checkpoint '{BEST[selection]}' with an outcome for every final attack; "
            "'best_on_test' needs a suite that tracks the test images (evaluation.track.test)"
        )
    counts = ", ".join(f"{count} {name}" for name, count in sorted(status.items()))
    return (
        f"no run has finished ({counts}); `bench run SUITE` continues them, with `--rerun failed` those that failed too"
    )


def _board(runs: Sequence[RunRow], selection: Selection) -> Leaderboard | None:
    """Return the leaderboard of one protocol's runs; None if none is complete, has diverged or has a preview."""
    protocol = runs[0].protocol
    attacks = protocol.content["evaluation"]["final"]
    ranked_by = ranking(attacks)
    done = [complete for run in runs if (complete := complete_run(run, attacks, selection))]
    if not done and all(run.status != "diverged" and "previews" not in run.environment for run in runs):
        return None
    _check_same_images(done)
    rows = rows_of(runs, {complete.run.fingerprint: complete for complete in done}, ranked_by, selection)
    return Leaderboard(
        fingerprint=protocol.fingerprint,
        protocol=protocol.content,
        selection="test" if protocol.content["dataset"]["validation"] == NO_IMAGES else selection,
        attacks=_attacks(attacks, done),
        ranked_by=ranked_by,
        rows=rows,
        hardware=dict(Counter(device_of(complete.run)[1] for complete in done).most_common()),
        bundles=_bundles(runs, rows),
        previews=_previews(runs, rows),
    )


def _previews(runs: Sequence[RunRow], rows: Sequence[Row]) -> tuple[Bound, ...]:
    """Return the previews of the unfinished runs, in the order of the rows."""
    of_row: defaultdict[str, list[RunRow]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        of_row[row_key(run)].append(run)
    return tuple(
        Bound(row.label, run.seed, **preview)
        for row in rows
        for run in of_row[row_key(row)]
        for preview in run.environment.get("previews", ())
    )


def _bundles(runs: Sequence[RunRow], rows: Sequence[Row]) -> tuple[IngestedBundle, ...]:
    """Return the bundles that some of the runs came in, with their runs in the order of the rows."""
    labels = {row_key(row): (number, row.label) for number, row in enumerate(rows)}
    members: defaultdict[tuple[str, str | None], list[tuple[int, str, int]]] = defaultdict(list)
    for run in runs:
        if origin := run.environment.get("ingested"):
            members[origin["bundle"], origin["origin"]].append((*labels[row_key(run)], run.seed))
    return tuple(
        IngestedBundle(*bundle, tuple((label, seed) for _, label, seed in sorted(ingested)))
        for bundle, ingested in sorted(members.items(), key=lambda item: item[0][0])
    )


def _check_same_images(done: Sequence[CompleteRun]) -> None:
    """Raise BenchError unless all runs saw equally many images under each attack: otherwise nothing is paired."""
    counts = {
        tuple(outcome.count for outcome in (*complete.best, *complete.last)): complete.run.folder for complete in done
    }
    if len(counts) > 1:
        first, second, *_ = counts.values()
        raise BenchError(
            f"{first} and {second} have the same protocol, but different numbers of test images; move the folder with "
            "the wrong dataset away, delete the database, and rebuild it with `bench ingest`"
        )


def _attacks(settings: Sequence[dict[str, Any]], done: Sequence[CompleteRun]) -> tuple[Attack, ...]:
    titles = [done[0].best[index].title if done else setting["name"] for index, setting in enumerate(settings)]
    images = [done[0].best[index].images if done else 0 for index in range(len(settings))]
    attacks = []
    for index, (title, setting) in enumerate(zip(disambiguate(titles, settings), settings, strict=True)):
        attacks.append(
            Attack(
                title=title,
                images=images[index],
                balanced_subset=(setting.get("images") is not None or setting["name"] == "joint")
                and images[index] < max(images),
                variants=tuple(variants(done, index)),
            )
        )
    return tuple(attacks)


# --- order of the rows ------------------------------------------------------------------------------------------------

SORT_KEYS: dict[str, Callable[[Leaderboard, Row], float | str | None]] = {
    "rank": lambda board, row: row.rank,
    "last": lambda board, row: -row.figures[board.ranked_by].last.mean if row.figures else None,
    "gap": lambda board, row: gap.mean if row.figures and (gap := row.figures[board.ranked_by].gap) else None,
    "cost": lambda board, row: row.mean_cost(lambda cost: cost.training + cost.evaluation),
    "pflop": lambda board, row: row.mean_cost(lambda cost: cost.pflop),
    "memory": lambda board, row: row.mean_cost(lambda cost: cost.memory),
    "method": lambda board, row: row.label.casefold(),
}
"""What rows are sorted by, smallest first; those without a value come last."""


def sort_rows(boards: Sequence[Leaderboard], key: str) -> list[Leaderboard]:
    """Return `boards` with their rows sorted by `key`; ranks stay, and so does the order of rows with equal values.

    Keys: `rank`; an attack by name (`clean`, `fgsm`, `pgd`, `cw`, `autoattack`: highest accuracy at best first; under
    the first of several of a name); `last` (highest first) and `gap` (smallest first) under the ranking attack; `cost`
    (hours of training and evaluation), `pflop` and `memory` of a seed, least first, as means over the row's devices;
    `method` (labels in alphabetical order). A board without the attack stays as it is.

    Raises:
        BenchError: the key is unknown, or no board has the attack.
    """
    attacks = {final["name"] for board in boards for final in board.protocol["evaluation"]["final"]}
    known = {*SORT_KEYS, *attacks}
    if key not in known:
        raise BenchError(f"rows cannot be sorted by '{key:.40}'{did_you_mean(key, known)}")
    return [replace(board, rows=tuple(_sorted(board, key))) for board in boards]


def _sorted(board: Leaderboard, key: str) -> list[Row]:
    names = [final["name"] for final in board.protocol["evaluation"]["final"]]
    value = SORT_KEYS.get(key)
    if value is None and key not in names:
        return list(board.rows)

    def of(row: Row) -> float | str | None:
        if value is None:
            return -row.figures[names.index(key)].best.mean if row.figures else None
        return value(board, row)

    values = [(of(row), row) for row in board.rows]
    with_value = sorted((pair for pair in values if pair[0] is not None), key=lambda pair: pair[0])  # type: ignore[arg-type, return-value]
    return [row for _, row in with_value] + [row for number, row in values if number is None]
