"""`bench check`: what it prints, writes and returns, on run folders made by hand."""

import json
import shutil
from xml.etree import ElementTree

import pytest

from bench.config.suite import load_suite
from bench.storage.store import Store
from bench.utils.environment import code_digest

from ..storage.conftest import DATA, make_run, results

__all__ = ["make_run", "results"]

SUITE = """\
name: small
dataset: {name: digits, validation: 100}
model: small_cnn
threat: {norm: linf, eps: 8/255}
training: {epochs: 2}
evaluation: {final: [clean, {name: pgd, steps: 20}]}
methods: [pgd_at, fomo]
seeds: [0, 1, 2]
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def ran(path, make_run, results):
    """Make the runs of the suite, each right about `robust` images under attack; and only those of `methods`."""

    def ran(robust=100, methods=("pgd_at", "fomo"), text=SUITE, **kwargs):
        path.write_text(text)
        (results / "bench.sqlite").unlink(missing_ok=True)
        shutil.rmtree(results / "runs", ignore_errors=True)
        with Store.of(results) as store:
            for cell in load_suite(str(path)).cells:
                if cell.method.name in methods:
                    right = robust + cell.seed
                    fields = cell.method.model_dump(exclude={"name"})
                    figures = {"best": (190, right), "last": (190, right - 10)}
                    place = {"protocol": cell.protocol, "method": cell.method.name, "seed": cell.seed}
                    made = {"done": {"classes": 10}, "environment": {"device": "cpu", "code": code_digest()}, **kwargs}
                    store.ingest(make_run(figures, **place, **fields, **made))
        return results

    return ran


@pytest.fixture
def check(bench, path, tmp_path, results):
    return lambda *words: bench("check", path, "--baseline", tmp_path / "base.json", "--results", results, *words)


def test_other_images_are_not_compared(ran, check):
    ran()
    assert check("--update").code == 0
    made = {"device": "cpu", "code": code_digest()}
    ran(environment={**made, "data": DATA | {"training": "0" * 64}})
    found = check()
    assert found.code == 4
    assert "these runs used other data than the baseline's: training images" in found.err


def test_update_then_check(ran, check, tmp_path):
    ran()
    first = check("--update")
    assert (first.code, first.out) == (0, "")
    assert "is new" in first.err
    assert "wrote the baseline" in first.err
    before = (tmp_path / "base.json").read_bytes()
    same = check()
    assert (same.code, same.err) == (0, "")
    assert same.out.splitlines()[-1] == "small: no regression (0 regressions, 0 improvements, 12 figures)"
    assert check("--update").code == 0
    assert (tmp_path / "base.json").read_bytes() == before


def test_a_regression_is_exit_code_1_and_goes_into_every_report(ran, check, tmp_path):
    ran()
    check("--update")
    ran(60)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    done = check("--junit", tmp_path / "junit.xml", "--summary", summary)
    assert done.code == 1
    assert "regression" in done.out.splitlines()[1]
    assert "-20.00" in done.out.splitlines()[1]
    suite = ElementTree.parse(tmp_path / "junit.xml").find("testsuite")
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) > 0
    assert summary.read_text().startswith("before\n### small: regression")
    report = json.loads(check("--json").out)
    assert report["exit_code"] == 1
    assert check("--tolerance", "21").code == 0, "nothing moved by more"
    shown = check("--update")
    assert (shown.code, "-20.00" in shown.out) == (0, True)
    assert check().code == 0


def test_a_changed_protocol_is_exit_code_4(ran, check, tmp_path):
    ran()
    check("--update")
    ran(text=SUITE.replace("epochs: 2", "epochs: 3"))
    done = check("--junit", tmp_path / "junit.xml", "--summary", tmp_path / "summary.md")
    assert (done.code, done.out) == (4, "")
    assert "training.epochs (2, 3)" in done.err
    assert "training.epochs" in (tmp_path / "summary.md").read_text()
    assert ElementTree.parse(tmp_path / "junit.xml").find("testsuite").get("errors") == "1"


def test_nothing_measured_is_exit_code_4(bench, ran, check, tmp_path):
    assert check().code == 4, "there is no store"
    assert check("--update").code == 4
    ran()
    check("--update")
    before = (tmp_path / "base.json").read_bytes()
    ran(methods=())
    for words in ((), ("--update",)):
        done = check(*words)
        assert (done.code, done.out) == (4, "")
    ran(methods=("pgd_at",))
    done = check()
    assert done.code == 4
    assert "FOMO seed 2 has no results: not run" in done.out
    assert "a baseline needs every cell" in check("--update").err
    assert (tmp_path / "base.json").read_bytes() == before


def test_a_wrong_baseline_is_exit_code_2(ran, check, tmp_path):
    ran()
    assert "create it with `bench check" in check().err
    for text in ("", "{}", "[]", '{"sha256": 1, "content": {}}', "\x00"):
        (tmp_path / "base.json").write_text(text)
        done = check()
        assert (done.code, done.out) == (2, ""), done.err
        assert len(done.err.splitlines()) == 1
    assert check("--update").code == 0
    assert check().code == 0


def test_a_report_that_cannot_be_written(ran, check, tmp_path):
    ran()
    check("--update")
    done = check("--junit", tmp_path / "none" / "junit.xml")
    assert done.code == 2
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err
