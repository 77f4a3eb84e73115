"""How each figure of a leaderboard is drawn on an empty matplotlib figure; `render` is the way in.

Colours are those of Okabe and Ito, Color universal design (2008), without yellow, which is hard to see on white paper.
Nothing depends on colour alone: lines differ in their dashes, points in their shape and by their numbers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import printable
from bench.reporting.plots.data import FigureData
from bench.reporting.plots.inline_svg import Tag
from bench.utils.formatting import counted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.reporting.statistics import Floats

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches, of a page with two columns of text

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TEXT, MUTED, GRID, PAPER = "#111111", "#666666", "#cccccc", "#ffffff"

MARKERS = "osD^vPX"  # seven of them and six colours: 42 rows before a pair comes again


@dataclass
class Drawing:
    """A figure being drawn; `tags` maps the names (gid) of artists to what they show."""

    figure: Figure
    tags: dict[str, Tag] = field(default_factory=dict)

    def tag(self, artist: Any, row: int, method: str, tooltip: str) -> None:
        """Record that `artist` belongs to a row."""
        name = f"series-{len(self.tags)}"
        artist.set_gid(name)
        self.tags[name] = Tag(row, method, tooltip)

    def errorbar(self, axes: Axes, x: float, y: float, line: Any, tooltip: str, **options: Any) -> None:
        """Draw a point of `line` of the results, with its interval in the direction that `xerr` or `yerr` is set."""
        reach = [[line.mean - line.low], [line.high - line.mean]]
        options |= {key: reach for key in ("xerr", "yerr") if options.get(key)}
        drawn = axes.errorbar([x], [y], **options)
        for artist in (drawn.lines[0], *drawn.lines[2]):
            self.tag(artist, line.row, line.method, f"{tooltip}: {line.mean:.2f} ({line.low:.2f} to {line.high:.2f})")


def _short(label: str, width: int = 34) -> str:
    """Return a label on one line, cut if need be."""
    text = printable(label)
    return (text if len(text) <= width else text[: width - 1] + "…") or " "


def _wrapped(label: str, width: int) -> str:
    """Return a label on at most two lines, cut if need be."""
    return "\n".join(textwrap.wrap(_short(label, 1000), width, max_lines=2, placeholder=" …"))


# --- curves ----------------------------------------------------------------------------------------------------------

LINES: dict[str, dict[str, Any]] = {  # columns of the curves, by the images that they are measured on
    "train": {"label": "training images", "color": SERIES[2], "linestyle": (0, (1, 1)), "linewidth": 1.0},
    "validation": {"label": "validation images", "color": SERIES[1], "linestyle": (0, (4, 1.5)), "linewidth": 0.8},
    "test": {"label": "test images", "color": SERIES[0], "linestyle": "-", "linewidth": 1.2},
}
DROP: dict[str, Any] = {"color": MUTED, "linewidth": 0.5, "linestyle": (0, (6, 2, 1, 2))}
RELEASED: dict[str, Any] = {"marker": "x", "color": MUTED, "markersize": 4, "linestyle": "none", "zorder": 1}
BEST: dict[str, Any] = {"marker": "o", "color": TEXT, "markersize": 4}
LAST: dict[str, Any] = {"marker": "s", "color": TEXT, "markersize": 4, "markerfacecolor": PAPER}


def curves(drawing: Drawing, data: FigureData) -> None:
    """One panel for each row, all with the same axes."""
    from matplotlib.ticker import MaxNLocator

    labels = data.labels
    columns = min(len(labels), 3 if len(labels) in (5, 6, 9) else 4)
    lines = -(-len(labels) // columns)
    width = TWO_COLUMNS if columns > 1 else ONE_COLUMN
    height = 2.4 if columns == 1 else 1.9 if columns < 4 else 1.5
    drawing.figure.set_size_inches(width, 0.7 + height * lines)
    panels = list(drawing.figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    panels[0].xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if len(data.curves):  # beforehand: every panel would compute them again with every line
        low, high = data.curves[[*LINES]].min(axis=None), data.curves[[*LINES]].max(axis=None)
        low, high = min([low, *data.released.test]), max([high, *data.released.test])
        margin = 0.05 * max(high - low, 1)
        panels[0].set_xlim(0, 1.03 * max([data.curves.epoch.max(), *data.released.epoch]))
        panels[0].set_ylim(low - margin, high + margin)
    for row, (axes, label, method) in enumerate(zip(panels, labels, data.rows.method, strict=False)):
        axes.set_title(_wrapped(label, 92 // columns))
        released = data.released[data.released.row == row]
        axes.plot(released.epoch, released.test, **RELEASED)
        _curve(axes, data.curves[data.curves.row == row])
        drawing.tag(axes, row, method, label)
    for index in range(len(labels), len(panels)):
        panels[index].set_visible(False)
        panels[index - columns].tick_params(labelbottom=True)
    drawing.figure.supxlabel("Epochs", fontsize=8)
    drawing.figure.supylabel(f"{data.tracking} accuracy, %", fontsize=8)
    _legend(drawing.figure, data.curves, released=len(data.released) > 0)


def _curve(axes: Axes, curve: pd.DataFrame) -> None:
    """Draw the curve of one row: means over seeds, and bands from the lowest to the highest seed."""
    if curve.empty:
        axes.text(0.5, 0.5, "no curve recorded", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.vlines(curve.epoch[curve["drop"]].unique(), *axes.get_ylim(), **DROP)
    tracks_test = curve.test[curve.validation.notna()].notna().all()
    for kind, look in LINES.items():
        if kind == "test" and not tracks_test:
            continue
        over_seeds = curve.dropna(subset=kind).groupby("epoch")[kind].agg(["mean", "min", "max", "size"])
        epochs, seeds = over_seeds.index, over_seeds["size"]
        if seeds.max() > 1:
            axes.fill_between(epochs, over_seeds["min"], over_seeds["max"], color=look["color"], alpha=0.2, linewidth=0)
        all_seeds = int((seeds == seeds.max()).sum())  # epochs; after these, some seeds have stopped
        marker = "." if len(epochs) == 1 else None
        axes.plot(epochs[:all_seeds], over_seeds["mean"][:all_seeds], marker=marker, **look)
        rest = {**look, "linewidth": look["linewidth"] / 2}
        axes.plot(epochs[all_seeds - 1 :], over_seeds["mean"][all_seeds - 1 :], marker=marker, **rest)
    for checkpoint, look in (("best", BEST), ("last", LAST)):
        # The mean accuracy at the mean epoch, with a line from the earliest to the latest seed's.
        marks = curve[curve[checkpoint]]
        if len(marks):
            height = marks["test" if tracks_test else "validation"].mean()
            axes.hlines(height, marks.epoch.min(), marks.epoch.max(), color=TEXT, linewidth=0.8, zorder=3)
            axes.plot([marks.epoch.mean()], [height], linestyle="none", markeredgewidth=0.8, zorder=4, **look)


def _legend(figure: Figure, curves: pd.DataFrame, *, released: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], **look) for kind, look in LINES.items() if curves[kind].notna().any()]
    if curves.groupby("row").seed.nunique().max() > 1:
        handles.append(Patch(facecolor=MUTED, alpha=0.2, label="range of seeds"))
    handles += [Line2D([], [], linestyle="none", markeredgewidth=0.8, label="best", **BEST)]
    handles += [Line2D([], [], linestyle="none", markeredgewidth=0.8, label="last", **LAST)]
    if curves["drop"].any():
        handles.append(Line2D([], [], label="rate drops", **DROP))
    if released:
        handles.append(Line2D([], [], label="released log", **RELEASED))
    columns = len(handles) if figure.get_figwidth() > ONE_COLUMN else 3
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=2.2, columnspacing=1.2)


# --- best, last and gap ----------------------------------------------------------------------------------------------


CONSTRUCTED = "‡ zero by construction"
POINT: dict[str, Any] = {"markersize": 3.6, "markeredgewidth": 0.8}
POINTS: dict[str, dict[str, Any]] = {
    "best": {"color": SERIES[0], "marker": "o", **POINT},
    "last": {"color": SERIES[1], "marker": "s", "markerfacecolor": PAPER, **POINT},
    "gap": {"color": TEXT, "marker": "D", **POINT},
    CONSTRUCTED: {"color": TEXT, "marker": "D", "markerfacecolor": PAPER, **POINT},
}


def gap(drawing: Drawing, data: FigureData) -> None:
    """Above: accuracies at best and at last; below: best minus last. One column for each attack."""
    rows, attacks = data.rows, data.attacks
    drawing.figure.set_size_inches(TWO_COLUMNS, 1.3 + 2 * max(0.17 * len(rows), 0.3))
    panels = drawing.figure.subplots(2, len(attacks), sharey=True, squeeze=False)
    for (above, below), attack in zip(panels.T, attacks, strict=True):
        ranks = attack == data.ranking and len(attacks) > 1
        above.set_title(_short(attack) + (" (ranks)" if ranks else ""))
        above.set_xlabel("accuracy, %")
        below.set_xlabel("gap: best − last, points")
        below.axvline(0, color=MUTED, linewidth=0.6)
        results = data.results[data.results.attack == attack]
        for row, (best, last) in results.pivot(index="row", columns="checkpoint", values="mean")[
            ["best", "last"]
        ].iterrows():
            above.plot([best, last], [row - 0.15, row + 0.15], color=MUTED, linewidth=0.5)
        for line in results.itertuples():
            axes = below if line.checkpoint == "gap" else above
            kind = CONSTRUCTED if line.checkpoint == "gap" and line.by_construction else line.checkpoint
            height = line.row + {"best": -0.15, "last": 0.15, "gap": 0}[line.checkpoint]
            tooltip = f"{line.label}, {attack}, {line.checkpoint}"
            drawing.errorbar(axes, line.mean, height, line, tooltip, xerr=True, elinewidth=0.9, **POINTS[kind])
    labels = [_short(line.label) + (" ‡" if line.by_construction else "") for line in rows.itertuples()]
    panels[0, 0].set_yticks(range(len(rows)), labels)
    panels[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    for axes in panels.flat:
        axes.grid(visible=False, axis="y")
    _gap_legend(drawing.figure, [kind for kind in POINTS if kind != CONSTRUCTED or rows.by_construction.any()])


def _gap_legend(figure: Figure, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=kind, **POINTS[kind]) for kind in kinds]
    handles.append(Line2D([], [], color=MUTED, linewidth=0.9, label="95 % interval"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.2)


# --- cost ------------------------------------------------------------------------------------------------------------


def cost(drawing: Drawing, data: FigureData) -> None:
    """A numbered point for each row; the legend is the key to the numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    rows = data.rows.dropna(subset="cost").reset_index()
    drawing.figure.set_size_inches(TWO_COLUMNS, max(2.7, 0.6 + 0.16 * len(rows)))
    axes = drawing.figure.subplots()
    for line in rows.itertuples():
        look = {
            "color": SERIES[line.row % len(SERIES)], "marker": MARKERS[line.row % len(MARKERS)], "markersize": 5.5,
            "markeredgecolor": PAPER, "markeredgewidth": 0.5, "linestyle": "none",
        }  # fmt: skip
        key, tooltip = f"{line.row + 1}  {_short(line.label)}", f"{line.label}, {line.cost:.4g} {data.unit}"
        drawing.errorbar(axes, line.cost, line.mean, line, tooltip, yerr=True, elinewidth=0.8, label=key, **look)
        number = axes.annotate(
            str(line.row + 1), (line.cost, line.mean), (4, 3), textcoords="offset points", fontsize=7
        )
        drawing.tag(number, line.row, line.method, line.label)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    if rows.empty:
        axes.text(0.5, 0.5, "no cost recorded", transform=axes.transAxes, ha="center", color=MUTED)
    else:
        drawing.figure.legend(loc="outside right upper", handlelength=1.0)
        if rows.cost.min() > 0 and rows.cost.max() > 5 * rows.cost.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda amount, _: f"{amount:,.10g}"))
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("\n".join(textwrap.wrap(cost_label(data), 70)))
    axes.set_ylabel(f"{data.ranking} accuracy at best, %")


def cost_label(data: FigureData) -> str:
    """Return what the cost is, and on which hardware."""
    unknown = f"not known for {', '.join(data.without_cost)}" if data.without_cost else ""
    if data.device is None:
        return "training work of a seed, PFLOP" + (f" ({unknown})" if unknown else "")
    runs = ", ".join(f"{counted(count, 'run')} on {name}" for name, count in data.hardware.items())
    return f"training time of a seed on a {data.device}, hours ({'; '.join(filter(None, [runs, unknown]))})"


# --- work ------------------------------------------------------------------------------------------------------------


def work(drawing: Drawing, data: FigureData) -> None:
    """A line for each row: means over the seeds that reached an epoch, of the work until its end and the accuracy."""
    labels, methods = data.labels, tuple(data.rows.method)
    drawing.figure.set_size_inches(TWO_COLUMNS, max(2.7, 0.6 + 0.16 * len(labels)))
    axes = drawing.figure.subplots()
    tracked = data.curves[data.curves.validation.notna() & data.curves.work.notna()]
    images = "test" if len(tracked) and tracked.test.notna().all() else "validation"
    for row, curve in tracked.groupby("row"):
        means = curve.groupby("epoch")[["work", images]].mean()
        look: dict[str, Any] = {"color": SERIES[row % len(SERIES)], "linewidth": 1.0}
        look["linestyle"] = ("solid", "dashed", "dotted")[row // len(SERIES) % 3]  # rows of one colour differ
        (line,) = axes.plot(means.work, means[images], label=f"{row + 1}  {_short(labels[row])}", **look)
        best = curve[curve.best]
        (mark,) = axes.plot(
            [best.work.mean()], [best[images].mean()], marker=MARKERS[row % len(MARKERS)], color=look["color"],
            markersize=5.5, markeredgecolor=PAPER, markeredgewidth=0.5, linestyle="none",
        )  # fmt: skip
        number = axes.annotate(
            str(row + 1), (best.work.mean(), best[images].mean()), (4, 3), textcoords="offset points", fontsize=7
        )
        for artist in (line, mark, number):
            drawing.tag(artist, row, methods[row], labels[row])
    if tracked.empty:
        axes.text(0.5, 0.5, "no work recorded", transform=axes.transAxes, ha="center", color=MUTED)
    else:
        drawing.figure.legend(loc="outside right upper", handlelength=2.2)
    axes.set_xlabel("work of training, PFLOP")
    axes.set_ylabel(f"{data.tracking} accuracy on {images} images, %")


# --- agreement -------------------------------------------------------------------------------------------------------


LEAST = 10.0
"""The smallest span of the colours, in percentage points, so that small differences do not look large."""


def agreement(drawing: Drawing, data: FigureData) -> None:
    """Two tables of pairs, coloured: how often results agree, and how often only the row is correct."""
    labels = data.labels
    count = len(labels)
    drawing.figure.set_size_inches(TWO_COLUMNS, 1.4 + max(0.19 * count, 0.5))
    panels = drawing.figure.subplots(1, 2, sharey=True)
    lower = np.where(np.tri(count, dtype=bool), data.same, np.nan)
    _pairs(drawing, panels[0], data, lower, "both correct or both wrong, % of images")
    _pairs(drawing, panels[1], data, data.only, "row correct and column wrong, % of images")
    panels[0].set_yticks(range(count), [f"{_short(label)}  {number}" for number, label in enumerate(labels, start=1)])
    panels[0].set_ylim(count - 0.5, -0.5)
    if np.isnan(data.only).all() and count > 1:
        drawing.figure.supxlabel("The rows used different images, which cannot be paired.", fontsize=6.5)
        return
    diagonal = "" if np.isnan(data.same.diagonal()).all() else " Diagonal: two seeds of one row."
    none, all_seeds = (
        f"{images:,} ({100 * images / data.images:.1f} %)" for images in (data.none_right, data.all_right)
    )
    drawing.figure.supxlabel(
        f"{data.ranking} at best, {data.images:,} test images.{diagonal} Correct for no method: {none}; for every "
        f"method and seed: {all_seeds}.",
        fontsize=6.5,
    )


def _pairs(drawing: Drawing, axes: Axes, data: FigureData, values: Floats, title: str) -> None:
    from matplotlib.patches import Rectangle

    count = len(values)
    axes.set_title(title)
    axes.set_xticks(range(count), [str(number) for number in range(1, count + 1)])
    axes.set_xlim(-0.5, count - 0.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if np.isnan(values).all():
        axes.text(0.5, 0.5, "nothing to pair", transform=axes.transAxes, ha="center", color=MUTED)
        return
    high = float(np.nanmax(values))
    low = min(float(np.nanmin(values)), high - LEAST)
    size = 7.0 if count <= 12 else 5.0
    labels, methods = data.labels, tuple(data.rows.method)
    for a, b in np.argwhere(~np.isnan(values)).tolist():
        value = float(values[a, b])
        # Light enough to read the number in it, on white paper as on a dark page.
        depth = 0.05 + 0.5 * (value - low) / (high - low)
        cell = Rectangle((b - 0.5, a - 0.5), 1, 1, facecolor=SERIES[0], alpha=depth, linewidth=0)
        drawing.tag(cell, a, methods[a], f"{labels[a]}, {labels[b]}: {value:.2f} %")
        text = axes.text(b, a, f"{value:.{0 if count > 12 else 1}f}", ha="center", va="center", fontsize=size)
        for artist in (axes.add_patch(cell), text):
            artist.set_in_layout(False)  # they are inside, and there are many
