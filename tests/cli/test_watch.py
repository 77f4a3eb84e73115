"""`bench watch` beside a `bench run` that it knows nothing of."""

import json
import subprocess
import sys
import time

import pytest

BENCH = [sys.executable, "-m", "bench"]


@pytest.mark.slow
def test_watching_a_run(bench, load, tmp_path):
    load({"epochs: 2": "epochs: 30", "seeds: [0]": "seeds: [0, 1]"})
    results, suite = tmp_path / "results", tmp_path / "suite.yaml"
    run = subprocess.Popen([*BENCH, "run", str(suite), "--results", str(results), "--json"], stdout=subprocess.DEVNULL)
    found, deadline = [], time.monotonic() + 120
    while time.monotonic() < deadline and not any((cell["epoch"] or 0) > 1 for cell in found):
        time.sleep(0.2)
        found = json.loads(bench("watch", suite, "--results", results, "--json").out)
    (cell,) = [cell for cell in found if (cell["epoch"] or 0) > 1][:1]
    assert cell["status"] == "running"
    assert cell["method"] == "PGD-AT"
    assert cell["host"]
    assert cell["pid"]
    assert cell["left"] > 0
    assert 0 <= cell["last"]["validation"]["robust"] <= 1

    seen = bench("watch", suite, "--results", results)  # until both have ended
    assert seen.code == 0
    assert "validation robust" in seen.err
    assert "2 cells: 2 finished" in seen.out
    assert run.wait(60) == 0
    once = bench("watch", "--results", results, "--once")
    assert (once.code, "2 cells: 2 finished" in once.out) == (0, True)


def test_nothing_to_watch(tmp_path):
    run = subprocess.run([*BENCH, "watch", "--results", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 4
    assert run.stderr.startswith("bench: there is no run folder in")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["failed", "diverged"])
def test_a_cell_that_failed_gives_exit_code_3(load, tmp_path, ending):
    from bench.storage.run_folder import RunFolder

    cell = load().cells[0]
    folder = RunFolder.of(cell, tmp_path)
    folder.begin(cell, {})
    folder.finish(ending, reason="so it is")
    run = subprocess.run([*BENCH, "watch", "--results", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 3
    assert "so it is" in run.stdout
