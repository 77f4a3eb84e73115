"""A leaderboard as headings, cells and notes: what all formats render."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.reporting.leaderboard import Leaderboard
from bench.reporting.rows import NEAR_ZERO, Row, SeedFigures
from bench.reporting.statistics import CONFIDENCE, Estimate, binomial_error

DECLARED, BY_CONSTRUCTION, FALLEN = "†", "‡", "§"
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
class Table:
    """A title, columns, one tuple of cells for each row, and notes: plain text on one line each."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def table(board: Leaderboard) -> Table:
    """Return what to show of a leaderboard; accuracies in percent."""
    columns = [Column("", "Rank"), Column("", "Method", numeric=False)]
    for index, attack in enumerate(board.attacks):
        columns += [Column(attack.title, title) for title in ("best", "last", "gap")]
        if index == board.ranked_by:
            columns.append(Column(attack.title, f"best, {LEVEL}"))
    columns += [Column("", "Seeds", numeric=False), Column("", "Parameters", numeric=False), Column("", "Time a seed")]
    ranks = [row.rank for row in board.rows]
    rows = [_cells(row, board, shared=ranks.count(row.rank) > 1) for row in board.rows]
    return Table(
        _plain(board.title),
        tuple(Column(_plain(column.group), column.title, column.numeric) for column in columns),
        tuple(tuple(map(_plain, row)) for row in rows),
        tuple(map(_plain, _notes(board))),
    )


def _plain(text: str) -> str:
    """Return `text` on one line and without control characters, which labels from elsewhere may hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


# --- cells -----------------------------------------------------------------------------------------------------------


def _cells(row: Row, board: Leaderboard, *, shared: bool) -> list[str]:
    cells = [NONE if row.rank is None else f"{row.rank}{'=' if shared else ''}", row.label]
    for index in range(len(board.attacks)):
        figures = row.figures[index] if row.figures else None
        if figures is None:
            cells += [NONE] * 3
        else:
            last = [FALLEN] if row.fallen and index == board.ranked_by else []
            gap = [BY_CONSTRUCTION] if row.gap_by_construction else []
            cells += [_figure(figures.best), _figure(figures.last, last), _figure(figures.gap, gap)]
        if index == board.ranked_by:
            cells.append("–".join(map(_percent, figures.best.interval)) if figures else NONE)
    return [*cells, _seeds(row), _parameters(row), _times(row)]


def _percent(share: float) -> str:
    text = f"{100 * share:.2f}"
    return "0.00" if text == "-0.00" else text


def _figure(figure: Estimate, marks: Iterable[str] = ()) -> str:
    spread = [] if figure.sd is None else ["±", _percent(figure.sd)]
    return " ".join([_percent(figure.mean), *spread, *marks])


def _seeds(row: Row) -> str:
    others = {"collapsed": row.collapsed, "diverged": row.diverged, "unfinished": row.unfinished}
    left_out = ", ".join(f"{len(seeds)} {what}" for what, seeds in others.items() if seeds)
    return f"{len(row.seeds)} ({left_out})" if left_out else f"{len(row.seeds)}"


def _parameters(row: Row) -> str:
    origin = f"declared {DECLARED}" if row.origin == "declared" else row.origin
    return ", ".join(part for part in (origin, "custom" if row.custom else None) if part) or NONE


def _times(row: Row) -> str:
    times = [f"{_time(cost.training)} + {_time(cost.evaluation)} on {cost.device}" for cost in row.costs]
    return "; ".join(times) or NONE


def _time(hours: float) -> str:
    if hours >= 0.1:
        return f"{hours:.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(board: Leaderboard) -> list[str]:
    return [
        _on_selection(board),
        _on_images(board),
        *_on_spread(board),
        _on_ranks(board),
        *_on_marks(board),
        *_on_seeds(board),
        *(
            f"{attack.title} was not the same in all runs, so compare with care: {'; '.join(attack.variants)}."
            for attack in board.attacks
            if attack.variants
        ),
        "Time a seed: training + evaluation, which includes the tracking of every epoch, by the clock."
        + (f" Hardware: {_counted(board.hardware)}." if board.hardware else ""),
    ]


def _on_selection(board: Leaderboard) -> str:
    attack = board.protocol["evaluation"]["track"]["attack"]
    if board.selection == "validation":
        chosen = f"{board.dataset.held_out:,} training images held out for validation"
    else:
        chosen = "test images themselves, an oracle that flatters every method"
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
            "± is the sample standard deviation over the n seeds that the column Seeds counts; "
            f"{LEVEL} is Student's t-interval of their mean, for these test images."
        )
    if any(figure.covers == "images" for figure in estimates):
        notes.append(
            f"Of a row with one seed, the {LEVEL} interval covers the choice of test images only, "
            "not what another seed would give."
        )
    return notes


def _on_ranks(board: Leaderboard) -> str:
    return (
        f"Rank: by {board.attacks[board.ranked_by].title} at best. A row shares a rank (=) if a paired test at the "
        f"{TEST_LEVEL} level cannot tell it from the first row of that rank: a hierarchical bootstrap over images and "
        "seeds, or for two rows with one seed each McNemar's exact test, which covers images only."
    )


def _on_marks(board: Leaderboard) -> list[str]:
    notes = []
    if any(row.origin == "declared" for row in board.rows):
        notes.append(
            f"{DECLARED} Some parameters are this benchmark's own choice, because no readable source gives them; "
            "the command bench show method names them."
        )
    if any(row.gap_by_construction for row in board.rows):
        notes.append(
            f"{BY_CONSTRUCTION} The gap is zero by construction: the method's last model is its best one by definition."
        )
    if any(row.custom for row in board.rows):
        notes.append("custom: some parameters differ from the method's canonical ones.")
    return notes


def _on_seeds(board: Leaderboard) -> list[str]:
    """Say of every seed that was not averaged, or should be looked at, what became of it."""
    attack = board.attacks[board.ranked_by].title
    notes = []
    for row in board.rows:
        if row.collapsed:
            notes.append(
                f"{row.label}: collapsed and not averaged, since at best {attack} leaves no more than guessing or "
                f"{100 * NEAR_ZERO:.0f} %: {_listed(row.collapsed)}."
            )
        if row.fallen:
            notes.append(
                f"{FALLEN} {row.label}: averaged, though at last {attack} leaves no more than guessing or "
                f"{100 * NEAR_ZERO:.0f} %: {_listed(row.fallen)}."
            )
        if row.diverged:
            epochs = ", ".join(
                f"seed {seed}" + ("" if epoch is None else f" in epoch {epoch}") for seed, epoch in row.diverged.items()
            )
            notes.append(f"{row.label}: diverged, the loss was no longer a number: {epochs}.")
        if row.unfinished:
            notes.append(f"{row.label}: not finished and not averaged: seed {', '.join(map(str, row.unfinished))}.")
    return notes


def _listed(seeds: Sequence[SeedFigures]) -> str:
    return "; ".join(f"seed {seed.seed}, best {_percent(seed.best)}, last {_percent(seed.last)}" for seed in seeds)


def _counted(hardware: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} {'run' if count == 1 else 'runs'})" for name, count in hardware.items())
