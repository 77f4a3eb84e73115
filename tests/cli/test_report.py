"""`bench report`: formats, files, order, papers."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from bench.storage.store import Store

from ..storage.conftest import make_run, protocol_of, results

__all__ = ["make_run", "results"]


@pytest.fixture
def report(bench, make_run, results):
    """Run `bench report` on a store of two rows, the second one of which is quicker."""
    protocol = protocol_of(dataset="cifar10", model="preact_resnet18")
    right = {"best": (150, 100, 60), "last": (160, 90, 40), "best_on_test": (152, 104, 61)}
    with Store.of(results) as store:
        store.ingest(make_run(right, protocol=protocol, label="Ünï 对抗 |"))
        right = {"best": (150, 100, 30), "last": (160, 90, 40), "best_on_test": (152, 104, 61)}
        store.ingest(make_run(right, protocol=protocol, method="awp", done={"train_seconds": 1.0}))

    def report(*words, code=0):
        result = bench("report", "--results", results, *words)
        assert result.code == code, result.err
        return result.err if code else result.out

    return report


def test_formats(report):
    assert report().startswith("cifar10, preact_resnet18")
    assert report("--format", "markdown").startswith("### cifar10")
    assert r"\toprule" in report("--format", "latex")
    assert json.loads(report("--format", "json"))["boards"][0]["rows"][0]["label"] == "Ünï 对抗 |"
    lines = list(csv.DictReader(io.StringIO(report("--format", "csv"), newline="")))
    assert [line["label"] for line in lines] == ["Ünï 对抗 |"] * 3 + ["AWP"] * 3
    assert "is not one of" in report("--format", "pdf", code=2)


@pytest.mark.parametrize("format", ["terminal", "markdown", "latex", "csv", "json"])
def test_a_file_holds_what_stdout_shows(report, tmp_path, format):
    path = tmp_path / "board.out"
    path.write_text("old")
    assert report("--format", format, "--output", path) == ""
    found = path.read_bytes().decode()
    assert found.endswith("\n")
    if format != "terminal":  # whose width stdout decides
        assert found == report("--format", format)
    else:
        assert found.count("Method") == 1
        assert not any(line.endswith(" ") for line in found.splitlines())
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("name", "words", "first"),
    [("a.HTML", (), "<!DOCTYPE"), ("a.txt", (), "cifar10"), ("a.html", ("--format", "markdown"), "### ")],
)
def test_the_ending_of_a_file_chooses_the_format_if_none_is_stated(report, tmp_path, name, words, first):
    report("--output", tmp_path / name, *words)
    assert (tmp_path / name).read_text().startswith(first)


@pytest.mark.parametrize("name", ["board.pdf", "board.xlsx"])
def test_a_file_with_the_ending_of_no_format_is_not_written(report, tmp_path, name):
    (tmp_path / name).write_text("kept")
    assert "state one with --format" in report("--output", tmp_path / name, code=2)
    assert (tmp_path / name).read_text() == "kept"


def test_html_is_written_while_the_store_is_open(report, tmp_path, monkeypatch):
    class Stub:
        @staticmethod
        def render_html(store, boards):
            return f"<!doctype html>{store.describe()}, {len(boards)} board"

    monkeypatch.setitem(sys.modules, "bench.reporting.formats.html", Stub)
    assert report("--format", "html").endswith("2 runs, 1 board")
    report("--format", "html", "--output", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text().startswith("<!doctype html>")


def test_a_file_that_cannot_be_written(report, tmp_path):
    for path in (tmp_path / "none" / "board.md", tmp_path):
        error = report("--format", "markdown", "--output", path, code=2)
        assert error.startswith(f"bench: {path} cannot be written: ")
        assert error.count("\n") == 1


def test_sort(report):
    def order(*words):
        return [row["method"] for row in json.loads(report("--format", "json", *words))["boards"][0]["rows"]]

    assert order() == ["pgd_at", "awp"]
    assert order("--sort", "cost") == ["awp", "pgd_at"]
    assert order("--sort", "cost", "--methods", "awp") == ["awp"]
    assert "did you mean 'cost'" in report("--sort", "costs", code=2)


@pytest.mark.parametrize("format", ["terminal", "markdown", "latex", "csv", "json", "html"])
def test_published_figures_are_in_every_format(report, tmp_path, format):
    path = tmp_path / "board.out"
    report("--published", "--format", format, "--output", path)
    text = Path(path).read_text(encoding="utf-8")
    assert "Rice et al. 2020, training log" in text.replace("{}", "")
    assert "Rice et al. 2020" not in report("--format", format)


def test_published_figures_meet_the_selection_that_they_used(report):
    for selection in ("validation", "test"):
        text = report("--published", "--format", "json", "--selection", selection)
        found = [line for line in json.loads(text)["boards"][0]["published"] if line["attack"] == "pgd"]
        (line,) = [line for line in found if "AWP), training log of the baseline" in line["source"]]
        assert line["best"]["ours"] == 0.52, "best_on_test"
        assert line["best"]["difference"] == pytest.approx(0.52 - 0.5279)
        assert ["PGD-10, ours PGD-20"] in [line["reasons"] for line in found if line["title"] == "PGD-10"]
