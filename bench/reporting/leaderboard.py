"""Leaderboards: one for each protocol, one row for each method with its parameters.

Only runs that finished and were judged under every final attack are averaged, and of these not the ones that collapsed.
Whatever else happened to a seed is counted and shown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from bench.config.protocol import DatasetSettings
from bench.errors import BenchError, NothingMeasured, did_you_mean
from bench.reporting.published import Beside
from bench.reporting.rows import (
    BEST,
    Measured,
    Row,
    Selection,
    device_of,
    distinct,
    measured,
    ranking,
    rows_of,
    variants,
)
from bench.storage.schema import RunRow
from bench.storage.store import Store


@dataclass(frozen=True)
class Attack:
    """A final attack, as a group of columns.

    `images`: how many test images it saw. `balanced_subset`: not the whole test set, but as many of each class.
    `variants`: the settings in which runs differ though their protocol is the same, such as the version of the package
    that attacks; empty if they all agree, and with the protocol.
    """

    title: str
    images: int
    balanced_subset: bool
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Leaderboard:
    """The rows of one protocol, best first. `ranked_by` is an index of `attacks`; `hardware` counts runs by device.

    `published`: what papers report of the same methods, see `beside`; None unless asked for.
    """

    fingerprint: str
    protocol: dict[str, Any]
    selection: Selection
    attacks: tuple[Attack, ...]
    ranked_by: int
    rows: tuple[Row, ...]
    hardware: dict[str, int]
    published: tuple[Beside, ...] | None = None

    @property
    def dataset(self) -> DatasetSettings:
        """Which images, and how they are split."""
        return DatasetSettings.model_validate(self.protocol["dataset"])

    @property
    def title(self) -> str:
        """The protocol in words."""
        threat, epochs = self.protocol["threat"], self.protocol["training"]["epochs"]
        parts = (
            _images(self.dataset),
            self.protocol["model"],
            f"{threat['norm'].capitalize()} {radius(threat['eps'])}",
            f"{epochs} {'epoch' if epochs == 1 else 'epochs'}",
            f"protocol {self.fingerprint[:12]}",
        )
        return ", ".join(parts)


def _images(dataset: DatasetSettings) -> str:
    """Name a dataset, and say what of it is used if that is not all of it as it comes."""
    parts = [dataset.files.path] if dataset.files else []
    parts += ["a part"] if dataset.subset or dataset.digest else []
    parts += [f"{dataset.resize}x{dataset.resize}"] if dataset.resize else []
    return f"{dataset.name} ({', '.join(parts)})" if parts else dataset.name


def leaderboards(
    store: Store, *, protocol: str | None = None, methods: Collection[str] = (), selection: Selection = "validation"
) -> list[Leaderboard]:
    """Return a leaderboard for each protocol that has something to show.

    Rows are ordered by their mean accuracy at best under AutoAttack, or if the protocol has none, under its last
    attack. The first row has rank 1. Every other row is compared with the first row of the rank above it
    (`statistics.compare`, 5 % level): it shares that rank if the two cannot be told apart, and otherwise its rank is
    its place in the table. Its rank interval rests on its comparisons with all rows (`statistics.rank_intervals`).

    Args:
        store: where the runs are.
        protocol: only protocols whose fingerprint begins so.
        methods: only rows of these methods, by name or label; all if empty.
        selection: which images chose the checkpoint of the `best` columns.

    Raises:
        BenchError: there is no run of a method that is asked for, or runs of a protocol saw different test images.
        NothingMeasured: no run has ended in a figure.
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


def _why_nothing(runs: Sequence[RunRow], protocol: str | None, selection: Selection) -> str:
    if not runs:
        which = "the store holds no run" + (f" of protocol {protocol:.12}" if protocol else "")
        return f"{which}; `bench run SUITE` makes them"
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
    """Return the leaderboard of one protocol's runs; None if none was measured, nor diverged."""
    protocol = runs[0].protocol
    finals = protocol.content["evaluation"]["final"]
    ranked_by = ranking(finals)
    done = [found for run in runs if (found := measured(run, finals, selection))]
    if not done and all(run.status != "diverged" for run in runs):
        return None
    _check_same_images(done)
    return Leaderboard(
        fingerprint=protocol.fingerprint,
        protocol=protocol.content,
        selection=selection,
        attacks=_attacks(finals, done),
        ranked_by=ranked_by,
        rows=rows_of(runs, {found.run.fingerprint: found for found in done}, ranked_by, selection),
        hardware=dict(Counter(device_of(found.run)[1] for found in done).most_common()),
    )


def _check_same_images(done: Sequence[Measured]) -> None:
    """Raise BenchError unless under each attack all runs saw equally many images, without which nothing is paired."""
    counts = {tuple(outcome.count for outcome in (*found.best, *found.last)): found.run.folder for found in done}
    if len(counts) > 1:
        first, second, *_ = counts.values()
        raise BenchError(
            f"{first} and {second} have the same protocol, but were judged on different numbers of test images; "
            "take out the folder whose dataset was another, and the store, which the next run makes anew"
        )


def _attacks(finals: Sequence[dict[str, Any]], done: Sequence[Measured]) -> tuple[Attack, ...]:
    titles = [done[0].best[index].title if done else final["name"] for index, final in enumerate(finals)]
    images = [done[0].best[index].count if done else 0 for index in range(len(finals))]
    attacks = []
    for index, (title, final) in enumerate(zip(distinct(titles, finals), finals, strict=True)):
        attacks.append(
            Attack(
                title=title,
                images=images[index],
                balanced_subset=final.get("images") is not None and images[index] < max(images),
                variants=tuple(variants(done, index)),
            )
        )
    return tuple(attacks)


def radius(eps: float) -> str:
    """Return a radius as the field writes it: 8/255 where it is a whole number of pixel values."""
    pixels = round(eps * 255)
    return f"{pixels}/255" if pixels < 255 and abs(eps * 255 - pixels) < 1e-6 else f"{eps:g}"
