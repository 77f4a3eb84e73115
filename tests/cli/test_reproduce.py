"""`bench reproduce`: a suite's results beside the published figures that it names."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.config.suite import load_suite
from bench.reporting.leaderboard import leaderboards
from bench.reporting.published import COLUMNS
from bench.reporting.reproduction import reproduction
from bench.storage.store import Store

from ..storage.conftest import make_run, results

__all__ = ["make_run", "results"]

SUITE = """
name: digits_paper
dataset: {name: digits, validation: 100}
model: small_cnn
threat: {norm: linf, eps: 8/255}
training: {epochs: 2}
evaluation: {final: [clean, {name: pgd, steps: 20}, autoattack]}
methods: [pgd_at]
published: [{source: another seed}]
"""
LINE = "digits,small_cnn,linf-8,pgd_at,{},20,validation,1,run,another seed"


def verdicts(share, seed, images=200):
    """Return verdicts with about this share right; seeds differ on a tenth of the images."""
    hardness = np.random.default_rng(0).random(images)
    hardness += 0.05 * np.random.default_rng(seed).standard_normal(images)
    return hardness < share


@pytest.fixture
def reproduce(bench, make_run, results, tmp_path):
    """Run `bench reproduce` on three seeds, with a published table of these figures in percent."""

    def reproduce(figures, *words, seeds=range(3), text=SUITE, line=LINE):
        path, table = tmp_path / "suite.yaml", tmp_path / "published.csv"
        path.write_text(text)
        table.write_text("\n".join([",".join(COLUMNS), line.format(",".join(map(str, figures))), ""]))
        loaded = load_suite(str(path))
        (method,) = loaded.methods
        identity = {"method": method.name, **{name: getattr(method, name) for name in ("label", "params", "version")}}
        with Store.of(results) as store:
            for seed in seeds:
                shares = {"best": (0.75, 0.5, 0.45), "last": (0.8, 0.45, 0.4)}
                found = {name: [verdicts(share, seed + 1) for share in of] for name, of in shares.items()}
                settings = {"protocol": loaded.suite.protocol, "seed": seed, "done": {"classes": 10}}
                store.ingest(make_run(found, **settings, **identity))
        return bench("reproduce", path, "--no-run", "--published", table, "--results", results, *words)

    return reproduce


def figures_of(done):
    return {(one["attack"], one["checkpoint"]): one for one in json.loads(done.out)["figures"]}


def another_seed():
    best, last = (0.75, 0.5, 0.45), (0.8, 0.45, 0.4)
    return [round(100 * float(verdicts(share, 9).mean()), 2) for share in (*best, *last)]


def test_another_seed_is_within_noise(reproduce):
    done = reproduce(another_seed(), "--json")
    assert (done.code, done.err) == (0, "")
    found = figures_of(done)
    assert len(found) == 9
    assert {one["verdict"] for one in found.values()} == {"within noise"}
    assert not found["AutoAttack", "best"]["distance"]["assumed"]


def test_a_shifted_table_is_worse_or_better(reproduce):
    shifted = [figure + 20 for figure in another_seed()[:3]] + another_seed()[3:]
    done = reproduce(shifted, "--format", "markdown")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if "| Clean | best |" in line or "| Clean | gap |" in line]
    assert re.search(r"\| worse by \d\d\.\d\d points, [\d.]+ standard errors \|", rows[0])
    assert "| better by" in rows[1], "a smaller gap is better"


def test_one_seed_assumes_noise_and_counts_images(reproduce):
    found = figures_of(reproduce(another_seed(), "--json", seeds=[0]))
    distance = found["AutoAttack", "best"]["distance"]
    share = found["AutoAttack", "best"]["ours"]
    assert distance["assumed"]
    assert distance["seed_noise"] == 0.005
    assert distance["image_noise"] == pytest.approx((share * (1 - share) / 200) ** 0.5)
    variance = 2 * (distance["seed_noise"] ** 2 + distance["image_noise"] ** 2)
    assert distance["error"] == pytest.approx(variance**0.5)


def test_not_comparable(reproduce):
    """Other attacks, another radius, a part of the dataset."""
    done = reproduce(another_seed(), line=LINE.replace(",20,", ",10,"))
    assert done.code == 4
    assert "not comparable: PGD-10, ours PGD-20" in done.out
    done = reproduce(another_seed(), line=LINE.replace("linf-8", "linf-4"))
    assert (done.code, done.out) == (4, "")
    assert "linf-4, the suite is for linf-8" in done.err
    part = SUITE.replace("validation: 100", "validation: 100, subset: {train: 0-799, test: 0-199}")
    done = reproduce(another_seed(), text=part, line=LINE.replace(",run,", ",paper,"))
    assert done.code == 4
    assert "not comparable: ours is a part of the dataset" in done.out
    assert reproduce(another_seed(), text=part).code == 0, "the other seed saw the same part"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (SUITE.replace("another seed", "no such paper"), LINE, "no line of the papers' figures"),
        (SUITE.partition("published")[0], LINE, "names no published figures"),
        (SUITE, "digits,small_cnn,linf-8,pgd_at,0.75,0.5,0.45,,,,20,test,1,run,another seed", "write percent"),
    ],
)
def test_what_is_refused(reproduce, text, line, said):
    done = reproduce(another_seed(), text=text, line=line, seeds=[])
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_an_unfinished_run_beside_a_released_curve(bench, make_run, results):
    """The shipped points of Rice's log; the fixture's epoch 0 has 69 % clean and 39 % under PGD-10."""
    loaded = load_suite("papers/rice2020_cifar10")
    (method,) = loaded.methods
    identity = {"method": method.name, **{name: getattr(method, name) for name in ("label", "params", "version")}}
    make_run({}, protocol=loaded.suite.protocol, status=None, **identity)
    done = bench("reproduce", "papers/rice2020_cifar10", "--no-run", "--results", results, "--json")
    found = figures_of(done)
    assert done.code == 0
    assert found["PGD-10", "best"]["reason"] == "no seed of ours is finished"
    epoch = found["PGD-10", "epoch 0"]
    assert (epoch["published"], epoch["ours"], epoch["verdict"]) == (0.266, 0.39, "better")
    assert ("Clean", "epoch 4") not in found, "ours has two epochs"
    assert "interrupted after 2 epochs" in done.out


def test_committed_runs_beside_another_seed(bench, tmp_path):
    """Published: what one seed of the same suite has on the same images."""
    folder = Path(__file__).parents[2] / "results" / "leaderboards" / "cifar10_small"
    with Store.of(folder, create=False) as store:
        run = next(run for run in store.runs() if run.method == "pgd_at" and run.status == "finished")
        board = leaderboards(store, protocol=run.protocol_fingerprint)[0]
    row = next(row for row in board.rows if row.method == "pgd_at")
    path, table = tmp_path / "suite.yaml", tmp_path / "published.csv"
    suite = yaml.safe_load(reproduction(board).suite)
    suite["methods"] = [entry for entry in suite["methods"] if "pgd_at" in (entry, entry.get("name"))]
    path.write_text(yaml.safe_dump({**suite, "published": [{"source": "us"}]}))
    clean, robust = (row.figures[index].best for index in (0, board.ranked_by))
    for shift, verdict in ((0, "within noise"), (0.3, "worse by")):
        cells = [f"{100 * (one.values[0] + shift):.2f}" for one in (clean, robust)]
        fields = dict.fromkeys(COLUMNS, "") | {"clean_best": cells[0], "aa_best": cells[1]}
        fields |= {"status": "run", "source": "us"}
        fields |= {"dataset": "cifar10", "architecture": suite["model"], "threat": "linf-8", "method": "pgd_at"}
        table.write_text("\n".join([",".join(COLUMNS), ",".join({**fields, "selection": "validation"}.values()), ""]))
        words = ("--no-run", "--published", table, "--results", folder, "--format", "markdown")
        done = bench("reproduce", path, *words)
        assert done.code == 0, done.err
        assert done.out.count(verdict) == 2, done.out


@pytest.mark.slow
def test_it_runs_what_is_missing(bench, tmp_path, tiny_suite):
    """Without --no-run the suite is trained first."""
    path, table = tmp_path / "suite.yaml", tmp_path / "published.csv"
    path.write_text(tiny_suite + "published: [{source: us}]\n")
    loaded = load_suite(str(path))
    method = loaded.methods[0].name
    path.write_text(tiny_suite + f"published: [{{source: us, method: {method}, row: {method}}}]\n")
    row = f"{loaded.suite.dataset.name},{loaded.suite.model},linf-{loaded.suite.threat.eps * 255:.4g},{method}"
    table.write_text("\n".join([",".join(COLUMNS), row + ",50,,,50,,,,validation,1,run,us", ""]))
    done = bench("reproduce", path, "--published", table, "--results", tmp_path / "results", "--device", "cpu")
    assert done.code == 0, done.err
    assert "Clean" in done.out


@pytest.mark.parametrize(
    ("name", "sentence"), [("x.pdf", "state one with --format"), ("none/x.md", "there is no folder")]
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(bench, tmp_path, name, sentence):
    result = bench("reproduce", "papers/rice2020_cifar10", "--results", tmp_path / "results", "-o", tmp_path / name)
    assert result.code == 2
    assert sentence in result.err
    assert not (tmp_path / "results").exists()
