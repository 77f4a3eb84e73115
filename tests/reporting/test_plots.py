import io
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.errors import BenchError, NothingMeasured
from bench.reporting.plots import draw as painters
from bench.reporting.plots.data import CURVES, RESULTS, FigureData
from bench.reporting.plots.render import FORMATS, NAMES, THEME, draw, render, svg

SVG = "{http://www.w3.org/2000/svg}"
ODD = ("$x_1^$", "a_b & <script>alert('1')</script>", "الطريقة", "方法一", "%s {0} \\alpha #", "line\nbreak\x00", "")


def data(labels=("PGD-AT", "FOMO"), *, epochs=40, test=True, seeds=3, unit="PFLOP", without_cost=()) -> FigureData:
    """Return figures made by hand; the last row's last model is its best by definition.

    The last of several seeds stops after three quarters of the epochs.
    """
    count, wave = len(labels), 10 * np.sin(np.arange(epochs) / 7)
    curves = [
        (
            row, label, f"method_{row}", seed, epoch + 1, 0.1,
            60 + wave[epoch] + seed, 45 + wave[epoch] + seed, 43 + wave[epoch] + seed if test else np.nan,
            epoch == epochs // 2 + seed, epoch == epochs - 1 - seed * epochs // 4, 0.1 * (epoch + 1) * (row + 1),
            epochs > 1 and epoch + 1 == epochs // 2,
        )
        for row, label in enumerate(labels)
        for seed in range(seeds)
        for epoch in range(epochs * 3 // 4 if 0 < seed == seeds - 1 else epochs)
    ]  # fmt: skip
    results = [
        (
            row, label, f"method_{row}", row == count - 1, attack, checkpoint, mean, mean - reach, mean + reach,
            np.nan if label in without_cost else 1.0 + row % 5,
        )
        for row, label in enumerate(labels)
        for attack in ("Clean", "PGD-20", "AutoAttack")
        for checkpoint, mean, reach in (("best", 50 - row, 2), ("last", 45 - row, 1), ("gap", 5, 1))
    ]  # fmt: skip
    pairs = 80.0 + np.subtract.outer(np.arange(count), np.arange(count))
    if seeds == 1:
        np.fill_diagonal(pairs, np.nan)
    hours = unit == "hours"
    return FigureData(
        "digits, small_cnn", ("Clean", "PGD-20", "AutoAttack"), 2, "PGD-10",
        pd.DataFrame(curves, columns=CURVES), pd.DataFrame(results, columns=RESULTS),
        unit, "GPU" if hours else None, {"A GPU": 2, "B": 1} if hours else {}, 1000, pairs, pairs, 120, 345,
    )  # fmt: skip


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
    "hours": data(unit="hours", without_cost=("FOMO",)),
    "no cost": data(without_cost=("PGD-AT", "FOMO")),
}


CHANGED = {
    **dict.fromkeys(("one epoch", "no epoch", "no test curve"), ("curves", "work")),
    **dict.fromkeys(("hours", "no cost"), ("cost",)),
}
"""The figures that a case draws from other data than "two rows" does, where these are not all."""


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in CHANGED.get(case, NAMES)])
def test_every_figure_draws(case, name, recwarn):
    pixels = np.asarray(Image.open(io.BytesIO(render(CASES[case], name, "png", dpi=75))).convert("RGB"))
    assert pixels.shape[1] in (255, 525), "a width of one or of two columns at 75 dots an inch"
    assert pixels.shape[0] < 825, "a page is 11 inches"
    assert pixels.min() < 50
    assert pixels.max() == 255
    assert not (pixels[[0, -1]] < 128).any(), "nothing is cut off above or below"
    assert not (pixels[:, [0, -1]] < 128).any(), "nothing is cut off at the sides"
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("format", FORMATS)
def test_equal_figures_give_equal_bytes(format):
    assert render(data(), "cost", format, dpi=75) == render(data(), "cost", format, dpi=75)


def test_equal_figures_give_equal_elements_of_a_page():
    assert svg(data(), "cost", "a-") == markup_of("cost")
    assert svg(data(["PGD-AT", "SAT"]), "cost", "a-") != markup_of("cost")


@pytest.mark.slow
def test_another_process_gives_the_same_bytes_whatever_its_settings(tmp_path):
    """A file of settings in the working directory, another hash seed, another time."""
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\naxes.titleweight: bold\nxtick.direction: in\nsvg.hashsalt: other\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "from hashlib import sha256\nfrom test_plots import FORMATS, data, render\n"
        "print(*(sha256(render(data(), 'gap', format, dpi=75)).hexdigest() for format in FORMATS))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True,
            env={
                "PATH": "", "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path),
                "MPLCONFIGDIR": matplotlib.get_configdir(),
            },
        ).stdout
        for folder, seed in ((tmp_path, "1"), ("/", "2"))
    }  # fmt: skip
    assert len(outputs) == 1


@pytest.mark.slow
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
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


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
    figures = data(epochs=40)
    axes = draw(figures, "curves").axes[0]
    curve = figures.curves[figures.curves.row == 0]
    drawn = {tuple(np.round(one.get_ydata(), 6)): one for one in axes.lines}
    looks = []
    for kind in ("train", "validation", "test"):
        mean = tuple(np.round(curve.groupby("epoch")[kind].mean(), 6))
        whole, rest = drawn[mean[:30]], drawn[mean[29:]]
        assert whole.get_linewidth() > rest.get_linewidth(), "fewer seeds, thinner line"
        assert tuple(whole.get_xdata()) == tuple(range(1, 31))
        looks.append(str(whole._unscaled_dash_pattern))
    assert len(set(looks)) == 3
    best, last = (curve[curve[checkpoint]] for checkpoint in ("best", "last"))
    marked = [tuple(one.get_xydata()[0]) for one in axes.lines[-2:]]
    assert marked[0] == pytest.approx((22, best.test.mean()))
    assert marked[1] == pytest.approx(((40 + 30 + 20) / 3, last.test.mean()))
    assert axes.lines[-2].get_marker() != axes.lines[-1].get_marker()
    spans = [tuple(piece[:, 0]) for group in axes.collections if hasattr(group, "get_segments")
             for piece in group.get_segments()]  # fmt: skip
    assert (20, 20) in spans, "the rate's drop"
    assert (21, 23) in spans, "from the earliest to the latest best"
    low, high = axes.get_ylim()
    assert low < curve.test.min()
    assert high > curve.train.max()


def test_marks_are_on_the_validation_curve_if_the_test_images_are_not_tracked():
    figures = data(test=False)
    curve = figures.curves[(figures.curves.row == 0) & figures.curves.best]
    assert draw(figures, "curves").axes[0].lines[-2].get_ydata() == pytest.approx([curve.validation.mean()])


def test_gap_shows_values_and_intervals():
    axes = draw(data(), "gap").axes
    assert [panel.get_title(loc="left") for panel in axes[:3]] == ["Clean", "PGD-20", "AutoAttack (ranks)"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["PGD-AT", "FOMO ‡"]
    points = sorted(tuple(one.get_xydata()[0]) for one in axes[0].lines if len(one.get_xdata()) == 1)
    assert points == [(44, 1.15), (45, 0.15), (49, 0.85), (50, -0.15)]
    reaches = {tuple(piece[:, 0]) for group in axes[3].collections for piece in group.get_segments()}
    assert reaches == {(4, 6)}
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1], "best row on top"


def test_cost_numbers_points_and_names_hardware():
    figure = draw(data(), "cost")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1  PGD-AT", "2  FOMO"]
    assert figure.axes[0].get_xlabel() == "training work of a seed, PFLOP"
    figure = draw(data(unit="hours", without_cost=("PGD-AT",)), "cost")
    assert [text.get_text() for text in figure.axes[0].texts] == ["2"], "the row's number, whichever have a cost"
    label = figure.axes[0].get_xlabel().replace("\n", " ")
    assert label == "training time of a seed on a GPU, hours (2 runs on A GPU, 1 run on B; not known for PGD-AT)"


def test_work_draws_rows_of_one_colour_with_other_lines():
    (axes,) = draw(data([f"Row {number}" for number in range(12)]), "work").axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_linestyle() != "None"}
    assert len(looks) == 12


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
    assert len({str(look["linestyle"]) for look in painters.LINES.values()}) == len(painters.LINES)


def test_the_pdf_embeds_its_fonts_as_truetype():
    content = render(data(), "gap", "pdf", dpi=75)
    assert b"/FontFile2" in content
    assert b"/CIDFontType2" in content or b"/Subtype /TrueType" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


# --- inside a web page -----------------------------------------------------------------------------------------------


@cache
def markup_of(name: str, prefix: str = "a-") -> str:
    return svg(data(), name, prefix)


@pytest.mark.parametrize("name", NAMES)
def test_an_inline_svg_can_be_read_aloud_and_scales(name):
    markup = markup_of(name)
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
    groups = [group for group in ET.fromstring(markup_of(name)).iter() if group.get("class") == "series"]
    assert {(group.get("data-row"), group.get("data-method")) for group in groups} == {
        ("0", "method_0"), ("1", "method_1"),
    }  # fmt: skip
    assert all(group[0].tag == f"{SVG}title" and group[0].text for group in groups)


def test_tooltips_say_the_figures():
    assert "PGD-AT, AutoAttack, best: 50.00 (48.00 to 52.00)" in markup_of("gap")
    assert "FOMO, 2 PFLOP: 49.00 (47.00 to 51.00)" in markup_of("cost")
    assert "FOMO, PGD-AT: 81.00 %" in markup_of("agreement")


@pytest.mark.parametrize("name", NAMES)
def test_ids_differ_between_figures_of_a_page(name):
    one, other = markup_of(name), markup_of(name, "b-")
    ids = [set(re.findall(r' id="([^"]+)"', markup)) for markup in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for markup, known in zip((one, other), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup))
        assert {first or second for first, second in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup)} <= known


def test_ids_differ_between_kinds_of_figures():
    ids = [set(re.findall(r' id="([^"]+)"', markup_of(name))) for name in NAMES]
    assert len(set().union(*ids)) == sum(map(len, ids))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_theme_an_inline_svg(name):
    markup = markup_of(name)
    plain = re.sub(r"var\(--[a-z0-9-]+,(#[0-9a-f]{6})\)", "", markup)
    assert not re.findall(r"#[0-9a-f]{6}[;\"]", plain), "every colour can be themed"
    used = set(re.findall(r"var\((--[a-z0-9-]+),(#[0-9a-f]{6})\)", markup))
    assert used <= {(theme, colour) for colour, theme in THEME.items()}
    assert {"--figure-text", "--series-1"} <= {theme for theme, _ in used}
    assert "<style" not in markup, "it would be the whole page's"
    assert "font-family" not in markup.partition(">")[2], "the page's font"
    assert "<metadata" not in markup


def test_labels_are_text_and_harmless_in_an_inline_svg():
    for name in ("curves", "gap", "cost", "work", "agreement"):
        markup = svg(data(ODD), name)
        assert "<script" not in markup
        shown = texts(markup)
        for label in ("$x_1^$", "a_b & <script>", "الطريقة", "方法一", "%s {0} \\alpha #", "line break"):
            assert label in shown, (name, label)


def test_an_inline_svg_is_small():
    figures = data([f"Method {row}" for row in range(8)], epochs=200)
    assert all(len(svg(figures, name)) < 200_000 for name in NAMES)
