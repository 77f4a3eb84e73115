"""The regression gate on snapshots made by hand, where every figure can be computed by hand, and on real training."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind
from scipy.stats import t as student

from bench.attacks.outcome import PackedBits
from bench.config.suite import load_suite
from bench.errors import BenchError, DamagedFile, NotComparable, NothingMeasured
from bench.regression import formats
from bench.regression.baseline import Snapshot, read_baseline, snapshot, write_baseline
from bench.regression.evidence import least_spread, students_t
from bench.regression.gate import LEVEL, check
from bench.reporting.statistics import holm
from bench.storage.store import Store
from bench.utils.files import fingerprint, write_record

IMAGES = 100
PROTOCOL = {"dataset": {"name": "digits"}, "training": {"epochs": 10, "attack": {"steps": 10}}}


def judged(attack, right):
    verdicts = np.arange(IMAGES) < right if isinstance(right, int) else right
    return {
        "attack": attack,
        "count": IMAGES,
        "right": int(verdicts.sum()),
        "verdicts": PackedBits.pack(verdicts).text,
    }


def cell(seed, robust=60, *, clean=90, last=None, loss=0.5, trained=0.8, weights=None, collapsed=()):
    """Return a finished cell. `robust`, `clean`: images right, or the verdicts; `last`: of the last checkpoint."""
    checkpoints = {
        name: {
            "weights": weights or f"{seed}-{loss}",
            "collapsed": name in collapsed,
            "judged": [judged("Clean", clean), judged("PGD-20", right)],
        }
        for name, right in (("best", robust), ("last", robust if last is None else last))
    }
    training = {"loss": loss + seed % 9 / 1000, "robust": trained}
    return {"seed": seed, "status": "finished", "training": training, **checkpoints}


def of(*cells, protocol=PROTOCOL, **rows):
    """Return a snapshot with one row PGD-AT of `cells`, or with several rows by label."""
    return Snapshot.model_validate(
        {
            "format": 1,
            "suite": "ci",
            "fingerprint": fingerprint(protocol),
            "protocol": protocol,
            "made_with": [{"versions": {"torch": "2.15"}, "cpu": "A Processor"}],
            "rows": [
                {"label": label, "method": label.lower(), "version": 1, "params": {}, "seeds": list(seeds)}
                for label, seeds in (rows or {"PGD-AT": cells}).items()
            ],
        }
    )


BASE = of(*(cell(seed, robust) for seed, robust in enumerate((60, 62, 61, 59, 63))))


def changed(found):
    return {(one.row, one.figure): one.verdict for one in found.findings if one.verdict != "unchanged"}


def figure(found, name):
    (one,) = (one for one in found.findings if one.figure == name)
    return one


# --- effect and evidence ---------------------------------------------------------------------------------------------


def test_the_same_runs_have_not_changed():
    found = check(BASE, BASE)
    assert changed(found) == {}
    assert found.exit_code() == 0
    assert {one.change for one in found.findings} == {0.0}
    assert "5 of 5 cells" in " ".join(found.notes)


def test_other_seeds_are_compared_as_samples_by_students_t():
    found = check(of(*(cell(seed, robust, loss=0.6) for seed, robust in ((7, 50), (8, 52), (9, 54)))), BASE)
    one = figure(found, "PGD-20 at best")
    expected = ttest_ind([0.50, 0.52, 0.54], [0.60, 0.62, 0.61, 0.59, 0.63], equal_var=True)
    assert one.p == pytest.approx(expected.pvalue)
    assert (one.baseline, one.run, one.change) == pytest.approx((0.61, 0.52, -0.09))
    assert (one.seeds, one.test) == ((5, 3), "seeds")
    assert one.verdict == "regression"
    assert found.exit_code() == 1


def test_a_drop_within_the_tolerance_is_none_however_sure_it_is():
    run = of(*(cell(seed, clean=84) for seed in (7, 8, 9)))
    base = of(*(cell(seed, clean=90) for seed in range(5)))
    found = check(run, base, tolerance=6.1)
    one = figure(found, "Clean at best")
    assert one.p == pytest.approx(2 * student.cdf(-0.06 / (0.01 * math.sqrt(1 / 5 + 1 / 3)), 6)), "the floor: one image"
    assert one.adjusted < LEVEL
    assert changed(found) == {}
    both = {("PGD-AT", f"Clean at {name}"): "regression" for name in ("best", "last")}
    assert changed(check(run, base, tolerance=5.9)) == both


def test_a_large_drop_that_seeds_explain_is_none():
    base = of(*(cell(seed, robust) for seed, robust in enumerate((40, 70, 55, 65, 45))))
    run = of(*(cell(seed, robust) for seed, robust in ((7, 42), (8, 60), (9, 50))))
    found = check(run, base)
    assert figure(found, "PGD-20 at best").change == pytest.approx(-0.0433, abs=1e-4)
    assert changed(found) == {}


def test_one_seed_is_judged_by_the_spread_of_the_baseline():
    assert changed(check(of(cell(9, 58)), BASE)) == {}
    one = figure(check(of(cell(9, 40)), BASE), "PGD-20 at best")
    pooled = math.sqrt(0.001 / 4)  # only the baseline has deviations: 1, 1, 0, 2, 2 hundredths
    assert one.verdict == "regression"
    assert one.p == pytest.approx(2 * student.cdf(-0.21 / (pooled * math.sqrt(1 + 1 / 5)), 4))


def test_one_other_seed_on_each_side_cannot_be_judged():
    found = check(of(cell(1, 60)), of(cell(0, 60)))
    assert found.exit_code() == 4
    assert "one seed on each side" in found.incomplete[0]
    assert check(of(cell(0, 60)), of(cell(0, 60))).exit_code() == 0, "the same seed, repeated exactly"


def test_an_improvement_is_reported_and_under_attack_it_is_suspicious():
    run = of(*(cell(seed, robust) for seed, robust in ((7, 80), (8, 82), (9, 81))))
    found = check(run, BASE)
    assert set(changed(found).values()) == {"improvement"}
    assert (found.exit_code(), found.exit_code(accept_improvements=True)) == (1, 0)
    clean = check(of(*(cell(seed, 61, clean=95) for seed in (7, 8, 9))), BASE)
    assert set(changed(clean)) == {("PGD-AT", "Clean at best"), ("PGD-AT", "Clean at last")}
    assert clean.exit_code() == 0


def test_training_is_watched():
    found = check(of(*(cell(seed, 61, loss=0.65) for seed in (7, 8, 9))), BASE)
    assert changed(found) == {("PGD-AT", "training likelihood"): "regression"}
    one = figure(found, "training likelihood")
    assert one.baseline == pytest.approx(np.mean([math.exp(-0.5 - seed / 1000) for seed in range(5)]))
    assert changed(check(of(*(cell(seed, 61, trained=0.7) for seed in (7, 8, 9))), BASE)) == {
        ("PGD-AT", "training accuracy"): "regression"
    }


def test_best_and_last_are_figures_of_their_own():
    run = of(*(cell(seed, 61, last=40) for seed in (7, 8, 9)))
    assert changed(check(run, BASE)) == {("PGD-AT", "PGD-20 at last"): "regression"}


# --- many figures ----------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


def test_the_least_spread_by_hand():
    one = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)  # one image of four differs: variance 1/2
    assert least_spread([one]) == pytest.approx(max(1 / 4, math.sqrt(0.5 / 4 / 4)))
    many = np.zeros((2, 100), bool)
    many[0, ::2], many[1, 1::2] = True, True  # every image differs, and the accuracies are equal
    assert least_spread([many]) == pytest.approx(math.sqrt(0.5 / 100))
    assert least_spread([many, many[:1]]) == pytest.approx(math.sqrt(0.5 / 100)), "one seed alone says nothing"
    assert least_spread([many[:1], many[1:]]) == 1 / 100


def test_seeds_that_agree_by_luck_make_nothing_certain():
    """Two networks that are right about other halves have one accuracy, and still say how far a third may lie."""
    halves = [np.roll(np.arange(IMAGES) < 50, 50 * seed) for seed in range(2)]
    base = of(*(cell(seed, half) for seed, half in enumerate(halves)))
    found = check(of(*(cell(seed, 45) for seed in (7, 8))), base)
    assert figure(found, "PGD-20 at best").p == pytest.approx(students_t([0.5, 0.5], [0.45, 0.45], 0.05))
    assert changed(found) == {}


def test_unchanged_code_rarely_raises_an_alarm():
    """5 against 5 seeds drawn from one distribution, many times: at most `LEVEL` of checks raise one, give or take."""
    draws = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        rights, losses = draws.normal(60, 2, (2, 2, 5)).round().astype(int), draws.normal(0.5, 0.02, (2, 2, 5))
        base, run = (
            of(
                **{
                    f"R{row}": [cell(9 * side + seed, int(rights[side, row, seed]), loss=losses[side, row, seed])
                                for seed in range(5)]
                    for row in (0, 1)
                }
            )
            for side in (0, 1)
        )  # fmt: skip
        alarms += check(run, base, tolerance=0).exit_code() != 0
    assert binomtest(alarms, 400, LEVEL, alternative="greater").pvalue > 0.001


# --- where training repeats ------------------------------------------------------------------------------------------


def test_the_same_networks_are_tested_over_images():
    rights = (60, 62, 61)
    base = of(*(cell(seed, right, weights="equal") for seed, right in enumerate(rights)))
    run = of(*(cell(seed, right - 10, weights="equal") for seed, right in enumerate(rights)))
    one = figure(check(run, base), "PGD-20 at best")
    assert one.test == "images"
    assert one.p == pytest.approx(2 * 0.5**12), "images 50 to 61 were lost in one seed or more, none was won"
    assert one.verdict == "regression"


def test_verdicts_that_flip_both_ways_show_where_training_repeats():
    early, late = np.arange(IMAGES) < 60, np.arange(IMAGES) >= 40
    base = of(*(cell(seed, early) for seed in range(3)))
    run = of(*(cell(seed, late) for seed in range(3)))
    found = check(run, base)
    assert figure(found, "PGD-20 at best").change == 0
    assert figure(found, "flipped results, PGD-20 at best").change == 0.8
    assert "flipped" in figure(found, "flipped results, PGD-20 at best").why
    assert found.exit_code() == 1
    other = of(*(cell(seed, late, loss=0.51) for seed in range(3)))
    assert check(other, base).exit_code() == 0, "another training: the flips may be its own"
    assert "0 of 3 cells" in " ".join(check(other, base).notes)


# --- cells and rows that are not there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken", [{"seed": 2, "status": "diverged"}, cell(2, 10, loss=0.51, collapsed=("best", "last"))]
)
def test_a_cell_that_diverged_or_collapsed_is_a_regression(broken):
    others = [cell(seed, right) for seed, right in ((0, 60), (1, 62))]
    found = check(of(*others, broken), BASE)
    assert changed(found) == {("PGD-AT", f"seed 2 at {name}"): "regression" for name in ("best", "last")}
    assert figure(found, "PGD-20 at best").run == pytest.approx(0.61), "it is not averaged"
    expected = of(*others, broken)
    assert check(expected, expected).exit_code() == 0, "the baseline has it too"
    assert check(of(*others, {**broken, "seed": 9}), BASE).exit_code() == 1


def test_a_fall_after_best_counts_at_last_alone():
    fallen = cell(2, 61, last=3, loss=0.51, collapsed=("last",))
    assert changed(check(of(cell(0), cell(1), fallen), BASE)) == {("PGD-AT", "seed 2 at last"): "regression"}


def test_rows_and_cells_that_are_missing_or_new_are_named():
    base = of(A=[cell(0), cell(1)], B=[cell(0), cell(1)])
    run = of(A=[cell(0), {"seed": 1, "status": "failed"}], C=[cell(0), cell(1)])
    found = check(run, base)
    assert found.missing == ("B is in the baseline but not in the suite", "A seed 1 has no results: failed")
    assert found.new == ("C",)
    assert found.exit_code() == 4
    raised = base.model_copy(update={"rows": (base.rows[0].model_copy(update={"version": 2}), base.rows[1])})
    assert "A in version 1 (now 2) is in the baseline" in check(raised, base).missing[0]


def test_a_regression_outweighs_what_is_missing():
    base = of(A=[cell(seed, 60) for seed in range(5)], B=[cell(0), cell(1)])
    assert check(of(A=[cell(seed, 30) for seed in range(7, 12)]), base).exit_code() == 1


def test_what_is_not_comparable():
    other = {**PROTOCOL, "training": {"epochs": 8, "attack": {"steps": 10}}}
    with pytest.raises(NotComparable, match=r"training.epochs \(10, 8\)"):
        check(of(cell(0), protocol=other), BASE)
    with pytest.raises(NothingMeasured, match="nothing to check"):
        check(of({"seed": 0, "status": "interrupted"}, {"seed": 1, "status": "not run"}), BASE)
    half = cell(0)
    for name in ("best", "last"):
        half[name]["judged"] = [{"attack": "Clean", "count": 8, "right": 8, "verdicts": "/w=="}] * 2
    with pytest.raises(NotComparable, match="images"):
        check(of(half), BASE)


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_holds_everything_and_the_same_runs_give_the_same_bytes(tmp_path):
    path = tmp_path / "new" / "ci.json"
    write_baseline(path, BASE)
    first = path.read_bytes()
    assert read_baseline(path) == BASE
    write_baseline(path, read_baseline(path))
    assert path.read_bytes() == first
    assert len(first.splitlines()) > 100, "one line for each value, so that a diff shows which moved"
    assert not list(path.parent.glob(".*")), "nothing temporary is left"


def damaged(tmp_path, change):
    path = tmp_path / "ci.json"
    content = BASE.model_dump(mode="json", exclude_none=True)
    change(content)
    write_record(path, content)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(format=2), "format 2"),
        (lambda content: content.pop("rows"), "rows"),
        (lambda content: content["rows"][0]["seeds"][0]["best"]["judged"][0].update(right=3), "verdicts"),
        (lambda content: content["rows"][0]["seeds"][0]["best"]["judged"][0].update(verdicts="&"), "rows.0.seeds.0"),
        (lambda content: content.update(protocol={}), "fingerprint"),
        (lambda content: content["rows"][0]["seeds"][0].update(status="failed"), "finished"),
        (lambda content: content.update(surprise=1), "surprise"),
    ],
)
def test_a_wrong_baseline_is_one_sentence(tmp_path, change, said):
    with pytest.raises(BenchError, match=said) as error:
        read_baseline(damaged(tmp_path, change))
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_baseline(tmp_path):
    path = tmp_path / "ci.json"
    with pytest.raises(BenchError, match="create it with `bench check SUITE --update`"):
        read_baseline(path)
    with pytest.raises(BenchError, match="it is no file"):
        read_baseline(tmp_path)
    path.write_text("{}")
    with pytest.raises(DamagedFile):
        read_baseline(path)
    write_baseline(path, BASE)
    path.write_text(path.read_text().replace('"right": 60', '"right": 61', 1))
    with pytest.raises(DamagedFile, match="SHA-256"):
        read_baseline(path)


def test_a_baseline_needs_every_cell():
    with pytest.raises(NothingMeasured, match=r"PGD-AT seed 1 \(not run\)"):
        of(cell(0), {"seed": 1, "status": "not run"}).require_complete()
    with pytest.raises(NothingMeasured, match="all diverged"):
        of({"seed": 1, "status": "diverged"}).require_complete()
    of(cell(0), {"seed": 1, "status": "diverged"}).require_complete()


# --- reports ---------------------------------------------------------------------------------------------------------

NASTY = "A|B <script> & \x01 ]]> سلام 中文"


def nasty():
    base = of(**{NASTY: [cell(seed) for seed in range(3)], "gone": [cell(0), cell(1)]})
    run = of(**{NASTY: [cell(seed, 20) for seed in range(3, 6)], "new": [cell(0), cell(1)]})
    return check(run, base)


def test_junit_is_well_formed_and_counts_right():
    root = ElementTree.fromstring(formats.junit(nasty()))
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(cases) == 6 + 1 + 1
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 2
    assert (suite.get("errors"), suite.get("skipped")) == ("1", "1")
    assert all(one.get("name") and one.get("classname") and one.get("time") for one in cases)
    assert {one.get("classname") for one in cases} >= {f"ci.{NASTY}".replace("\x01", " ")}
    assert "points" in suite.find("testcase/failure").get("message")
    error = ElementTree.fromstring(formats.junit_error("ci", NothingMeasured("nothing <measured> \x02")))
    assert error.find("testsuite").get("errors") == "1"
    assert "<measured>" in error.find("testsuite/testcase/error").get("message")


def test_markdown_shows_names_as_they_are():
    text = formats.markdown(nasty())
    assert text.startswith("### ci: regression \\(".replace("\\(", "("))
    assert "A\\|B &lt;script&gt; &amp;" in text
    assert "<script>" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(line.replace("\\|", "").split("|")) for line in table} == {10}
    assert "missing: gone is in the baseline" in text


def test_data_are_json():
    found = json.loads(json.dumps(formats.as_data(nasty()), allow_nan=False))
    assert found["exit_code"] == 1
    assert {one["verdict"] for one in found["findings"]} == {"regression", "unchanged"}


# --- real training ---------------------------------------------------------------------------------------------------

REAL = """\
name: real
dataset: {name: digits, validation: 200}
model: small_cnn
threat: {norm: linf, eps: 0.15}
training:
  epochs: 4
  batch_size: 64
  attack: {name: pgd, steps: 5, step_size: 0.06}
evaluation:
  track: {attack: {name: pgd, steps: 2, step_size: 0.1}, test: false}
  final: [{name: pgd, steps: 10, step_size: 0.04}]
methods: [pgd_at]
seeds: [0, 1, 2]
execution: {threads: 1}
"""


@pytest.mark.slow
def test_a_planted_regression_is_seen_and_other_seeds_raise_no_alarm(tmp_path):
    """As in tests/campaigns/gate.py, with less training: one defect, one run with other seeds."""

    def run(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        command = [sys.executable, "-m", "bench", "run", str(path), "--results", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with Store.of(tmp_path / name) as store:
            return snapshot(store, load_suite(str(path)))

    plant = Path(__file__).parents[1] / "campaigns" / "plants" / "steps.py"
    base = run("base", REAL)
    (tmp_path / "planted.yaml").write_text(REAL + f"plugins: [{plant}]\n")
    command = [sys.executable, "-m", "bench", "run", str(tmp_path / "planted.yaml"), "--results", str(tmp_path / "p")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    with Store.of(tmp_path / "p") as store:
        planted = snapshot(
            store, load_suite(str(tmp_path / "base.yaml"))
        )  # loading the plant would change this process
    found = check(planted, base)
    assert ("PGD-AT", "PGD-10 at last") in {key for key, verdict in changed(found).items() if verdict == "regression"}

    other = check(run("other", REAL.replace("[0, 1, 2]", "[3, 4, 5]")), base)
    assert other.exit_code() == 0, changed(other)
    assert {one.test for one in other.findings} == {"seeds"}


def test_runs_on_other_images_are_not_compared():
    def on(**data):
        return BASE.model_copy(update={"made_with": ({**BASE.made_with[0], "data": data},)})

    known = on(training="a" * 64, test="b" * 64)
    assert "the runs of an older version did not record the images" in " ".join(check(BASE, known).notes)
    assert "the baseline of an older version did not record the images" in " ".join(check(known, BASE).notes)
    same = check(known, known)
    assert (same.exit_code(), "images" in " ".join(same.notes)) == (0, False)
    with pytest.raises(NotComparable, match=r"other data than the baseline's: test images \(b+: baseline; c+: now\)"):
        check(on(training="a" * 64, test="c" * 64), known)
