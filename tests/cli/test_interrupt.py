"""Ctrl-C, a polite end and a kill at any moment: what is saved is whole, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from filelock import FileLock

from bench.cli.options import interruptible
from bench.config.suite import load_suite
from bench.execution.watch import Watcher
from bench.execution.worker import Job, execute
from bench.storage.run_folder import RunFolder
from bench.testing.conformance import curve


@pytest.fixture
def path(suite):
    return suite({"epochs: 2": "epochs: 12", "seeds: [0]": "seeds: [0]\nexecution: {threads: 1}"})


def start(path, results):
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "run", str(path), "--results", str(results)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_epochs(folder, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder.path / "epochs.jsonl").exists() and len(folder.epochs()) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {count} epochs in {folder.path}")


def result_of(folder):
    verdicts = {key: (record["correct"], record["weights_sha256"]) for key, record in folder.read_outcomes().items()}
    return curve(folder.epochs()), verdicts


WAYS = {
    "interrupt": lambda process: os.killpg(process.pid, signal.SIGINT),  # as a terminal does it: to the whole group
    "terminate": lambda process: process.terminate(),
    "kill": lambda process: os.killpg(process.pid, signal.SIGKILL),
}


@pytest.mark.parametrize("ways", [("interrupt",), pytest.param(tuple(WAYS), marks=pytest.mark.slow)], ids=" ".join)
def test_interrupted_and_continued(path, tmp_path, ways):
    (cell,) = load_suite(str(path)).cells
    undisturbed = Job(cell, tmp_path / "whole", ("cpu",), None, 1)
    assert execute(undisturbed) == "finished"
    folder = RunFolder.of(cell, tmp_path / "results")
    for number, way in enumerate(ways):
        process = start(path, tmp_path / "results")
        wait_for_epochs(folder, 2 + 3 * number)
        WAYS[way](process)
        _, err = process.communicate(timeout=60)
        assert 2 <= len(folder.epochs()) < 12
        assert "Traceback" not in err
        if way != "kill":
            assert process.returncode == 130
            assert [state.status for state in Watcher(tmp_path / "results").states()] == ["interrupted"]
            assert "saved in" in err
            assert f"resume with: bench run {path} --results {tmp_path / 'results'}" in err

    process = start(path, tmp_path / "results")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "PGD-AT" in out
    assert result_of(folder) == result_of(undisturbed.folder)
    assert folder.log.read_text().count("resumed after epoch") == len(ways)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_saved_is_said(capsys, number):
    def interrupted():
        with interruptible(lambda: "two epochs are saved"):
            os.kill(os.getpid(), number)
            time.sleep(10)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        with pytest.raises(typer.Exit) as ended:
            interrupted()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "bench: interrupted; two epochs are saved\n"


def test_a_cell_that_another_run_holds_is_left_alone(bench, path, tmp_path):
    folder = RunFolder.of(load_suite(str(path)).cells[0], tmp_path / "results")
    folder.path.mkdir(parents=True)
    with FileLock(folder.lock_file):
        result = bench("run", path, "--results", tmp_path / "results")
    assert result.code == 3
    assert "run folder is locked by another process" in result.err
    assert folder.epochs() == []
