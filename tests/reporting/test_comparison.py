import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from bench.errors import BenchError, NotComparable, NothingMeasured
from bench.reporting.comparison import compared, differing_settings

from ..storage.conftest import DATA, protocol_of


def upto(right: int, count: int = 100) -> np.ndarray:
    return np.arange(count) < right


def figure(found, attack, checkpoint):
    (one,) = (one for one in found.figures if (one.attack, one.checkpoint) == (attack, checkpoint))
    return one


def test_two_methods_with_one_seed_each(take, store):
    take({"best": (150, 100, upto(50)), "last": (160, 90, upto(40))}, method="pgd_at")
    take({"best": (150, 100, ~upto(46)), "last": (160, 90, upto(30))}, method="fomo")
    found = compared(store, "fomo", "pgd_at")
    one = figure(found, "AutoAttack", "best")
    assert (one.a, one.b, one.difference.mean) == pytest.approx((0.54, 0.50, 0.04))
    assert one.only_a == tuple(range(50, 100))
    assert one.only_b == tuple(range(46))
    assert one.difference.p == pytest.approx(binomtest(50, 96).pvalue)
    assert one.difference.covers == "images"
    reach = norm.ppf(0.975) * math.sqrt((96 - 16 / 100) / 100**2)
    assert one.difference.interval == pytest.approx((0.04 - reach, 0.04 + reach))
    assert figure(found, "Clean", "best").difference.p == 1
    assert [(one.attack, one.checkpoint, one.images) for one in found.figures] == [
        (attack, checkpoint, images)
        for attack, images in (("Clean", 200), ("PGD-20", 200), ("AutoAttack", 100))
        for checkpoint in ("best", "last", "gap")
    ]
    assert (found.a.label, found.a.seeds, found.b.label) == ("FOMO", (0,), "PGD_AT")


def test_the_gap_of_one_seed_each(take, store):
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, method="a")
    take({"best": (150, 100, 50), "last": (160, 90, 50)}, method="b")
    gap = figure(compared(store, "a", "b"), "AutoAttack", "gap")
    assert (gap.a, gap.b, gap.difference.mean) == pytest.approx((0.1, 0.0, 0.1))
    error = np.std(np.arange(100) < 10, ddof=1) / 10  # ten images fell, and no others
    assert gap.difference.p == pytest.approx(2 * norm.cdf(-0.1 / error))
    assert gap.difference.interval == pytest.approx((0.1 - norm.ppf(0.975) * error, 0.1 + norm.ppf(0.975) * error))


def test_runs_of_different_images_are_not_paired(take, store):
    take(method="a")
    take(method="b", environment={"data": DATA | {"test": "0" * 64}})
    take(method="c", environment={"data": None})
    with pytest.raises(
        NotComparable, match=r"they used different data: test images \(7e57\w+: A seed 0; 0+: B seed 0\)"
    ):
        compared(store, "a", "b")
    assert compared(store, "a", "c")  # unknown, as the leaderboard says


def test_several_seeds(take, store):
    for seed, right in enumerate((50, 52, 54)):
        take({"best": (150, 100, right), "last": (160, 90, right - 20)}, method="a", seed=seed)
    for seed, right in enumerate((60, 62, 61)):
        take({"best": (150, 100, right), "last": (160, 90, right - 10 - seed)}, method="b", seed=seed)
    found = compared(store, "a", "b")
    one = figure(found, "AutoAttack", "best")
    assert one.difference.mean == pytest.approx(-0.09)
    assert one.difference.covers == "images and seeds"
    assert (one.only_a, one.only_b) == ((), tuple(range(52, 61))), "the majority of three seeds decides"
    gap = figure(found, "AutoAttack", "gap")
    assert (gap.a, gap.b) == pytest.approx((0.20, 0.11))
    falls = [[upto(best) ^ upto(last) for best, last in side] for side in
             (((50, 30), (52, 32), (54, 34)), ((60, 50), (62, 51), (61, 49)))]  # fmt: skip
    images = (np.mean(falls[0], 0) - np.mean(falls[1], 0)).var(ddof=1) / 100
    seeds = np.var([0.10, 0.11, 0.12], ddof=1) / 3
    error, freedom = math.sqrt(images + seeds), (images + seeds) ** 2 / (seeds**2 / 2)
    assert gap.difference.p == pytest.approx(2 * student.cdf(-0.09 / error, freedom))


def test_two_runs_and_a_run_with_a_method(take, store):
    first = take({"best": (150, 100, 50), "last": (160, 90, 40)}, seed=0)
    take({"best": (150, 100, 51), "last": (160, 90, 45)}, seed=1)
    found = compared(store, "pgd-at-seed0", "pgd-at-seed1")
    assert (found.a.seeds, found.b.seeds) == ((0,), (1,))
    assert figure(found, "AutoAttack", "best").only_b == (50,)
    assert compared(store, first.cell()["fingerprint"][:16], "pgd_at").b.seeds == (0, 1)
    with pytest.raises(BenchError, match="beginning of several runs"):
        compared(store, "pgd-at-seed", "pgd_at")
    with pytest.raises(BenchError, match="are the same"):
        compared(store, "pgd_at", "PGD_AT")


def test_rows_are_found_by_label(take, store):
    take(method="fomo", label="FOMO, 5 %", params={"fraction": 0.05})
    take(method="fomo", label="FOMO, 9 %", params={"fraction": 0.09})
    found = compared(store, "FOMO, 5 %", "FOMO, 9 %")
    assert (found.a.params, found.b.params) == ({"fraction": 0.05}, {"fraction": 0.09})
    with pytest.raises(BenchError, match=r"several rows: FOMO, 5 % \(fraction=0.05\), FOMO, 9 %"):
        compared(store, "fomo", "FOMO, 5 %")
    with pytest.raises(BenchError, match="no method and no run 'fomu'; did you mean 'fomo'"):
        compared(store, "fomu", "fomo")


def test_seeds_without_figures_are_named(take, store):
    take(method="a")
    take({"best": (150, 100, 9), "last": (160, 90, 8)}, method="a", seed=1)
    take({}, method="a", seed=2, status="diverged", done={"epoch": 1})
    take(method="b")
    assert compared(store, "a", "b").a.seeds == (0,)
    assert compared(store, "a", "b").a.left_out == ("seed 1 collapsed", "seed 2 has no results: diverged")
    assert compared(store, "a-seed1", "b").a.seeds == (1,), "asked for by name, it is shown"
    with pytest.raises(NothingMeasured, match="1 diverged"):
        compared(store, "a-seed2", "b")


def test_different_protocols_are_not_comparable(take, store):
    other = protocol_of(training={"epochs": 3})
    take(method="a")
    take(method="b", protocol=other)
    with pytest.raises(NotComparable, match=r"training.epochs \(2, 3\)") as error:
        compared(store, "a", "b")
    assert error.value.exit_code == 4
    take(method="a", protocol=other)
    assert compared(store, "a", "b").protocol == other.fingerprint
    take(method="b")
    with pytest.raises(BenchError, match="several protocols"):
        compared(store, "a", "b")
    assert compared(store, "a", "b", protocol=other.fingerprint[:8]).protocol == other.fingerprint
    with pytest.raises(NothingMeasured, match="no run of protocol ffff"):
        compared(store, "a", "b", protocol="ffff")


def test_different_images_are_not_comparable(take, store):
    take({"best": (upto(40, 150), 100, 50), "last": (upto(40, 150), 90, 40)}, method="a")
    take(method="b")
    with pytest.raises(NotComparable, match="under Clean .* 150, 200"):
        compared(store, "a", "b")


def test_versions_of_an_attack_are_named(take, store):
    take(method="a", package="1.0")
    take(method="b", package="2.0")
    found = compared(store, "a", "b")
    assert "AutoAttack: package=1.0; package=2.0" in found.variants


def test_differing_settings():
    a = {"x": {"y": 1, "z": [1, 2]}, "same": {"k": 0}, "only": "text"}
    b = {"x": {"y": 2, "z": [1, 3]}, "same": {"k": 0}}
    assert differing_settings(a, b) == ["only (text, none)", "x.y (1, 2)", "x.z ([1,2], [1,3])"]
