"""Two protocols side by side: the settings in which they differ, and how far apart the same method's figures are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.suite import load_suite, shipped_suites
from bench.errors import BenchError
from bench.reporting.comparison import one_row, runs_named, setting_differences
from bench.reporting.leaderboard import Leaderboard, leaderboard_of
from bench.reporting.notes import percent
from bench.reporting.rows import Row, Selection, row_key
from bench.reporting.table import Table, points, text_table
from bench.storage.schema import RunRow
from bench.storage.store import Store
from bench.utils.files import canonical_json


@dataclass(frozen=True)
class Setting:
    """A setting in which two sides differ, as texts; "none" where a side lacks it."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class PointsBetween:
    """One figure of a method under both protocols: means over seeds, as shares. `difference` is b minus a."""

    method: str
    attack: str
    checkpoint: str
    a: float
    b: float
    difference: float
    seeds_a: int
    seeds_b: int


@dataclass(frozen=True)
class ProtocolDifference:
    """What two suites, or two rows of the store, differ in. `figures` is empty unless both were run."""

    a: str
    b: str
    settings: tuple[Setting, ...]
    figures: tuple[PointsBetween, ...]

    def tables(self) -> list[Table]:
        """Return the two tables to show; accuracies in percent."""
        texts = [[one.name, one.a, one.b] for one in self.settings]
        figures = [
            [
                *(one.method, one.attack, one.checkpoint),
                *(percent(one.a), percent(one.b), points(one.difference), f"{one.seeds_a}, {one.seeds_b}"),
            ]
            for one in self.figures
        ]
        headings = ["Method", "Attack", "Checkpoint", "A", "B", "B - A", "Seeds"]
        return [
            text_table(
                f"Settings: A {self.a}, B {self.b}", ["Setting", "A", "B"], texts, empty="The settings are equal."
            ),
            text_table("Points between them", headings, figures, range(3, 6), "No method was run under both."),
        ]


@dataclass(frozen=True)
class _Side:
    """`methods` maps labels to the identities [name, version, parameters]; `one`: it is a row of the store."""

    protocol: dict[str, Any]
    fingerprint: str
    methods: dict[str, list[Any]]
    one: bool


def protocol_difference(
    store: Store | None, a: str, b: str, *, selection: Selection = "validation"
) -> ProtocolDifference:
    """Return in which settings two suites, or two rows of the store, differ, and the points between their figures.

    Methods are compared by their labels, two rows of the store with each other. Figures are of methods that both sides
    have results of, under final attacks with the same settings.

    Args:
        store: where the runs are; None if there is none yet.
        a: a suite file, a shipped suite, a method's name or label, or the beginning of a run's name.
        b: the same.
        selection: which images chose the best checkpoint.

    Raises:
        BenchError: a name is unknown or ambiguous, or a suite is invalid.
    """
    runs = store.runs() if store else []
    first, second = (_side(word, runs) for word in (a, b))
    if first.one and second.one:
        pairs = list(zip(first.methods.items(), second.methods.items(), strict=True))
    else:
        labels = [label for label in first.methods if label in second.methods]
        pairs = [((label, first.methods[label]), (label, second.methods[label])) for label in labels]
    contents = [_content(side.protocol) for side in (first, second)]
    for (label, one), (other_label, other) in pairs:
        shared = label if label == other_label else "method"
        for content, identity in zip(contents, (one, other), strict=True):
            content["methods"][shared] = dict(zip(("name", "version", "params"), identity, strict=True))
    settings = tuple(Setting(*texts) for texts in setting_differences(contents[0], contents[1]))
    boards = [leaderboard_of(store, side.fingerprint, selection) for side in (first, second)] if store else [None, None]
    figures = tuple(figure for pair in pairs for figure in _figures(boards, pair)) if all(boards) else ()
    return ProtocolDifference(a, b, settings, figures)


def _side(word: str, runs: Sequence[RunRow]) -> _Side:
    path = Path(word)
    if path.suffix in {".yaml", ".yml"} or path.is_file() or word in shipped_suites():
        loaded = load_suite(word)
        methods = {method.label: [method.name, method.version, method.params] for method in loaded.methods}
        return _Side(loaded.suite.protocol.identity(), loaded.suite.protocol.fingerprint, methods, one=False)
    named = runs_named(word, runs)
    if len(named) > 1:
        names = ", ".join(sorted(fingerprint[:12] for fingerprint in named))
        raise BenchError(f"'{word:.80}' was run under several protocols ({names}); name one of its runs or a suite")
    ((fingerprint, found),) = named.items()
    run = one_row(word, found, runs)[0]
    return _Side(run.protocol.content, fingerprint, {run.label: [run.method, run.version, run.params]}, one=True)


def _content(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return a protocol with its final attacks by name, and a place for methods."""
    finals: dict[str, Any] = {}
    for final in protocol["evaluation"]["final"]:
        count = sum(other["name"] == final["name"] for other in finals.values())
        finals[f"{final['name']}_{count + 1}" if count else final["name"]] = final
    return {**protocol, "evaluation": {**protocol["evaluation"], "final": finals}, "methods": {}}


def _figures(boards: Sequence[Leaderboard | None], pair: Sequence[tuple[str, list[Any]]]) -> Iterator[PointsBetween]:
    sides: list[tuple[Row, Mapping[str, int]]] = []
    for board, (_, identity) in zip(boards, pair, strict=True):
        assert board
        rows = [row for row in board.rows if row.figures and row_key(row) == canonical_json(identity)]
        if not rows:
            return
        finals = board.protocol["evaluation"]["final"]
        sides.append((rows[0], {canonical_json(final): index for index, final in enumerate(finals)}))
    (row_a, attacks_a), (row_b, attacks_b) = sides
    method = row_a.label if row_a.label == row_b.label else f"{row_a.label}, {row_b.label}"
    for final, index in attacks_a.items():
        if final not in attacks_b:
            continue
        one, other = row_a.figures[index], row_b.figures[attacks_b[final]]
        title = boards[0].attacks[index].title if boards[0] else ""
        for checkpoint in ("best", "last", "gap"):
            x, y = getattr(one, checkpoint), getattr(other, checkpoint)
            if x and y:
                seeds = len(row_a.seeds), len(row_b.seeds)
                yield PointsBetween(method, title, checkpoint, x.mean, y.mean, y.mean - x.mean, *seeds)
