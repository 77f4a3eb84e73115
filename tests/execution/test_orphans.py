"""All processes of a command end within seconds of the driver, however that ends; the next run resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.config.suite import load_suite
from bench.execution.watch import Watcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are listed by /proc")

SECONDS = 30


@pytest.fixture(autouse=True)
def hangups_are_received():
    """Programs started under `nohup` ignore SIGHUP, and so do theirs."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def alive(session):
    """Return the processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if of == str(session) and state != "Z":
            found.append(int(path.parent.name))
    return found


def start(*words):
    command = [sys.executable, "-m", "bench", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def path(tmp_path, tiny_suite):
    def write(changes, more=""):
        text = tiny_suite
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "suite.yaml").write_text(text + more)
        return tmp_path / "suite.yaml"

    return write


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_end_with_their_driver(path, tmp_path, number, devices):
    if devices > len(os.sched_getaffinity(0)):
        pytest.skip("there are too few cores")
    suite = path({"epochs: 2": "epochs: 1000"}, f"execution: {{threads: 1, devices: {devices}}}\n")
    (cell,) = load_suite(str(suite)).cells
    driver = start("run", suite, "--results", tmp_path / "results")
    try:
        (state,) = Watcher(tmp_path / "results", [cell]).states()
        assert wait_until(lambda: len(state.folder.epochs()) > 1, 120), driver.poll()
        assert len(alive(driver.pid)) > 1 + devices
        os.kill(driver.pid, number)  # the driver alone
        assert driver.wait(SECONDS) == (-9 if number == signal.SIGKILL else 130)
        assert wait_until(lambda: not alive(driver.pid), SECONDS), alive(driver.pid)
        epochs = len(state.folder.epochs())
    finally:
        for process in alive(driver.pid):
            os.kill(process, signal.SIGKILL)
        _, err = driver.communicate()
    assert "Traceback" not in err
    assert 1 < epochs < 1000
    if number != signal.SIGKILL:
        return
    again = start("run", suite, "--results", tmp_path / "results")
    try:
        assert wait_until(lambda: len(state.folder.epochs()) > epochs, 120)
    finally:
        again.terminate()
        again.communicate()
    assert "resumed after epoch" in state.folder.log.read_text()


def test_measuring_processes_end_with_the_command(path):
    command = start("speed", path({}), "--repetitions", 1000, "--threads", 1)
    try:
        assert wait_until(lambda: len(alive(command.pid)) > 2, 60), command.poll()
        command.kill()
        command.wait()
        assert wait_until(lambda: not alive(command.pid), SECONDS), alive(command.pid)
    finally:
        for process in alive(command.pid):
            os.kill(process, signal.SIGKILL)
        command.communicate()
