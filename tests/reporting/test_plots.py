import io
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from bench.errors import BenchError, NothingMeasured
from bench.reporting.plots import draw as painters
from bench.reporting.plots.data import (
    Agreement,
    CostPoint,
    Costs,
    Curve,
    Curves,
    Figures,
    Gap,
    GapRow,
    Line,
    Mark,
    Triple,
    Value,
)
from bench.reporting.plots.inline_svg import simplified
from bench.reporting.plots.render import FORMATS, NAMES, THEME, draw, render, svg

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"
ODD = ("$x_1^$", "a_b & <script>alert('1')</script>", "الطريقة", "方法一", "%s {0} \\alpha #", "line\nbreak\x00", "")


def line(epochs: int, height: float, spread: float) -> Line:
    mean = height + 10 * np.sin(np.arange(epochs) / 7) + 5 * np.random.default_rng(epochs).random(epochs)
    low, high = mean - spread, mean + spread
    return Line(
        tuple(range(1, epochs + 1)), *(tuple(values.tolist()) for values in (mean, low, high)),
        (3,) * (epochs - epochs // 4) + (2,) * (epochs // 4),
    )  # fmt: skip


def data(labels=("PGD-AT", "FOMO"), *, epochs=40, test=True, seeds=3, unit="PFLOP", left_out=()) -> Figures:
    """Return figures made by hand; the last row's last model is its best by definition."""
    count = len(labels)
    methods = [f"method_{row}" for row in range(count)]
    value = [Value(50 - row, 48 - row, 52 - row) for row in range(count)]
    triples = (Triple(Value(50, 48, 52), Value(45, 44, 46), Value(5, 4, 6)),) * 3
    marks = [
        tuple(Mark(seed, epochs // 2 + 1 + seed, 50.0, 48.0 if test else None) for seed in range(seeds)),
        tuple(Mark(seed, epochs, 45.0, 44.0 if test else None) for seed in range(seeds)),
    ]
    curve = [
        Curve(
            label, method, line(epochs, 60, 2), line(epochs, 45, 2), line(epochs, 43, 1) if test else None,
            marks[0] if epochs else (), marks[1] if epochs else (), (epochs // 2,) if epochs > 1 else (),
        )
        for label, method in zip(labels, methods, strict=True)
    ]  # fmt: skip
    pairs = tuple(tuple(None if a == b and seeds == 1 else 80.0 + a - b for b in range(count)) for a in range(count))
    shown = [row for row, label in enumerate(labels) if label not in left_out]
    return Figures(
        "digits, small_cnn",
        Curves("PGD-10", "validation", tuple(curve)),
        Gap(
            ("Clean", "PGD-20", "AutoAttack"), 2,
            tuple(GapRow(labels[row], methods[row], row == count - 1, triples) for row in range(count)),
        ),
        Costs(
            "AutoAttack", unit, None if unit == "PFLOP" else "GPU", {} if unit == "PFLOP" else {"A GPU": 2, "B": 1},
            tuple(CostPoint(labels[row], methods[row], value[row], 1.0 + row % 5) for row in shown), left_out,
        ),
        Agreement("AutoAttack", 1000, tuple(labels), tuple(methods), pairs, pairs, 120, 345),
    )  # fmt: skip


def image(figures: Figures, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(render(figures, name, "png"))).convert("RGB"))


def texts(markup: str) -> str:
    return " ".join("".join(text.itertext()) for text in ET.fromstring(markup).iter(f"{SVG}text"))


# --- every figure, whatever the rows ---------------------------------------------------------------------------------

CASES = {
    "one row": data(["PGD-AT"]),
    "one row, one seed": data(["PGD-AT"], seeds=1),
    "two rows": data(),
    "twenty rows": data([f"Method {row} (fraction=0.{row:02d}, warmup={row})" for row in range(20)]),
    "one epoch": data(epochs=1),
    "no epoch": data(epochs=0),
    "no test curve": data(test=False),
    "odd labels": data(ODD),
    "hours": data(unit="hours", left_out=("FOMO",)),
    "no cost": data(left_out=("PGD-AT", "FOMO")),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_every_figure_draws(case, name, recwarn):
    figures = CASES[case]
    pixels = image(figures, name)
    assert pixels.shape[1] in (1020, 2100), "a width of one or of two columns at 300 dots an inch"
    assert pixels.shape[0] < 3300, "a page is 11 inches"
    assert pixels.min() < 50
    assert pixels.max() == 255
    assert not (pixels[[0, -1]] < 128).any(), "nothing is cut off above or below"
    assert not (pixels[:, [0, -1]] < 128).any(), "nothing is cut off at the sides"
    root = ET.fromstring(svg(figures, name))
    assert root.tag == f"{SVG}svg"
    assert render(figures, name, "svg").startswith(b"<?xml")
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("name", NAMES)
def test_equal_figures_give_equal_bytes(name):
    for format in FORMATS:
        assert render(data(), name, format) == render(data(), name, format)
    assert svg(data(), name) == svg(data(), name)
    assert svg(data(), name) != svg(data(["PGD-AT", "SAT"]), name)


def test_another_process_gives_the_same_bytes_whatever_its_settings(tmp_path):
    """A file of settings in the working directory, another hash seed, another time."""
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\naxes.titleweight: bold\nxtick.direction: in\nsvg.hashsalt: other\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "from hashlib import sha256\nfrom test_plots import NAMES, FORMATS, data, render\n"
        "print(*(sha256(render(data(), name, format)).hexdigest() for name in NAMES for format in FORMATS))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True,
            env={"PATH": "", "PYTHONHASHSEED": seed, "MPLCONFIGDIR": matplotlib.get_configdir()},
        ).stdout
        for folder, seed in ((tmp_path, "1"), ("/", "2"))
    }  # fmt: skip
    assert len(outputs) == 1


def test_drawing_leaves_nothing_behind():
    before = dict(matplotlib.rcParams)
    figure = draw(data(), "curves")
    assert dict(matplotlib.rcParams) == before
    assert len(figure.axes) == 2
    code = "import sys, bench.reporting.plots.render, bench.cli.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = f"{code.partition(';')[0]}; from test_plots import data"
    code += "; bench.reporting.plots.render.render(data(), 'gap', 'png')"
    code += "; sys.exit('matplotlib.pyplot' in sys.modules)"
    folder = __file__.rpartition("/")[0]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=folder).returncode == 0


def test_wrong_names():
    with pytest.raises(BenchError, match="did you mean 'curves'"):
        draw(data(), "curve")
    with pytest.raises(BenchError, match="'bmp'"):
        render(data(), "curves", "bmp")
    for call in (lambda: draw(data([]), "gap"), lambda: svg(data([]), "gap")):
        with pytest.raises(NothingMeasured):
            call()


# --- what they show --------------------------------------------------------------------------------------------------


def test_curves_show_lines_bands_marks_and_drops():
    axes = draw(data(epochs=40), "curves").axes[0]
    drawn = {tuple(one.get_ydata()): one for one in axes.lines}
    curve = data(epochs=40).curves.rows[0]
    for kind in (curve.train, curve.validation, curve.test):
        whole, rest = drawn[kind.mean[:30]], drawn[kind.mean[29:]]
        assert whole.get_linewidth() > rest.get_linewidth(), "fewer seeds, thinner line"
        assert tuple(whole.get_xdata()) == kind.epochs[:30]
    assert len({str(drawn[kind.mean[:30]]._unscaled_dash_pattern) for kind in (curve.train, curve.validation)}) == 2
    assert [tuple(one.get_xydata()[0]) for one in axes.lines[-2:]] == [(22, 48), (40, 44)]
    assert axes.lines[-2].get_marker() != axes.lines[-1].get_marker()
    spans = [tuple(piece[:, 0]) for group in axes.collections if hasattr(group, "get_segments")
             for piece in group.get_segments()]  # fmt: skip
    assert (20, 20) in spans, "the rate's drop"
    assert (21, 23) in spans, "from the earliest to the latest best"
    low, high = axes.get_ylim()
    assert low < min(curve.test.low)
    assert high > max(curve.train.high)


def test_marks_are_on_the_validation_curve_if_that_is_all_there_is():
    axes = draw(data(test=False), "curves").axes[0]
    assert [tuple(one.get_xydata()[0]) for one in axes.lines[-2:]] == [(22, 50), (40, 45)]


def test_gap_shows_values_and_intervals():
    axes = draw(data(), "gap").axes
    assert [panel.get_title(loc="left") for panel in axes[:3]] == ["Clean", "PGD-20", "AutoAttack (ranks)"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["PGD-AT", "FOMO ‡"]
    points = sorted(tuple(one.get_xydata()[0]) for one in axes[0].lines if len(one.get_xdata()) == 1)
    assert points == [(45, 0.15), (45, 1.15), (50, -0.15), (50, 0.85)]
    reaches = {tuple(piece[:, 0]) for group in axes[3].collections for piece in group.get_segments()}
    assert reaches == {(4, 6)}
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1], "best row on top"


def test_cost_names_points_and_hardware():
    axes = draw(data(), "cost").axes[0]
    assert {text.get_text() for text in axes.texts} == {"PGD-AT", "FOMO"}
    assert axes.get_xlabel() == "training work of a seed, PFLOP"
    label = draw(data(unit="hours", left_out=("FOMO",)), "cost").axes[0].get_xlabel().replace("\n", " ")
    assert label == "training time of a seed on a GPU, hours (2 runs on A GPU, 1 run on B; not known for FOMO)"
    many = draw(CASES["twenty rows"], "cost")
    assert {text.get_text() for text in many.axes[0].texts} == {str(row) for row in range(1, 21)} | {""} - {""}
    assert len(many.legends[0].get_texts()) == 20


def test_names_of_points_hide_no_point():
    """Ten rows in a bunch."""
    figures = data([f"Method {row}" for row in range(10)])
    bunch = tuple(
        replace(point, cost=1 + row % 3 / 20, robust=Value(50 + row / 4, 48, 53))
        for row, point in enumerate(figures.cost.rows[:-1])
    )
    apart = replace(figures.cost.rows[-1], cost=1.5, robust=Value(30, 29, 31))
    figures = replace(figures, cost=replace(figures.cost, rows=(*bunch, apart)))
    figure = draw(figures, "cost")
    axes = figure.axes[0]
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts if text.get_text()]
    assert len(boxes) == 10
    points = axes.transData.transform([(point.cost, point.robust.mean) for point in figures.cost.rows])
    assert not [box for box in boxes for point in points if box.contains(*point)]
    assert not [(a, b) for index, a in enumerate(boxes) for b in boxes[:index] if a.overlaps(b)]


def test_agreement_shows_each_pair():
    left, right = draw(data(("A", "B", "C")), "agreement").axes
    assert sorted(text.get_text() for text in left.texts) == ["80.0", "80.0", "80.0", "81.0", "81.0", "82.0"]
    assert len(right.texts) == 9
    assert [label.get_text() for label in left.get_yticklabels()] == ["A  1", "B  2", "C  3"]
    assert "345 (34.5 %)" in texts(svg(data(), "agreement"))
    assert not draw(data(["A"], seeds=1), "agreement").axes[0].patches


def test_told_apart_without_colour():
    grey = [0.299 * int(c[1:3], 16) + 0.587 * int(c[3:5], 16) + 0.114 * int(c[5:], 16) for c in painters.SERIES]
    assert max(grey) < 200, "dark enough on white paper"
    looks = {(painters.SERIES[row % len(painters.SERIES)], painters.MARKERS[row % len(painters.MARKERS)])
             for row in range(40)}  # fmt: skip
    assert len(looks) == 40
    assert len({marker for _, marker in list(looks)}) == 7
    assert len({str(dashes) for *_, dashes, _ in painters.LINES}) == len(painters.LINES)


def test_the_pdf_embeds_its_fonts_as_truetype():
    content = render(data(), "gap", "pdf")
    assert b"/FontFile2" in content
    assert b"/CIDFontType2" in content or b"/Subtype /TrueType" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


# --- inside a web page -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_inline_svg_can_be_read_aloud_and_scales(name):
    markup = svg(data(), name, "first-")
    assert markup.startswith("<svg ")
    root = ET.fromstring(markup)
    assert root.get("role") == "img"
    title, description = root[0], root[1]
    assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text
    assert "PGD-AT, FOMO" in description.text
    assert root.get("viewBox")
    assert root.get("width") is None


@pytest.mark.parametrize("name", NAMES)
def test_rows_can_be_found_in_an_inline_svg(name):
    groups = [group for group in ET.fromstring(svg(data(), name)).iter() if group.get("class") == "series"]
    assert {(group.get("data-row"), group.get("data-method")) for group in groups} == {
        ("0", "method_0"), ("1", "method_1"),
    }  # fmt: skip
    assert all(group[0].tag == f"{SVG}title" and group[0].text for group in groups)


def test_tooltips_say_the_figures():
    assert "PGD-AT, AutoAttack, best: 50.00 (48.00 to 52.00)" in svg(data(), "gap")
    assert "FOMO: 49.00 (47.00 to 51.00), 2 PFLOP" in svg(data(), "cost")
    assert "FOMO, PGD-AT: 81.00 %" in svg(data(), "agreement")


@pytest.mark.parametrize("name", NAMES)
def test_ids_differ_between_figures_of_a_page(name):
    one, other = svg(data(), name, "a-"), svg(data(), name, "b-")
    ids = [set(re.findall(r' id="([^"]+)"', markup)) for markup in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for markup, known in zip((one, other), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup))
        assert {first or second for first, second in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup)} <= known
    everything = set().union(*(re.findall(r' id="([^"]+)"', svg(data(), figure, "a-")) for figure in NAMES))
    assert len(everything) == sum(len(set(re.findall(r' id="([^"]+)"', svg(data(), f, "a-")))) for f in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_theme_an_inline_svg(name):
    markup = svg(data(), name)
    plain = re.sub(r"var\(--[a-z0-9-]+,(#[0-9a-f]{6})\)", "", markup)
    assert not re.findall(r"#[0-9a-f]{6}[;\"]", plain), "every colour can be themed"
    used = set(re.findall(r"var\((--[a-z0-9-]+),(#[0-9a-f]{6})\)", markup))
    assert used <= {(theme, colour) for colour, theme in THEME.items()}
    assert {"--figure-text", "--series-1"} <= {theme for theme, _ in used}
    assert "<style" not in markup, "it would be the whole page's"
    assert "font-family" not in markup.partition(">")[2], "the page's font"
    assert "<metadata" not in markup


def test_labels_are_text_and_harmless_in_an_inline_svg():
    for name in ("curves", "gap", "cost", "agreement"):
        markup = svg(data(ODD), name)
        assert "<script" not in markup
        shown = texts(markup)
        for label in ("$x_1^$", "a_b & <script>", "الطريقة", "方法一", "%s {0} \\alpha #", "line break"):
            assert label in shown, (name, label)


def test_an_inline_svg_is_small():
    figures = data([f"Method {row}" for row in range(8)], epochs=200)
    assert all(len(svg(figures, name)) < 150_000 for name in NAMES)


def test_simplified_paths_stay_near_the_drawn_ones():
    x = np.linspace(0, 100, 400)
    y = 10 * np.sin(x / 9) + np.random.default_rng(0).normal(0, 0.1, 400)
    found = simplified(list(zip(x.tolist(), y.tolist(), strict=True)), 0.5)
    assert len(found) < 100
    assert np.abs(np.interp(x, *zip(*found, strict=True)) - y).max() < 0.5 * np.sqrt(1 + 2**2)
    assert simplified([(0, 0), (5, 9), (0, 0)]) == [(0, 0), (5, 9), (0, 0)]
    assert simplified([(0, 0), (1, 0.01), (2, 0)]) == [(0, 0), (2, 0)]
