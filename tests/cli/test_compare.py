"""`bench compare`: what it prints and returns, on run folders made by hand."""

import json

import pytest

from bench.storage.store import Store

from ..storage.conftest import make_run, protocol_of, results

__all__ = ["make_run", "results"]

CLASSES = {"classes": 10}


@pytest.fixture
def stored(make_run, results):
    with Store.of(results) as store:
        for seed in range(2):
            for method, right in (("pgd_at", 50), ("fomo", 53)):
                right += seed
                figures = {"best": (150, 100, right), "last": (160, 90, right - 9)}
                store.ingest(make_run(figures, method=method, seed=seed, done=CLASSES))
    return results


def test_a_table(bench, stored):
    done = bench("compare", "fomo", "pgd_at", "--results", stored, "--images")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:2] == ["A: FOMO, seeds 0, 1", "B: PGD_AT, seeds 0, 1"]
    (row,) = (line.split() for line in lines if line.startswith("AutoAttack  best"))
    assert row[2:5] == ["53.50", "50.50", "+3.00"]
    assert row[-3:] == ["3", "0", "100"]
    assert "AutoAttack, best, only A: 50, 51, 52" in lines
    assert "images and seeds" in done.out


def test_json(bench, stored):
    found = json.loads(bench("compare", "fomo", "pgd-at-seed0", "--results", stored, "--json").out)
    assert found["a"]["seeds"] == [0, 1]
    (best,) = (one for one in found["figures"] if (one["attack"], one["checkpoint"]) == ("AutoAttack", "best"))
    assert best["difference"]["mean"] == pytest.approx(0.035)
    assert best["only_a"] == [50, 51, 52]


def test_best_that_the_test_images_selected_is_marked(bench, stored, make_run):
    protocol = protocol_of(dataset={"name": "digits", "validation": "none"})
    with Store.of(stored) as store:
        for method in ("sat", "awp"):
            figures = dict.fromkeys(("best", "best_on_test", "last"), (150, 100, 50))
            store.ingest(make_run(figures, method=method, protocol=protocol, done=CLASSES))
    marked = "best: selected on the test images, optimistic for both."
    assert marked in bench("compare", "sat", "awp", "--results", stored).out.splitlines()
    assert json.loads(bench("compare", "sat", "awp", "--results", stored, "--json").out)["selection"] == "test"
    assert marked not in bench("compare", "fomo", "pgd_at", "--results", stored).out


def test_what_is_refused(bench, stored, make_run):
    with Store.of(stored) as store:
        store.ingest(make_run(method="sat", protocol=protocol_of(model="resnet18"), done=CLASSES))
    for words, code, said in (
        (("fomu", "pgd_at"), 2, "did you mean 'fomo'?"),
        (("fomo", "sat"), 4, "model (small_cnn, resnet18)"),
        (("fomo", "sat", "--protocol", "zz"), 4, "no run"),
        (("fomo", "sat", "--protocol", "zz", "--suite", "ci"), 2, "not both"),
        (("fomo", "pgd_at", "--suite", "ci"), 4, "no run of protocol"),
    ):
        done = bench("compare", *words, "--results", stored)
        assert (done.code, done.out) == (code, ""), done.err
        assert said in done.err
        assert "Traceback" not in done.err
