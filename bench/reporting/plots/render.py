"""The figures of a leaderboard, drawn with matplotlib: for papers (PNG, SVG, PDF) and, as inline SVG, for web pages."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, NothingMeasured, did_you_mean
from bench.reporting.plots import draw as painters
from bench.reporting.plots.data import FigureData
from bench.reporting.plots.draw import GRID, MUTED, PAPER, SERIES, TEXT, Drawing
from bench.reporting.plots.inline_svg import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("curves", "gap", "cost", "work", "agreement")
FORMATS = ("png", "svg", "pdf")

DPI = 300

THEME = {
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
    TEXT: "--figure-text",
    MUTED: "--figure-muted",
    GRID: "--figure-grid",
    PAPER: "--figure-background",
}
"""The CSS custom property of each colour in inline SVG, with the colour itself as its fallback."""

FAMILIES = (
    # matplotlib's own first, so that figures are the same everywhere; the others for letters that it lacks
    "DejaVu Sans",
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC"),
    *("Hiragino Sans", "Microsoft YaHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
)

STYLE = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "text.parse_math": False,  # labels may hold dollar signs
    "text.color": TEXT,
    "axes.titlecolor": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "xtick.major.size": 2.0,
    "ytick.major.size": 0.0,  # the grid leads to the numbers
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for; type 3 is what they refuse
    "svg.hashsalt": "bench",  # equal figures get equal names inside the file
}


def draw(data: FigureData, name: str) -> Figure:
    """Draw a figure of a leaderboard; it belongs to no window and no global state of matplotlib.

    Args:
        data: what `bench.figures` returned.
        name: curves, gap, cost, work or agreement.

    Raises:
        BenchError: there is no such figure.
        NothingMeasured: there is no row to draw.
    """
    with _style():
        return _drawing(data, name).figure


def render(data: FigureData, name: str, format: str, dpi: int = DPI) -> bytes:
    """Return a figure as the content of a file of one of `FORMATS`: equal data give equal bytes.

    Raises as `draw`, and BenchError if there is no such format.
    """
    if format not in FORMATS:
        raise BenchError(f"there is no format '{format:.40}'{did_you_mean(format, FORMATS)}")
    date = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
    with _style():
        return _saved(_drawing(data, name).figure, format=format, dpi=dpi, metadata=date)


def svg(data: FigureData, name: str, prefix: str = "") -> str:
    """Return a figure as an `<svg>` element to put into a web page.

    It scales with the page (`viewBox`, no width), takes its font, keeps text as text, and has no background. Colours
    are CSS custom properties (`THEME`) with the printed colours as fallback. What belongs to a row is in groups of the
    class `series` with `data-row` (from 0, as `data.labels`) and `data-method`; a pointer shows the figures.

    Args:
        data: what to show.
        name: one of `NAMES`.
        prefix: of all ids in it, which must differ between the elements of a page.

    Raises: as `draw`.
    """
    with _style(**{"svg.fonttype": "none"}):
        drawing = _drawing(data, name)
        drawn = _saved(drawing.figure, format="svg", metadata={"Date": None}, transparent=True)
    title, description = describe(data, name)
    return inline(drawn.decode(), title, description, f"{prefix}{name}-", drawing.tags, THEME)


def describe(data: FigureData, name: str) -> tuple[str, str]:
    """Return a title and a description of one of `NAMES`, for those who cannot see it."""
    rows = ", ".join(data.labels)
    descriptions = {
        "curves": (
            f"{data.tracking} accuracy over the epochs",
            "A panel for each row: accuracy on training, validation and test images after each epoch, as mean and "
            f"range of the seeds, with the best and the last checkpoint marked. Rows: {rows}.",
        ),
        "gap": (
            "Best, last and their gap",
            f"For each row and attack ({', '.join(data.attacks)}) the accuracy of the best and of the last "
            f"checkpoint, and best minus last, with 95 % intervals. Rows, best first: {rows}.",
        ),
        "cost": (
            f"{data.ranking} accuracy against the cost of training",
            f"A point for each row: accuracy at best with its 95 % interval, and {painters.cost_label(data)}. "
            f"Rows: {rows}.",
        ),
        "work": (
            f"{data.tracking} accuracy against the work of training",
            "A line for each row: robust accuracy after tracked epochs, mean over seeds, against the work of training "
            f"up to there in PFLOP, with the best checkpoint marked. Rows: {rows}.",
        ),
        "agreement": (
            "Agreement image by image",
            f"For each pair of rows, the share of {data.images:,} test images under {data.ranking} on which both are "
            f"correct or both wrong, and on which only one is. No row is correct on {data.none_right:,} images, "
            f"every row on {data.all_right:,}. Rows: {rows}.",
        ),
    }
    return descriptions[name]


@contextmanager
def _style(**more: Any) -> Iterator[None]:
    """Within, matplotlib draws as `STYLE` says, whatever the user's own settings are."""
    from matplotlib import font_manager, style

    there = set(font_manager.get_font_names())
    fonts = {"font.family": [name for name in FAMILIES if name in there]}
    with warnings.catch_warnings(), style.context(["default", {**STYLE, **fonts, **more}]):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # shown as a box, which says enough
        yield


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()


def _drawing(data: FigureData, name: str) -> Drawing:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    painter = dict(
        zip(NAMES, (painters.curves, painters.gap, painters.cost, painters.work, painters.agreement), strict=True)
    )
    if name not in painter:
        raise BenchError(f"there is no figure '{name:.40}'{did_you_mean(name, NAMES)}")
    if not data.labels:
        raise NothingMeasured("nothing to draw: no row of the leaderboard has an averaged seed")
    drawing = Drawing(Figure(layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)))
    painter[name](drawing, data)
    return drawing
