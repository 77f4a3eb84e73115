"""Whatever is wrong: one clear sentence on stderr, exit code 2, no traceback, nothing written."""

import sqlite3

import pytest


def refused(result, *words, code=2):
    assert result.code == code, result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"  epochs: 2": "  epochz: 2"}, ("suite.yaml:6", "epochz", "did you mean 'epochs'?")),
        ({"methods: [pgd_at]": "methods: [pdg_at]"}, ("suite.yaml:12", "unknown method 'pdg_at'", "'pgd_at'?")),
        ({"name: digits": "name: digit"}, ("suite.yaml:2", "unknown dataset", "'digits'?")),
        ({"model: small_cnn": "model: smal_cnn"}, ("suite.yaml:3", "unknown model", "'small_cnn'?")),
        ({"eps: 0.15": "eps: eight"}, ("suite.yaml:4", "threat.eps", "'eight' is not a number")),
        ({"epochs: 2": "epochs: -2"}, ("suite.yaml:6", "training.epochs", "-2")),
        ({"validation: 200": "validation: 2000"}, ("suite.yaml:2", "dataset.validation", "1297")),
        ({"seeds: [0]": "seeds: [0"}, ("suite.yaml:13", "invalid YAML")),
        ({"methods: [pgd_at]": "methods: [{name: early_stopping, params: {patience: 3}}]"}, ("patience",)),
        ({"seeds: [0]": "seeds: [0]\nexecution: {threads: 999}"}, ("999", "cores")),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_a_wrong_suite(bench, suite, tmp_path, changes, words):
    results = tmp_path / "results"
    refused(bench("run", suite(changes), "--results", results), *words)
    assert not results.exists()


def test_a_missing_suite(bench, tmp_path):
    refused(bench("run", tmp_path / "none.yaml", "--results", tmp_path / "results"), "none.yaml", "no such suite file")
    refused(bench("run", "quickstrat", "--results", tmp_path / "results"), "did you mean 'quickstart'?")
    refused(bench("validate", tmp_path / "none.yaml"), "no such suite file")
    refused(bench("report", tmp_path / "none.yaml"), "no such suite file")
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_written(bench, suite, tmp_path):
    (tmp_path / "file").write_text("")
    refused(bench("run", suite(), "--results", tmp_path / "file"), "cannot be written")
    refused(bench("run", suite(), "--results", "/proc/results"), "cannot be written")


def test_a_store_that_cannot_be_opened(bench, suite, tmp_path):
    for url in ("nonsense", "sqlite:////proc/none/bench.sqlite", "mysterysql://user:secret@host/db"):
        result = bench("run", suite(), "--results", tmp_path / "results", "--store", url)
        refused(result, "database")
        assert "secret" not in result.err
    assert not (tmp_path / "results").exists()


def test_a_store_of_a_newer_version(bench, suite, tmp_path):
    with sqlite3.connect(tmp_path / "new.sqlite") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    url = f"sqlite:///{tmp_path / 'new.sqlite'}"
    refused(bench("run", suite(), "--results", tmp_path / "results", "--store", url), "newer version", "upgrade")
    refused(bench("report", "--store", url), "newer version")
    assert not list(tmp_path.glob("results/runs/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "fomoo"), "no method 'fomoo'"),
        (("--seeds", "7"), "no seed 7"),
        (("--seeds", "x"), "--seeds: 'x' is not a whole number"),
        (("--methods", ","), "--methods is empty"),
        (("--device", "cuda"), "sees no NVIDIA GPU"),
        (("--jobs", "999"), "lower --jobs"),
        (("--rerun", "al"), "did you mean 'all'?"),
    ],
)
def test_a_wrong_option(bench, suite, tmp_path, words, said):
    result = bench("run", suite(), "--results", tmp_path / "results", *words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "results").exists()


def test_names_that_are_not_there(bench, tmp_path):
    refused(bench("show", "method", "fomu"), "unknown method 'fomu'")
    refused(bench("show", "model", "resnet"), "unknown model")
    refused(bench("show", "run", "x", "--results", tmp_path), "no database", code=4)
    refused(bench("report", "--results", tmp_path), "no database", code=4)
