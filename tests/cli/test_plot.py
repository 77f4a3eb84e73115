import json

import pytest

from bench.config.suite import load_suite
from bench.storage.store import Store

from ..storage.conftest import make_run, protocol_of, results

__all__ = ["make_run", "results"]

ALL = ("curves", "gap", "cost", "work", "agreement")


@pytest.fixture
def filled(make_run, results):
    """A results folder with two methods, each with two seeds."""
    with Store.of(results) as store:
        for method in ("pgd_at", "fomo"):
            for seed in (0, 1):
                store.ingest(make_run(method=method, seed=seed, done={"classes": 10}))
    return results


def test_all_figures_of_all_protocols(bench, filled, make_run, tmp_path):
    other = protocol_of(threat={"norm": "linf", "eps": "4/255"})
    with Store.of(filled) as store:
        store.ingest(make_run(protocol=other, done={"classes": 10}))
    folder = tmp_path / "new" / "figures"
    result = bench("plot", "--results", filled, "--output", folder)
    assert (result.code, result.err) == (0, "")
    stems = [protocol.fingerprint[:12] for protocol in (protocol_of(), other)]
    names = {f"{stem}-{name}.png" for stem in stems for name in ALL}
    assert {path.name for path in folder.iterdir()} == names
    assert set(result.out.split()) == {str(folder / name) for name in names}


def test_formats_figures_and_json(bench, filled, tmp_path):
    result = bench(
        "plot", "--results", filled, "--output", tmp_path, "--format", "svg, pdf,svg", "--figure", "gap,cost", "--json"
    )
    assert result.code == 0
    stem = protocol_of().fingerprint[:12]
    assert json.loads(result.out) == [
        {"file": str(tmp_path / f"{stem}-{name}.{format}"), "figure": name, "format": format, "protocol": stem}
        for name in ("gap", "cost")
        for format in ("svg", "pdf")
    ]
    assert (tmp_path / f"{stem}-gap.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / f"{stem}-gap.pdf").read_bytes().startswith(b"%PDF")


def test_a_suite_names_its_files(bench, suite, make_run, results, tmp_path):
    path = suite()
    tiny = load_suite(path).suite
    count = len(tiny.protocol.evaluation.final)
    with Store.of(results) as store:
        right = dict.fromkeys(("best", "last"), (150,) * count)
        store.ingest(make_run(right, protocol=tiny.protocol, done={"classes": 10}))
        store.ingest(make_run(done={"classes": 10}))
    result = bench("plot", path, "--results", results, "--output", tmp_path / "f", "--figure", "gap")
    assert [file.name for file in (tmp_path / "f").iterdir()] == [f"{tiny.name}-gap.png"], result.err


def test_methods_and_selection(bench, filled, tmp_path):
    call = ("plot", "--results", filled, "--figure", "gap", "--format", "svg", "--output")
    both, one = (bench(*call, tmp_path / folder, *more) for folder, more in (("a", ()), ("b", ("--methods", "fomo"))))
    assert both.code == one.code == 0
    drawn = [next((tmp_path / folder).iterdir()).read_bytes() for folder in ("a", "b")]
    assert len(drawn[0]) > len(drawn[1])
    oracle = bench(*call, tmp_path, "--selection", "test")
    assert oracle.code == 4
    assert "best_on_test" in oracle.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "pgn"), "there is no format 'pgn'; did you mean 'png'?"),
        (("--format", "png,bmp"), "there is no format 'bmp'; known: pdf, png, svg"),
        (("--figure", "curve"), "there is no figure 'curve'; did you mean 'curves'?"),
        (("--figure", ","), "--figure is empty; list values, separated by commas"),
        (("--methods", "fom"), "there is no run of a method 'fom'"),
    ],
)
def test_wrong_words(bench, filled, tmp_path, words, message):
    result = bench("plot", "--results", filled, "--output", tmp_path / "f", *words)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "f").exists()


def test_nothing_measured(bench, results, make_run, tmp_path):
    with Store.of(results):
        pass
    assert bench("plot", "--results", results, "--output", tmp_path / "f").code == 4
    with Store.of(results) as store:
        store.ingest(make_run({}, status="diverged"))
    result = bench("plot", "--results", results, "--output", tmp_path / "f")
    assert result.code == 4
    assert "nothing to draw" in result.err
    assert not (tmp_path / "f").exists()


def test_a_folder_that_cannot_be_written(bench, filled, tmp_path):
    (tmp_path / "file").write_text("")
    result = bench("plot", "--results", filled, "--output", tmp_path / "file", "--figure", "gap")
    assert result.code == 2
    assert "gap.png cannot be written" in result.err
    assert result.err.count("\n") == 1
