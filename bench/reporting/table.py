"""A leaderboard as headings, cells and notes: what all formats render."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import printable
from bench.reporting.leaderboard import Leaderboard, Target
from bench.reporting.notes import BY_CONSTRUCTION, COLLAPSED_AT_LAST, DECLARED, LEVEL, notes, percent
from bench.reporting.published import PublishedComparison
from bench.reporting.rows import Cost, Row, row_key
from bench.reporting.statistics import Estimate

NONE = "–"


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
    reaching = [f"PFLOP to {100 * board.target.accuracy:g} %"] if board.target else []
    columns += [Column("", title) for title in ("Time a seed", "PFLOP a seed", *reaching, "Memory")]
    ranks, devices = Counter(row.rank for row in board.rows), _devices(board)
    rows = [_cells(row, board, devices, shared=ranks[row.rank] > 1) for row in board.rows]
    return Table(
        printable(board.title),
        tuple(Column(printable(column.group), column.title, column.numeric) for column in columns),
        tuple(map(tuple, rows)),
        tuple(map(printable, notes(board))),
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
    explained = [
        "Papers' figures from results/published.csv. Status: how they were obtained; Seeds, Selection (which images "
        "chose best): the source's, – where it does not say.",
        "ours: at best the checkpoint that the source's rule selects. difference: ours minus the paper's, "
        "only where dataset, architecture, threat, attack and selection agree; recipes (epochs, weight decay, "
        "augmentation, held-out images, what last is) may still differ.",
    ]
    return Table(
        printable(f"Papers' figures and ours: {board.title}"),
        tuple(columns),
        tuple(tuple(_beside(line)) for line in lines),
        tuple(explained if lines else ["No paper's figure is known for these methods on this dataset."]),
    )


def text_table(
    title: str,
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    numeric: Collection[int] = (),
    empty: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of texts. `numeric`: columns aligned as figures; `empty`: the note of a table without lines."""
    columns = tuple(Column("", heading, numeric=index in numeric) for index, heading in enumerate(headings))
    rows = tuple(tuple(Cell(printable(text)) for text in line) for line in lines)
    return Table(printable(title), columns, rows, tuple(map(printable, notes if lines else [empty])))


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
            cells.append(Cell("–".join(map(percent, interval)), interval[0]) if interval else Cell(NONE))
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
        *([_reached(row, board.target)] if board.target else []),
        _on_devices(row, devices, lambda cost: cost.memory, lambda cost: _memory(cost.memory or 0)),
    ]


def _has_flags(board: Leaderboard) -> bool:
    """Return whether any row has a flag: only then is there a column."""
    return any(row.flags for row in board.rows)


def _rank_interval(row: Row) -> Cell:
    if row.rank_interval is None:
        return Cell(NONE)
    return Cell("–".join(map(str, dict.fromkeys(row.rank_interval))), row.rank_interval[0])


def _figure(figure: Estimate | None, marks: str = "") -> Cell:
    if figure is None:
        return Cell(NONE)
    return Cell(percent(figure.mean), figure.mean, "" if figure.sd is None else f"± {percent(figure.sd)}", marks)


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


def _reached(row: Row, target: Target) -> Cell:
    """Return the work until the row reached the accuracy, and by how many of its seeds if not by all."""
    reached = target.reached.get(row_key(row))
    if reached is None:
        return Cell(NONE)
    some = f" ({len(reached.seeds)} of {len(row.seeds)} seeds)" if len(reached.seeds) < len(row.seeds) else ""
    return Cell(f"{reached.pflop:.3g}{some}", reached.pflop)


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _beside(line: PublishedComparison) -> list[Cell]:
    cells = [line.label, line.title]
    for side in (line.best, line.last):
        cells += [NONE if share is None else percent(share) for share in (side.paper, side.ours)]
        cells.append(NONE if side.difference is None else points(side.difference))
    source = line.published
    seeds = NONE if source.seeds is None else str(source.seeds)
    cells += [seeds, source.selection or NONE, source.status, source.source, "; ".join(line.reasons) or NONE]
    return [Cell(printable(cell)) for cell in cells]


def points(share: float) -> str:
    """Return a difference of two shares in points, with its sign."""
    text = percent(share)
    return text if text == "0.00" or text.startswith("-") else f"+{text}"
