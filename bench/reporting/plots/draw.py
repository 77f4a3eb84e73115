"""How each figure of a leaderboard is painted on an empty matplotlib figure; `plots` is the way in.

Colours are those of Okabe and Ito, Color universal design (2008), without yellow, which white paper swallows. Nothing
is told by colour alone: lines differ in their dashes, points in their shape and by their labels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from bench.errors import printable
from bench.reporting.plots.data import Agreement, Costs, Curve, Figures, Line, Mark, Value
from bench.reporting.plots.inline_svg import Tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches, of a page with two columns of text

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TEXT, MUTED, GRID, PAPER = "#111111", "#666666", "#cccccc", "#ffffff"

MARKERS = "osD^vPX"  # seven of them and six colours: 42 rows before a pair comes again


@dataclass
class Drawing:
    """A figure under way; `tags` says of the artists with a name (gid) what they stand for."""

    figure: Figure
    tags: dict[str, Tag] = field(default_factory=dict)

    def tag(self, artist: Any, row: int, method: str, tooltip: str) -> None:
        """Note that `artist` belongs to a row."""
        name = f"series-{len(self.tags)}"
        artist.set_gid(name)
        self.tags[name] = Tag(row, method, tooltip)


def _short(label: str, width: int = 34) -> str:
    """Return a label on one line, cut if need be."""
    text = printable(label)
    return (text if len(text) <= width else text[: width - 1] + "…") or " "


def _wrapped(label: str, width: int) -> str:
    """Return a label on at most two lines, cut if need be."""
    return "\n".join(textwrap.wrap(_short(label, 1000), width, max_lines=2, placeholder=" …"))


# --- curves ----------------------------------------------------------------------------------------------------------

LINES: tuple[
    tuple[str, str, str, Any, float], ...
] = (  # of the images that are judged: attribute of `Curve`, name, colour, dashes, width
    ("train", "training", SERIES[2], (0, (1, 1)), 1.0),
    ("validation", "validation", SERIES[1], (0, (4, 1.5)), 0.8),
    ("test", "test", SERIES[0], "-", 1.2),
)
DROP: dict[str, Any] = {"color": MUTED, "linewidth": 0.5, "linestyle": (0, (6, 2, 1, 2))}
BEST: dict[str, Any] = {"marker": "o", "color": TEXT, "markersize": 4}
LAST: dict[str, Any] = {"marker": "s", "color": TEXT, "markersize": 4, "markerfacecolor": PAPER}


def curves(drawing: Drawing, figures: Figures) -> None:
    """One panel for each row, all with the same axes."""
    from matplotlib.ticker import MaxNLocator

    shown = figures.curves.rows
    columns = min(len(shown), 3 if len(shown) in (5, 6, 9) else 4)
    lines = -(-len(shown) // columns)
    width = TWO_COLUMNS if columns > 1 else ONE_COLUMN
    height = 2.4 if columns == 1 else 1.9 if columns < 4 else 1.5
    drawing.figure.set_size_inches(width, 0.7 + height * lines)
    panels = drawing.figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    cells = list(panels.flat)
    cells[0].xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    _limits(cells[0], shown)  # beforehand: every panel would look for them again with every line
    for row, (axes, curve) in enumerate(zip(cells, shown, strict=False)):
        axes.set_title(_wrapped(curve.label, 92 // columns))
        _curve(axes, curve)
        drawing.tag(axes, row, curve.method, curve.label)
    for index in range(len(shown), len(cells)):
        cells[index].set_visible(False)
        cells[index - columns].tick_params(labelbottom=True)
    drawing.figure.supxlabel("Epochs", fontsize=8)
    drawing.figure.supylabel(f"{figures.curves.attack} accuracy, %", fontsize=8)
    _legend(drawing.figure, shown)


def _limits(axes: Axes, curves: Sequence[Curve]) -> None:
    lines = [line for curve in curves for line in (curve.train, curve.validation, curve.test) if line and line.epochs]
    low, high = min((min(line.low) for line in lines), default=0), max((max(line.high) for line in lines), default=100)
    margin = 0.05 * max(high - low, 1)
    axes.set_xlim(0, 1.03 * max((line.epochs[-1] for line in lines), default=1))
    axes.set_ylim(low - margin, high + margin)


def _curve(axes: Axes, curve: Curve) -> None:
    axes.vlines(curve.drops, *axes.get_ylim(), **DROP)
    for kind, _, colour, dashes, width in LINES:
        line: Line | None = getattr(curve, kind)
        if line is None or not line.epochs:
            continue
        look: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": "." if len(line.epochs) == 1 else None}
        if max(line.seeds) > 1:
            axes.fill_between(line.epochs, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        whole = sum(count == max(line.seeds) for count in line.seeds)  # after these, some seeds have stopped
        axes.plot(line.epochs[:whole], line.mean[:whole], linewidth=width, **look)
        axes.plot(line.epochs[whole - 1 :], line.mean[whole - 1 :], linewidth=width / 2, **look)
    if not curve.validation.epochs:
        axes.text(0.5, 0.5, "no curve recorded", transform=axes.transAxes, ha="center", color=MUTED)
    for marks, look in ((curve.best, BEST), (curve.last, LAST)):
        _mark(axes, marks, look, on_test=curve.test is not None)


def _mark(axes: Axes, marks: Sequence[Mark], look: dict[str, Any], *, on_test: bool) -> None:
    """Mark a checkpoint: mean accuracy at the mean epoch, with a line from the earliest to the latest seed's."""
    points = [
        (mark.epochs, height) for mark in marks if (height := mark.test if on_test else mark.validation) is not None
    ]
    if points:
        epochs, heights = zip(*points, strict=True)
        centre, height = sum(epochs) / len(epochs), sum(heights) / len(heights)
        axes.hlines(height, min(epochs), max(epochs), color=TEXT, linewidth=0.8, zorder=3)
        axes.plot([centre], [height], linestyle="none", markeredgewidth=0.8, zorder=4, **look)


def _legend(figure: Figure, curves: Sequence[Curve]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=width, label=f"{name} images")
        for kind, name, colour, dashes, width in LINES
        if any(getattr(curve, kind) for curve in curves)
    ]
    if any(len(curve.best) > 1 for curve in curves):
        handles.append(Patch(facecolor=MUTED, alpha=0.2, label="range of seeds"))
    handles += [Line2D([], [], linestyle="none", markeredgewidth=0.8, label="best", **BEST)]
    handles += [Line2D([], [], linestyle="none", markeredgewidth=0.8, label="last", **LAST)]
    if any(curve.drops for curve in curves):
        handles.append(Line2D([], [], label="rate drops", **DROP))
    columns = len(handles) if figure.get_figwidth() > ONE_COLUMN else 3
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=2.2, columnspacing=1.2)


# --- best, last and gap ----------------------------------------------------------------------------------------------


POINT: dict[str, Any] = {"markersize": 3.6, "markeredgewidth": 0.8}
POINTS: dict[str, dict[str, Any]] = {
    "best": {"color": SERIES[0], "marker": "o", **POINT},
    "last": {"color": SERIES[1], "marker": "s", "markerfacecolor": PAPER, **POINT},
    "gap": {"color": TEXT, "marker": "D", **POINT},
    "‡ zero by construction": {"color": TEXT, "marker": "D", "markerfacecolor": PAPER, **POINT},
}


def gap(drawing: Drawing, figures: Figures) -> None:
    """Above: accuracies at best and at last; below: best minus last. One column for each attack."""
    rows, attacks = figures.gap.rows, figures.gap.attacks
    drawing.figure.set_size_inches(TWO_COLUMNS, 1.3 + 2 * max(0.17 * len(rows), 0.3))
    panels = drawing.figure.subplots(2, len(attacks), sharey=True, squeeze=False)
    marked = [row.label for row in rows if row.by_construction]
    for index, attack in enumerate(attacks):
        above, below = panels[:, index]
        above.set_title(_short(attack) + (" (ranks)" if index == figures.gap.ranked_by and len(attacks) > 1 else ""))
        above.set_xlabel("accuracy, %")
        below.set_xlabel("gap: best − last, points")
        below.axvline(0, color=MUTED, linewidth=0.6)
        for place, row in enumerate(rows):
            under = row.attacks[index]
            above.plot([under.best.mean, under.last.mean], [place - 0.15, place + 0.15], color=MUTED, linewidth=0.5)
            for axes, kind, value, height in (
                (above, "best", under.best, place - 0.15),
                (above, "last", under.last, place + 0.15),
                (below, "‡ zero by construction" if row.by_construction else "gap", under.gap, place),
            ):
                if value is None:
                    continue
                reach = [[value.mean - value.low], [value.high - value.mean]]
                drawn = axes.errorbar([value.mean], [height], xerr=reach, elinewidth=0.9, **POINTS[kind])
                name = f"{row.label}, {attack}, {'gap' if axes is below else kind}"
                for artist in chain([drawn.lines[0]], drawn.lines[2]):
                    drawing.tag(artist, place, row.method, f"{name}: {_stated(value)}")
    labels = [_short(row.label) + (" ‡" if row.by_construction else "") for row in rows]
    panels[0, 0].set_yticks(range(len(rows)), labels)
    panels[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    for axes in panels.flat:
        axes.grid(visible=False, axis="y")
    _gap_legend(drawing.figure, [kind for kind in POINTS if marked or "‡" not in kind])


def _stated(value: Value) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


def _gap_legend(figure: Figure, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=kind, **POINTS[kind]) for kind in kinds]
    handles.append(Line2D([], [], color=MUTED, linewidth=0.9, label="95 % interval"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.2)


# --- cost ------------------------------------------------------------------------------------------------------------


DIRECT = 10
"""Rows whose points bear their labels; where there are more, points bear numbers and a list beside them says whose."""

SIDES = ((1, 0), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7), (0, 1), (0, -1))

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


def cost(drawing: Drawing, figures: Figures) -> None:
    """A point for each row, with its label beside it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    costs = figures.cost
    wide = len(costs.rows) > 4
    drawing.figure.set_size_inches(TWO_COLUMNS if wide else ONE_COLUMN, 3.6 if len(costs.rows) > DIRECT else 2.7)
    axes = drawing.figure.subplots()
    names = []
    for point in costs.rows:
        row, value = figures.labels.index(point.label), point.robust
        names.append(_short(point.label) if len(costs.rows) <= DIRECT else str(row + 1))
        tooltip = f"{point.label}: {_stated(value)}, {point.cost:.4g} {costs.unit}"
        drawn = axes.errorbar(
            [point.cost], [value.mean], yerr=[[value.mean - value.low], [value.high - value.mean]],
            elinewidth=0.8, label=f"{row + 1}  {_short(point.label)}", **_look(row),
        )  # fmt: skip
        for artist in chain([drawn.lines[0]], drawn.lines[2]):
            drawing.tag(artist, row, point.method, tooltip)
    axes.xaxis.set_major_locator(MaxNLocator(7 if wide else 4))
    amounts = [point.cost for point in costs.rows]
    if not amounts:
        axes.text(0.5, 0.5, "no cost recorded", transform=axes.transAxes, ha="center", color=MUTED)
    elif min(amounts) > 0 and max(amounts) > 5 * min(amounts):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda amount, _: f"{amount:,.10g}"))
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("\n".join(textwrap.wrap(cost_label(costs), 100 if wide else 46)))
    axes.set_ylabel(f"{costs.attack} accuracy at best, %")
    if len(costs.rows) > DIRECT:
        marks = [_key(row, label) for row, label in enumerate(figures.labels) if label not in costs.left_out]
        drawing.figure.legend(handles=marks, loc="outside right upper", handlelength=1.0)
    _name_points(drawing, axes, figures, names)


def cost_label(costs: Costs) -> str:
    """Return what the cost is, and on which hardware."""
    left_out = f"not known for {', '.join(costs.left_out)}" if costs.left_out else ""
    if costs.device is None:
        return "training work of a seed, PFLOP" + (f" ({left_out})" if left_out else "")
    runs = ", ".join(f"{count} {'run' if count == 1 else 'runs'} on {name}" for name, count in costs.hardware.items())
    return f"training time of a seed on a {costs.device}, hours ({'; '.join(filter(None, [runs, left_out]))})"


def _look(row: int) -> dict[str, Any]:
    return {
        "color": SERIES[row % len(SERIES)], "marker": MARKERS[row % len(MARKERS)], "markersize": 5.5,
        "markeredgecolor": PAPER, "markeredgewidth": 0.5, "linestyle": "none",
    }  # fmt: skip


def _key(row: int, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=f"{row + 1}  {_short(label)}", **_look(row))


def _name_points(drawing: Drawing, axes: Axes, figures: Figures, names: Sequence[str]) -> None:
    """Put each name where it hides nothing: near its point if it can be, else farther off with a line to it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(drawing.figure)
    canvas.draw()  # lays out, so that places are known
    frame, unit = axes.get_window_extent().extents, drawing.figure.dpi / 72
    taken: list[Box] = []
    centres = []
    for point in figures.cost.rows:
        ends = [(point.cost, height) for height in (point.robust.low, point.robust.mean, point.robust.high)]
        (x, low), (_, y), (_, high) = axes.transData.transform(ends).tolist()
        taken += [(x - unit, low, x + unit, high), (x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit)]
        centres.append((x, y))
    for name, point, (x, y) in zip(names, figures.cost.rows, centres, strict=True):
        row = figures.labels.index(point.label)
        at = (point.cost, point.robust.mean)
        text = axes.annotate(name, at, (0, 0), textcoords="offset points", fontsize=7)
        text.set_in_layout(False)
        extent = text.get_window_extent(canvas.get_renderer())
        places = []
        for distance in (6, 11, 18, 27, 38, 50):
            for dx, dy in SIDES:
                left = x + distance * dx * unit - extent.width * (1 - _sign(dx)) / 2
                bottom = y + distance * dy * unit - extent.height * (1 - _sign(dy)) / 2
                box = (left, bottom, left + extent.width, bottom + extent.height)
                outside = extent.width * extent.height - _overlap(box, frame)
                hidden = sum(_overlap(box, other) for other in taken) + 4 * outside
                places.append((hidden + 0.3 * distance * unit, distance, dx, dy, box))
        _, distance, dx, dy, box = min(places, key=lambda place: place[0])
        taken.append(box)
        text.set_position((distance * dx, distance * dy))
        text.set(ha=("left", "center", "right")[1 - _sign(dx)], va=("bottom", "center", "top")[1 - _sign(dy)])
        drawing.tag(text, row, point.method, point.label)
        if distance > 11:
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", at, (distance * dx, distance * dy), textcoords="offset points", arrowprops=line)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


# --- agreement -------------------------------------------------------------------------------------------------------


LEAST = 10.0
"""Points of percentage that the colours span at least, lest small differences look large."""


def agreement(drawing: Drawing, figures: Figures) -> None:
    """Two tables of pairs, coloured: how often verdicts agree, and how often the row alone is right."""
    found = figures.agreement
    count = len(found.labels)
    drawing.figure.set_size_inches(TWO_COLUMNS, 1.4 + max(0.19 * count, 0.5))
    panels = drawing.figure.subplots(1, 2, sharey=True)
    same = tuple(tuple(value if b <= a else None for b, value in enumerate(line)) for a, line in enumerate(found.same))
    _pairs(drawing, panels[0], found, same, "same verdict, % of images")
    _pairs(drawing, panels[1], found, found.only, "row right and column wrong, % of images")
    labels = [f"{_short(label)}  {number}" for number, label in enumerate(found.labels, start=1)]
    panels[0].set_yticks(range(count), labels)
    panels[0].set_ylim(count - 0.5, -0.5)
    diagonal = (
        " Diagonal: two seeds of one row." if any(found.same[row][row] is not None for row in range(count)) else ""
    )
    drawing.figure.supxlabel(
        f"{found.attack} at best, {found.images:,} test images.{diagonal} Right for no method: "
        f"{_of(found.none_right, found)}; for every method and seed: {_of(found.all_right, found)}.",
        fontsize=6.5,
    )


def _of(images: int, found: Agreement) -> str:
    return f"{images:,} ({100 * images / found.images:.1f} %)"


def _pairs(
    drawing: Drawing, axes: Axes, found: Agreement, values: Sequence[Sequence[float | None]], title: str
) -> None:
    from matplotlib.patches import Rectangle

    count = len(values)
    axes.set_title(title)
    axes.set_xticks(range(count), [str(number) for number in range(1, count + 1)])
    axes.set_xlim(-0.5, count - 0.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    there = [value for line in values for value in line if value is not None]
    if not there:
        axes.text(0.5, 0.5, "one row with one seed", transform=axes.transAxes, ha="center", color=MUTED)
        return
    high = max(there)
    low = min(*there, high - LEAST)
    size = 7.0 if count <= 12 else 5.0
    for a, line in enumerate(values):
        for b, value in enumerate(line):
            if value is None:
                continue
            # Never so dark that the figures in it could not be read, on white paper as on a dark page.
            depth = 0.05 + 0.5 * (value - low) / (high - low)
            cell = Rectangle((b - 0.5, a - 0.5), 1, 1, facecolor=SERIES[0], alpha=depth, linewidth=0)
            drawing.tag(cell, a, found.methods[a], f"{found.labels[a]}, {found.labels[b]}: {value:.2f} %")
            number = f"{value:.0f}" if count > 12 else f"{value:.1f}"
            text = axes.text(b, a, number, ha="center", va="center", fontsize=size)
            for artist in (axes.add_patch(cell), text):
                artist.set_in_layout(False)  # they are inside, and there are many
