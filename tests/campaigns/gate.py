"""Does the gate see planted regressions, and keep still when nothing but the seeds has changed?

The commands of the documentation, on the suite `ci` and its committed baseline: 16 runs, half an hour on two cores.
`tox -e gate` runs it; an ordinary pytest does not collect it. The committed baseline is of one machine, and the planted
train mode is seen only where training repeats that machine's exactly; where it does not, a baseline is made here first.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.config.suite import shipped_suites

PLANTS = Path(__file__).parent / "plants"
BASELINE = Path(__file__).parents[2] / "results" / "baselines" / "ci.json"
SEEDS = "seeds: [0, 1, 2, 3, 4]"


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words)], capture_output=True, text=True, check=False
    )


def suite(folder: Path, seeds: range = range(5), plant: str | None = None) -> Path:
    """Write the suite `ci` with other seeds, or with a defect planted in the package that runs it."""
    text = shipped_suites()["ci"].read_text()
    assert text.count(SEEDS) == 1
    text = text.replace(SEEDS, f"seeds: {list(seeds)}")
    if plant:
        text += f"plugins: [{PLANTS / plant}.py]\n"
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def checked(path: Path, folder: Path, baseline: Path) -> tuple[int, dict]:
    """Run a suite and hold it against the baseline; return the exit code and the report."""
    ran = bench("run", path, "--results", folder / "results")
    assert ran.returncode == 0, ran.stderr
    done = bench("check", path, "--baseline", baseline, "--results", folder / "results", "--json")
    report = json.loads(done.stdout)
    changed = [finding for finding in report["findings"] if finding["verdict"] != "unchanged"]
    smallest = min(finding["adjusted"] for finding in report["findings"] if finding["adjusted"] is not None)
    print(f"{path.parent.name}: exit {done.returncode}, smallest adjusted p {smallest:.3g}")
    for found in changed:
        print("  {row}, {figure}: {verdict} {change:+.4f} by {test}, adjusted p {adjusted}".format(**found))
    return done.returncode, report


@pytest.fixture(scope="session")
def baseline(tmp_path_factory):
    """Return the committed baseline if training repeats it here, else one that is made here."""
    folder = tmp_path_factory.mktemp("unchanged")
    code, report = checked(suite(folder), folder, BASELINE)
    assert code == 0, "the committed baseline does not fit the code"
    if any(note.startswith("10 of 10 cells") for note in report["notes"]):
        return BASELINE
    made = folder / "baseline.json"
    assert (
        bench("check", suite(folder), "--update", "--baseline", made, "--results", folder / "results").returncode == 0
    )
    return made


@pytest.mark.parametrize(
    ("plant", "seen_by"),
    [
        ("steps", "PGD-20 at best"),
        ("eps", "PGD-20 at best"),
        ("eps_everywhere", "PGD-20 at best"),
        ("labels", "training likelihood"),
        ("train_mode", "flipped results, PGD-20 at last"),
    ],
)
def test_a_planted_regression_is_seen(tmp_path, baseline, plant, seen_by):
    code, report = checked(suite(tmp_path, plant=plant), tmp_path, baseline)
    assert code == 1
    assert seen_by in {finding["figure"] for finding in report["findings"] if finding["verdict"] != "unchanged"}


@pytest.mark.parametrize("number", range(10))
def test_other_seeds_raise_no_alarm(tmp_path, baseline, number):
    code, report = checked(suite(tmp_path, range(5 * number + 5, 5 * number + 10)), tmp_path, baseline)
    assert code == 0, report["verdict"]
