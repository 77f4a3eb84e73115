"""A leaderboard as headings, cells and notes: what all formats render."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import printable
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.published import PublishedComparison
from bench.reporting.rows import NEAR_ZERO, RECORDED, Cost, Row, SeedResult
from bench.reporting.statistics import CONFIDENCE, Estimate, binomial_error

DECLARED, BY_CONSTRUCTION, COLLAPSED_AT_LAST = "†", "‡", "§"
NONE = "–"
LEVEL = f"{100 * CONFIDENCE:.0f} %"
TEST_LEVEL = f"{100 * (1 - CONFIDENCE):.0f} %"


@dataclass(frozen=True)
class Column:
    """One column. Columns of the same attack have its title as their `group`; the others have the group ""."""

    group: str
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """One cell. `value` is what it is sorted by, None where it has none; `spread` and `marks` follow the text."""

    text: str
    value: float | None = None
    spread: str = ""
    marks: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.text, self.spread, self.marks) if part)


@dataclass(frozen=True)
class Table:
    """A title, columns, one tuple of cells for each row, and notes; all texts are plain and on one line each."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


def table(board: Leaderboard) -> Table:
    """Return what to show of a leaderboard; accuracies in percent."""
    columns = [Column("", "Rank"), Column("", f"Rank, {LEVEL}"), Column("", "Method", numeric=False)]
    for index, attack in enumerate(board.attacks):
        columns += [Column(attack.title, title) for title in ("best", "last", "gap")]
        if index == board.ranked_by:
            columns.append(Column(attack.title, f"best, {LEVEL}"))
    columns.append(Column("", "Seeds", numeric=False))
    columns += [Column("", "Flags", numeric=False)] if _has_flags(board) else []
    columns.append(Column("", "Parameters", numeric=False))
    columns += [Column("", title) for title in ("Time a seed", "PFLOP a seed", "Memory")]
    ranks, devices = Counter(row.rank for row in board.rows), _devices(board)
    rows = [_cells(row, board, devices, shared=ranks[row.rank] > 1) for row in board.rows]
    return Table(
        printable(board.title),
        tuple(Column(printable(column.group), column.title, column.numeric) for column in columns),
        tuple(map(tuple, rows)),
        tuple(map(printable, _notes(board))),
    )


def tables(board: Leaderboard) -> list[Table]:
    """Return all that is to be shown of a leaderboard: its table, and if asked for that of the papers' figures."""
    return [table(board)] if board.published is None else [table(board), published_table(board)]


def published_table(board: Leaderboard) -> Table:
    """Return the comparison with papers' figures: a line for each source and attack; accuracies in percent."""
    columns = [Column("", "Method", numeric=False), Column("", "Attack", numeric=False)]
    columns += [
        Column(checkpoint, title) for checkpoint in ("best", "last") for title in ("paper", "ours", "difference")
    ]
    columns += [
        Column("", title, numeric=False) for title in ("Seeds", "Selection", "Status", "Source", "Not compared because")
    ]
    lines = board.published or ()
    notes = [
        "Papers' figures from results/published.csv. Status: how they were obtained; Seeds, Selection (which images "
        "chose best): the source's, – where it does not say.",
        "ours: at best the checkpoint that the source's rule selects. difference: ours minus the paper's, "
        "only where dataset, architecture, threat, attack and selection agree; recipes (epochs, weight decay, "
        "augmentation, held-out images, what last is) may still differ.",
    ]
    return Table(
        printable(f"Papers' figures beside ours: {board.title}"),
        tuple(columns),
        tuple(tuple(_beside(line)) for line in lines),
        tuple(notes if lines else ["No paper's figure is known for these methods on this dataset."]),
    )


# --- cells -----------------------------------------------------------------------------------------------------------


def _cells(row: Row, board: Leaderboard, devices: Mapping[str, str], *, shared: bool) -> list[Cell]:
    cells = [
        Cell(NONE) if row.rank is None else Cell(f"{row.rank}{'=' if shared else ''}", row.rank),
        _rank_interval(row),
        Cell(printable(row.label)),
    ]
    for index in range(len(board.attacks)):
        figures = row.figures[index] if row.figures else None
        last = COLLAPSED_AT_LAST if row.collapsed_at_last and index == board.ranked_by else ""
        gap = BY_CONSTRUCTION if row.gap_by_construction else ""
        cells += [
            _figure(figures.best if figures else None),
            _figure(figures.last if figures else None, last),
            _figure(figures.gap if figures else None, gap),
        ]
        if index == board.ranked_by:
            interval = figures.best.interval if figures else None
            cells.append(Cell("–".join(map(_percent, interval)), interval[0]) if interval else Cell(NONE))
    flags = Cell(str(len(row.flags)), len(row.flags)) if row.figures or row.collapsed else Cell(NONE)
    return [
        *cells,
        _seeds(row),
        *([flags] if _has_flags(board) else []),
        Cell(_parameters(row)),
        _on_devices(
            row,
            devices,
            lambda cost: cost.training + cost.evaluation,
            lambda cost: f"{_time(cost.training)} + {_time(cost.evaluation)}",
        ),
        _on_devices(row, devices, lambda cost: cost.pflop, lambda cost: f"{cost.pflop:.3g}"),
        _on_devices(row, devices, lambda cost: cost.memory, lambda cost: _memory(cost.memory or 0)),
    ]


def _has_flags(board: Leaderboard) -> bool:
    """Return whether any row has a flag: only then is there a column."""
    return any(row.flags for row in board.rows)


def _rank_interval(row: Row) -> Cell:
    if row.rank_interval is None:
        return Cell(NONE)
    return Cell("–".join(map(str, dict.fromkeys(row.rank_interval))), row.rank_interval[0])


def _percent(share: float) -> str:
    text = f"{100 * share:.2f}"
    return "0.00" if text == "-0.00" else text


def _figure(figure: Estimate | None, marks: str = "") -> Cell:
    if figure is None:
        return Cell(NONE)
    return Cell(_percent(figure.mean), figure.mean, "" if figure.sd is None else f"± {_percent(figure.sd)}", marks)


def _seeds(row: Row) -> Cell:
    others = {"collapsed": row.collapsed, "diverged": row.diverged, "unfinished": row.unfinished}
    excluded = ", ".join(f"{len(seeds)} {what}" for what, seeds in others.items() if seeds)
    return Cell(f"{len(row.seeds)} ({excluded})" if excluded else f"{len(row.seeds)}", len(row.seeds))


def _parameters(row: Row) -> str:
    origin = f"declared {DECLARED}" if row.origin == "declared" else row.origin
    return ", ".join(part for part in (origin, *_marks(row)) if part) or NONE


def _marks(row: Row) -> list[str]:
    """Return what distinguishes a row from one trained here with the method's canonical parameters."""
    return [mark for mark, there in (("custom", row.custom), ("evaluated only", row.evaluated_only)) if there]


def _devices(board: Leaderboard) -> dict[str, str]:
    """Return what to call each device: its kind, or where the board has several of that kind, its name."""
    kinds = {cost.hardware: cost.device for row in board.rows for cost in row.costs}
    several = Counter(kinds.values())
    return {name: kind if several[kind] == 1 else name for name, kind in kinds.items()}


def _on_devices(
    row: Row, devices: Mapping[str, str], value: Callable[[Cost], float | None], text: Callable[[Cost], str]
) -> Cell:
    """Return a cost on each of the row's devices, sorted by the mean over them."""
    shown = [f"{text(cost)} on {devices[cost.hardware]}" for cost in row.costs if value(cost) is not None]
    return Cell("; ".join(map(printable, shown)) or NONE, row.mean_cost(value))


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _time(hours: float) -> str:
    if hours >= 0.1:
        return f"{hours:.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _beside(line: PublishedComparison) -> list[Cell]:
    cells = [line.label, line.title]
    for side in (line.best, line.last):
        cells += [NONE if share is None else _percent(share) for share in (side.paper, side.ours)]
        cells.append(NONE if side.difference is None else _signed(side.difference))
    source = line.published
    seeds = NONE if source.seeds is None else str(source.seeds)
    cells += [seeds, source.selection or NONE, source.status, source.source, "; ".join(line.reasons) or NONE]
    return [Cell(printable(cell)) for cell in cells]


def _signed(share: float) -> str:
    text = _percent(share)
    return text if text == "0.00" or text.startswith("-") else f"+{text}"


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(board: Leaderboard) -> list[str]:
    return [
        _on_selection(board),
        _on_images(board),
        *_on_spread(board),
        _on_ranks(board),
        *_on_marks(board),
        *_on_seeds(board),
        *_on_flags(board),
        *_on_variants(board),
        *_on_records(board),
        "Time a seed: wall-clock time of training + evaluation, which includes tracking after every epoch. PFLOP a "
        "seed: work of training; a multiply-add counts as two. Memory: peak memory of a seed, of the GPU, or on a CPU "
        "of the process." + (f" Hardware: {_counted(board.hardware)}." if board.hardware else ""),
    ]


def _on_selection(board: Leaderboard) -> str:
    attack = board.protocol["evaluation"]["track"]["attack"]
    if board.selection == "validation":
        chosen = f"{board.dataset.held_out:,} training images held out for validation"
    else:
        chosen = "test images themselves, an oracle, optimistic for every method"
    return (
        f"best: the checkpoint with the highest PGD-{attack['steps']} accuracy on the {chosen}; last: the final epoch; "
        "gap: best minus last."
    )


def _on_images(board: Leaderboard) -> str:
    parts = []
    for index, attack in enumerate(board.attacks):
        part = f"{attack.title} {attack.images:,}"
        means = [row.figures[index].best.mean for row in board.rows if row.figures]
        if attack.balanced_subset and means:
            error = max(binomial_error(mean, attack.images) for mean in means)
            part += f" (a class-balanced subset; binomial standard error of a seed up to {_percent(error)} points)"
        parts.append(part)
    return f"Figures are percentages of the test images: {', '.join(parts)}."


def _on_spread(board: Leaderboard) -> list[str]:
    estimates = [row.figures[board.ranked_by].best for row in board.rows if row.figures]
    notes = []
    if any(figure.covers == "seeds" for figure in estimates):
        notes.append(
            f"± is the sample standard deviation over the seeds that the column Seeds counts; {LEVEL} is Student's "
            "t-interval of their mean, for these test images."
        )
    if any(figure.covers == "images" for figure in estimates):
        notes.append(
            f"For a row with one seed, the {LEVEL} interval covers the choice of test images only, not that of the "
            "seed."
        )
    return notes


def _on_ranks(board: Leaderboard) -> str:
    return (
        f"Rank: by {board.attacks[board.ranked_by].title} at best. A row shares a rank (=) if a paired test at the "
        f"{TEST_LEVEL} level does not separate it from the first row of that rank: Student's t over images and seeds, "
        "or for two rows with one seed each McNemar's exact test, which covers images only. "
        f"Rank, {LEVEL}: the ranks that a row may have, from the same tests against all other rows, adjusted by Holm's "
        "procedure."
    )


def _on_marks(board: Leaderboard) -> list[str]:
    notes = []
    if any(row.origin == "declared" for row in board.rows):
        notes.append(
            f"{DECLARED} Some parameters are this benchmark's choice because no readable source states them; the "
            "command bench show method lists them."
        )
    if any(row.gap_by_construction for row in board.rows):
        notes.append(
            f"{BY_CONSTRUCTION} The gap is zero by construction: the method's last model is its best one by definition."
        )
    if any(row.custom for row in board.rows):
        notes.append("custom: some parameters differ from the method's canonical ones.")
    evaluated = [row for row in board.rows if row.evaluated_only]
    if evaluated:
        notes.append(
            "evaluated only: an external model, trained elsewhere with an unknown recipe. Its one checkpoint counts as "
            f"best and as last, so it has no gap. {'; '.join(map(_network, evaluated))}."
        )
    return notes


def _network(row: Row) -> str:
    """Return the architecture, normalisation and weights of an external model."""
    how = row.params
    normalised = "no normalisation"
    if "mean" in how:
        mean, std = (", ".join(f"{value:g}" for value in how[key]) for key in ("mean", "std"))
        normalised = f"normalised by mean {mean} and standard deviation {std}"
    parts = [str(how.get("model", "unknown")), normalised, f"weights SHA-256 {how.get('weights_sha256', 'unknown')}"]
    if "code_sha256" in how:
        parts.append(f"code SHA-256 {how['code_sha256']}")
    return f"{row.label}: {', '.join(parts)}"


def _on_seeds(board: Leaderboard) -> list[str]:
    """Return for each row which seeds were not averaged and why, or should be inspected."""
    attack = board.attacks[board.ranked_by].title
    notes = []
    for row in board.rows:
        if row.collapsed:
            notes.append(
                f"{row.label}: collapsed and not averaged; {attack} accuracy at best is no better than guessing or at "
                f"most {100 * NEAR_ZERO:.0f} %: {_listed(row.collapsed)}."
            )
        if row.collapsed_at_last:
            notes.append(
                f"{COLLAPSED_AT_LAST} {row.label}: averaged, although {attack} accuracy at last is no better than "
                f"guessing or at most {100 * NEAR_ZERO:.0f} %: {_listed(row.collapsed_at_last)}."
            )
        if row.diverged:
            epochs = ", ".join(
                f"seed {seed}" + ("" if epoch is None else f" in epoch {epoch}") for seed, epoch in row.diverged.items()
            )
            notes.append(f"{row.label}: diverged, the loss was no longer a number: {epochs}.")
        if row.unfinished:
            notes.append(f"{row.label}: not finished and not averaged: seed {', '.join(map(str, row.unfinished))}.")
    return notes


def _on_flags(board: Leaderboard) -> list[str]:
    """Return the AutoAttack flags of each row."""
    notes = []
    for index, attack in enumerate(board.attacks):
        for row in board.rows:
            flags = [flag for flag in row.flags if flag.attack == index]
            listed = "; ".join(f"seed {flag.seed} at {flag.checkpoint}, {flag.reason}" for flag in flags)
            notes += [f"Flags: {attack.title} may overestimate {row.label}: {listed}."] if flags else []
    return notes


def _on_variants(board: Leaderboard) -> list[str]:
    """Return which attacks differ between runs, or from the protocol."""
    return [
        f"{attack.title} differs between runs, compare with care: {'; '.join(attack.variants)}."
        if len(attack.variants) > 1
        else f"{attack.title} deviates from the protocol because memory was short: {attack.variants[0]}."
        for attack in board.attacks
        if attack.variants
    ]


def _on_records(board: Leaderboard) -> list[str]:
    """Return which rows differ in what should be equal for all, such as the code, or do not say."""
    notes = []
    for key, name in RECORDED.items():
        groups: dict[str | None, list[str]] = {}
        for row in board.rows:
            values = row.recorded[key]
            for value in dict.fromkeys(values.values()):
                seeds = ", ".join(str(seed) for seed, other in values.items() if other == value)
                part = f" (seed {seeds})" if len(set(values.values())) > 1 else ""
                groups.setdefault(value, []).append(row.label + part)
        listed = [f"{value[:12]}: {', '.join(rows)}" for value, rows in groups.items() if value]
        if len(listed) > 1:
            notes.append(f"Rows were measured with different {name}, compare with care: {'; '.join(listed)}.")
        if None in groups:
            which = ", ".join(groups[None]) if listed else "all rows"
            notes.append(f"Older versions did not record the {name}; it is unknown, and may differ, for: {which}.")
    return notes


def _listed(seeds: Sequence[SeedResult]) -> str:
    return "; ".join(f"seed {seed.seed}, best {_percent(seed.best)}, last {_percent(seed.last)}" for seed in seeds)


def _counted(hardware: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} {'run' if count == 1 else 'runs'})" for name, count in hardware.items())
