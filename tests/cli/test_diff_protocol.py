"""`bench diff-protocol`: the settings in which two protocols differ, and the points between their figures."""

import json

import pytest

from bench.storage.store import Store

from ..storage.conftest import make_run, protocol_of, results

__all__ = ["make_run", "results"]


@pytest.fixture
def stored(make_run, results):
    """PGD-AT under two protocols that differ in epochs and in the steps of PGD, and FOMO under one."""
    finals = ["clean", {"name": "pgd", "steps": 10}, {"name": "autoattack", "images": 100}]
    longer = protocol_of(training={"epochs": 3}, evaluation={"final": finals})
    with Store.of(results) as store:
        for seed in range(2):
            figures = {"best": (150, 100, 50 + seed), "last": (160, 90, 40)}
            store.ingest(make_run(figures, seed=seed, done={"classes": 10}))
        store.ingest(make_run({"best": (152, 110, 60), "last": (160, 90, 30)}, protocol=longer, done={"classes": 10}))
        store.ingest(make_run(method="fomo", params={"rate": 0.5}, done={"classes": 10}))
    return results


def test_two_suites(bench, tmp_path):
    found = json.loads(bench("diff-protocol", "cifar10", "cifar10_l2", "--results", tmp_path, "--json").out)
    settings = {one["name"]: (one["a"], one["b"]) for one in found["settings"]}
    assert settings["threat.norm"] == ("linf", "l2")
    assert not {"training.epochs", "evaluation.final.clean"} & settings.keys()
    assert settings["evaluation.final.pgd.step_size"] == settings["training.attack.step_size"]
    assert found["figures"] == []
    assert "The settings are equal." in bench("diff-protocol", "ci", "ci", "--results", tmp_path).out


def test_two_rows_of_the_store(bench, stored):
    with Store.of(stored) as store:
        runs = {run.protocol.content["training"]["epochs"]: run for run in store.runs() if run.method == "pgd_at"}
    first, second = runs[2], runs[3]
    words = ["diff-protocol", first.fingerprint, second.fingerprint, "--results", stored]
    found = json.loads(bench(*words, "--json").out)
    assert [one["name"] for one in found["settings"]] == ["evaluation.final.pgd.steps", "training.epochs"]
    figures = {(one["attack"], one["checkpoint"]): one for one in found["figures"]}
    assert {attack for attack, _ in figures} == {"Clean", "AutoAttack"}, "PGD has other settings"
    assert figures["AutoAttack", "best"]["difference"] == pytest.approx(0.095)
    assert figures["AutoAttack", "gap"]["difference"] == pytest.approx(0.195)
    assert (figures["Clean", "best"]["seeds_a"], figures["Clean", "best"]["seeds_b"]) == (2, 1)
    shown = bench(*words, "--format", "markdown").out
    assert "| training.epochs | 2 | 3 |" in shown
    assert "+9.50" in shown
    page = bench(*words, "--format", "html").out
    assert page.startswith("<!DOCTYPE html>")
    assert "training.epochs" in page
    assert "<script" not in page


def test_methods_of_one_protocol(bench, stored):
    run = next(stored.glob("runs/fomo*")).name
    pgd_at = next(path.name for path in sorted(stored.glob("runs/pgd-at-seed1*")))
    found = json.loads(bench("diff-protocol", run, pgd_at, "--results", stored, "--json").out)
    names = [one["name"] for one in found["settings"]]
    assert names == ["methods.method.name", "methods.method.params.rate"]


def test_what_is_refused(bench, stored):
    for words, said in (
        (("pgd_at", "ci"), "several protocols"),
        (("fomu", "ci"), "did you mean 'fomo'?"),
        (("none.yaml", "ci"), "none.yaml"),
    ):
        done = bench("diff-protocol", *words, "--results", stored)
        assert (done.code, done.out) == (2, ""), done.err
        assert said in done.err
