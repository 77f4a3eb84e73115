import json

import pytest

from bench.reporting.formats import html
from bench.reporting.site import downloads, runs
from bench.reporting.site.folder import MARKER

from ..storage.conftest import Maker, make_run, protocol_of, results

__all__ = ["make_run", "results"]

DONE = {"classes": 10}


@pytest.fixture(autouse=True)
def small_drawings(monkeypatch):
    for module in (html, runs):
        monkeypatch.setattr(module, "svg", lambda *_: "<svg></svg>")


def test_several_results_folders_make_one_site(bench, make_run, results, tmp_path):
    make_run(done=DONE)
    Maker(tmp_path / "other")(protocol=protocol_of(model="preact_resnet18"), method="fomo", done=DONE)
    output = tmp_path / "site"
    result = bench("site", "--output", output, "--results", results, "--results", tmp_path / "other", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert (told["output"], told["leaderboards"]) == (str(output), 2)
    there = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert there == {*told["files"], MARKER}
    assert len([path for path in there if path.startswith("boards/")]) == 2
    assert {"methods/pgd_at.html", "methods/fomo.html", "downloads/results.parquet"} <= there


def test_a_site_is_replaced_and_another_folder_refused(bench, make_run, results, tmp_path):
    make_run(done=DONE)
    output = tmp_path / "site"
    for _ in range(2):
        result = bench("site", "--output", output, "--results", results, "--images", 0)
        assert (result.code, result.out) == (0, f"{output / 'index.html'}\n")
    result = bench("site", "--output", results, "--results", results)
    assert result.code == 2
    assert result.err == (
        f"bench: {results} is not empty and not a site of `bench site`; name a new folder with --output\n"
    )


def test_without_pyarrow_there_is_no_parquet(bench, make_run, results, tmp_path, monkeypatch):
    make_run(done=DONE)
    monkeypatch.setattr(downloads, "find_spec", lambda _name: None)
    result = bench("site", "--output", tmp_path / "site", "--results", results)
    assert result.code == 0
    assert "robust-overfitting-bench[parquet]" in result.err
    assert not list((tmp_path / "site").rglob("*.parquet"))


def test_what_cannot_become_a_site(bench, make_run, results, tmp_path):
    output = tmp_path / "site"
    assert bench("site", "--output", output, "--results", tmp_path / "none").code == 4
    make_run(done=DONE)
    twice = ("--results", results, "--results", tmp_path / "none")
    result = bench("site", "--output", output, *twice)
    assert result.code == 4
    assert "none holds no run folders" in result.err
    result = bench("site", "--output", output, *twice, "--store", "sqlite://")
    assert result.code == 2
    assert "--store" in result.err
    assert not output.exists()
