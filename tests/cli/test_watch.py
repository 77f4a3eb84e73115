"""`bench watch` beside a `bench run` that it knows nothing of."""

import json
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
def test_watching_a_run(bench, load, tmp_path):
    load({"epochs: 2": "epochs: 30", "seeds: [0]": "seeds: [0, 1]"})
    results, suite = tmp_path / "results", tmp_path / "suite.yaml"
    command = [sys.executable, "-m", "bench", "run", str(suite), "--results", str(results), "--json"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
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


def test_nothing_to_watch(bench, tmp_path):
    result = bench("watch", "--results", tmp_path)
    assert result.code == 4
    assert result.err.startswith("bench: there is no run folder in")


def test_a_file_is_no_results_folder(bench, tmp_path):
    (tmp_path / "file").touch()
    result = bench("watch", "--results", tmp_path / "file")
    assert (result.code, "is no folder" in result.err) == (2, True)


@pytest.mark.parametrize("ending", ["failed", "diverged"])
def test_a_cell_that_failed_gives_exit_code_3(bench, load, tmp_path, ending):
    from bench.storage.run_folder import RunFolder

    cell = load().cells[0]
    folder = RunFolder.of(cell, tmp_path)
    folder.begin(cell, {})
    folder.finish(ending, reason="so it is")
    result = bench("watch", "--results", tmp_path)
    assert result.code == 3
    assert "so it is" in result.out
