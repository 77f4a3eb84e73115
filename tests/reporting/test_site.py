import base64
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from posixpath import dirname, normpath

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.execution.examples import adversarial_examples
from bench.reporting.comparison import compared
from bench.reporting.formats import html
from bench.reporting.formats.csv import render_csv
from bench.reporting.frames import curves_frame, results_frame
from bench.reporting.leaderboard import leaderboards
from bench.reporting.published_comparison import compare_with_published
from bench.reporting.site import comparisons, runs
from bench.reporting.site.downloads import downloads
from bench.reporting.site.pages import Site, page_name
from bench.reporting.site.runs import RunReader
from bench.storage.run_folder import run_folders
from bench.storage.store import Store

from ..storage.conftest import Maker, protocol_of
from .html_report import ENVIRONMENT, HOSTILE, HOSTILE_METHOD, Tree, published, resolved


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of one protocol: two seeds of a method, one of a hostile plug-in, and one that diverged."""
    results = tmp_path_factory.mktemp("site")
    make, protocol = Maker(results), protocol_of()
    with Store.of(results) as store:

        def take(*args, **kwargs):
            store.ingest(make(*args, **{"done": {"classes": 10}, "environment": ENVIRONMENT, **kwargs}))

        for seed in range(2):
            right = {"best": (150 + seed, 100, 50 + seed), "last": (160, 9, 40 - seed)}
            take(right, seed=seed, **resolved(protocol, "fomo"))
        take({"best": (80, 70, 26), "last": (80, 60, 25)}, **HOSTILE_METHOD)
        take({}, status="diverged", done={"epoch": 1, "reason": HOSTILE}, **resolved(protocol, "mart"))
        yield store


@pytest.fixture(scope="module")
def files(store):
    """The files of its site, with small drawings; tests/reporting/test_site_browser.py has the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (html, runs):
            patch.setattr(module, "svg", lambda *_: '<svg role="img" aria-label="figure"></svg>')
        files = Site(store, leaderboards(store)).files()
        assert Site(store, leaderboards(store)).files() == files, "equal results give equal bytes"
        yield files


@pytest.fixture(scope="module")
def trees(files):
    return {path: Tree(content.decode()) for path, content in files.items() if path.endswith(".html")}


def of(trees, folder: str) -> list[str]:
    return sorted(path for path in trees if path.startswith(f"{folder}/"))


# --- pages -----------------------------------------------------------------------------------------------------------


def test_a_page_for_each_leaderboard_method_and_run(store, trees):
    (board,) = leaderboards(store)
    assert of(trees, "boards") == [f"boards/{board.fingerprint[:12]}.html"]
    assert len(of(trees, "methods")) == 3
    assert {"methods/fomo.html", "methods/mart.html"} <= trees.keys()
    names = {
        f"runs/{run.method}-seed{run.seed}-{run.fingerprint[:12]}.html" for run in store.runs() if "/" not in run.method
    }
    assert len(of(trees, "runs")) == 4
    assert names <= trees.keys()
    assert {path for path in trees if "/" not in path} == {"index.html", "compare.html"}


def test_every_link_leads_somewhere(files, trees):
    ids = {path: [found["id"] for _, found in tree.tags if "id" in found] for path, tree in trees.items()}
    assert all(max(Counter(found).values()) == 1 for found in ids.values())
    linked = set()
    for path, tree in trees.items():
        for found in tree.all("a"):
            target, _, part = found["href"].partition("#")
            there = normpath(f"{dirname(path)}/{target}").lstrip("/") if target else path
            assert there in files, (path, found["href"])
            assert not part or there == "compare.html" or part in ids[there], (path, found["href"])
            linked.add(there)
    assert linked == files.keys()


def test_the_structure_of_every_page(trees):
    for path, tree in trees.items():
        assert tree.open == [], path
        for landmark in ("main", "footer", "header", "h1", "title"):
            assert len(tree.all(landmark)) == 1, path
        levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch("h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels)), path
        assert tree.all("a")[0] == {"class": "skip", "href": "#main"}


def test_figures_of_a_run(store, trees):
    run = next(run for run in store.runs() if run.method == "fomo" and run.seed == 1)
    cells = trees[f"runs/fomo-seed1-{run.fingerprint[:12]}.html"].text("td")
    # Clean, PGD-20 and AutoAttack at best: 151 and 100 of 200, 51 of 100; at last 160, 9 and 39
    assert {"75.50", "50.00", "51.00", "80.00", "4.50", "39.00", "−4.50", "45.50", "12.00"} <= set(cells)


def test_a_diverged_run_says_so(store, trees):
    run = next(run for run in store.runs() if run.method == "mart")
    tree = trees[f"runs/mart-seed0-{run.fingerprint[:12]}.html"]
    assert f"diverged: {HOSTILE}" in tree.text("dd")


def test_parameters_of_a_method(trees):
    assert {"declared", "paper", "secondary"} & set(trees["methods/fomo.html"].text("span"))
    assert "re-initialised at each forgetting; 3.5 % and 5 % are both quoted" in trees["methods/fomo.html"].text("td")
    (plugin,) = (tree for path, tree in trees.items() if path.startswith("methods/lab-x-"))
    assert "a<b" in plugin.text("code")


# --- safety ----------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_nothing_hostile_is_code(files, trees):
    for path, tree in trees.items():
        for tag, found in tree.tags:
            for name, value in found.items():
                assert not name.startswith("on"), path
                if name in ("src", "href", "srcset", "data", "action", "poster"):
                    assert not re.match("[a-z]+:", value) or value.startswith("data:"), (path, tag, value)
        assert not re.search(r"url\((?!#)|@import", " ".join(tree.text("style"))), path
        (policy,) = (found["content"] for found in tree.all("meta") if found.get("http-equiv"))
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'", path
        text = files[path].decode()
        (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert rules["script-src"] == f"'sha256-{digest}'", path
        assert "<script>alert" not in text, path
    assert any(HOSTILE in text for text in trees["index.html"].text("bdi")) or HOSTILE in "".join(
        text for path in of(trees, "boards") for text in trees[path].text("bdi")
    )
    assert "secret-host" not in b"".join(files.values()).decode(errors="replace")


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "a b", "", ".", "com1.", "方法", "x" * 500])
def test_names_of_files_are_plain_and_distinct(name):
    assert re.fullmatch("[a-z0-9_-]{8,80}", page_name(name))
    assert page_name(name) != page_name(name + "!")


# --- data ------------------------------------------------------------------------------------------------------------


def test_downloads(store, files):
    assert files["downloads/leaderboards.csv"].decode() == render_csv(leaderboards(store))
    assert json.loads(files["downloads/leaderboards.json"])["format"] == "bench-report"
    for name, frame in (("results", results_frame(store)), ("curves", curves_frame(store))):
        read = pd.read_parquet(io.BytesIO(files[f"downloads/{name}.parquet"])).astype(frame.dtypes)
        pd.testing.assert_frame_equal(read, frame)
        assert [row["run"] for row in json.loads(files[f"downloads/{name}.json"])] == list(frame.run)
        text = pd.read_csv(io.BytesIO(files[f"downloads/{name}.csv"]))
        assert list(text.columns) == list(frame.columns)
        assert len(text) == len(frame) > 0
    lines = pd.read_parquet(io.BytesIO(files["downloads/leaderboards.parquet"]))
    assert lines.label.value_counts()[HOSTILE] == 3
    assert lines.best_mean.max() == pytest.approx(0.7525)


def test_downloads_with_the_papers_figures(store):
    paper = replace(published(protocol_of().identity()), method="fomo")
    boards = compare_with_published(leaderboards(store), [], [paper])
    lines = pd.read_parquet(io.BytesIO(downloads(store, boards)["leaderboards.parquet"]))
    assert list(lines.record.unique()) == ["row", "published"]
    assert set(lines.seeds) == {"[0,1]", "[0]", "[]", "3"}


class Data(HTMLParser):
    """The JSON of the comparison."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.value = False, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self.inside:
            self.value, self.inside = json.loads(data), False


def test_the_comparison_has_the_differences_of_the_command(store, files):
    data = Data(files["compare.html"].decode()).value
    ids = [run["id"] for run in data["runs"]]
    fomo = [run.fingerprint for run in store.runs() if run.method == "fomo"]
    first, second = sorted(fomo, key=lambda name: ids.index(name[:12]))
    expected = compared(store, first, second)
    found = data["pairs"][f"{ids.index(first[:12])}-{ids.index(second[:12])}"]
    titles = data["boards"][0]["attacks"]
    assert len(expected.figures) == 9
    for figure in expected.figures:
        difference = figure.difference
        values = [100 * value for value in (difference.mean, *difference.interval)]
        shown = found[titles.index(figure.attack)][figure.checkpoint]
        assert shown[:3] == pytest.approx(values, abs=1e-4)
        assert shown[3] == pytest.approx(difference.p, rel=1e-3)
    assert len(data["pairs"]) == 3  # the diverged run has no figures
    assert [run["figures"] is None for run in data["runs"]] == [False, False, False, True]
    assert [len(run["curves"]["validation"]) for run in data["runs"]] == [2, 2, 2, 2]


def test_more_pairs_than_the_limit_are_left_to_the_command(store, monkeypatch):
    monkeypatch.setattr(comparisons, "MOST_PAIRS", 2)
    (board,) = leaderboards(store)
    runs = {board.fingerprint: store.runs(bits=True)}
    data = comparisons.comparison_data([board], runs, {}, lambda run: run.method, lambda run: run.folder)
    assert data["pairs"] == {}
    assert [run["figures"] is None for run in data["runs"]] == [False, False, False, True]


# --- what the run folder and the dataset add -------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_results):
    """The run of the tiny suite with its per-image results, and its folder."""
    with Store.of(tiny_results, create=False) as store:
        (run,) = store.runs(bits=True)
    (folder,) = run_folders(tiny_results)
    return run, folder


def test_adversarial_examples_of_a_run(trained):
    run, folder = trained
    expected = adversarial_examples(folder, "best", 3)
    shown = RunReader({folder.path.name: folder}, None, 3).details(run, "a run", [], "validation")
    assert (shown.attack, shown.checkpoint) == ("PGD-3", "best")
    assert [example.position for example in shown.examples] == expected.index.tolist()
    for number, example in enumerate(shown.examples):
        assert (example.label, example.predicted, example.attacked) == (
            *(int(values[number]) for values in (expected.labels, expected.predictions)),
            int(expected.adversarial_predictions[number]),
        )
        pixels = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
            for url in (example.image, example.perturbation, example.adversarial)
        ]
        assert np.array_equal(pixels[0], (255 * expected.images[number, 0]).round().numpy())
        assert np.array_equal(pixels[2], (255 * expected.adversarial[number, 0]).round().numpy())
        assert {pixels[1].min(), pixels[1].max()} & {0, 255}  # the largest change is black or white
    assert not RunReader({folder.path.name: folder}, None, 0).details(run, "a run", [], "validation").examples
    assert not RunReader({}, None, 3).details(run, "a run", [], "validation").examples


def test_accuracies_per_class(trained):
    """As the run recorded them; for an older run, as its test images have them; unknown without these images."""
    run, folder = trained
    reader = RunReader({folder.path.name: folder}, None, 0)
    recorded = reader.details(run, "a run", [], "validation").classes
    outcome = run.checkpoints["best"].outcomes[next(key for key in run.checkpoints["best"].outcomes if "pgd" in key)]
    right, images = outcome.detail["per_class"][7]
    place = [(column.group, column.title) for column in recorded.columns].index(("PGD-3", "best"))
    assert recorded.rows[7][place].value == right / images
    assert len(recorded.rows) == 10
    for checkpoint in run.checkpoints.values():
        for outcome in checkpoint.outcomes.values():
            outcome.detail = {}
    assert reader.details(run, "a run", [], "validation").classes == recorded
    run.environment = {key: value for key, value in run.environment.items() if key != "data"}
    assert reader.details(run, "a run", [], "validation").classes.rows == ()
