"""What do a thousand cells cost whoever looks after them? The driver's processor time, and the store's speed.

`tox -e scale` runs this. A hundred cells sleep at a time, so that whatever is busy is not the cells.
"""

import importlib
import os
import sys
import time
from pathlib import Path

import pytest

from bench.cli.progress import View
from bench.config.suite import load_suite
from bench.execution import local
from bench.execution.driver import RetryPolicy, run_planned
from bench.execution.executor import Paths
from bench.execution.local import Allocation, LocalExecutor
from bench.execution.plan import plan
from bench.execution.watch import Watcher
from bench.storage.ingest import ingest_results
from bench.storage.store import Store

sys.path.insert(0, str(Path(__file__).parent))  # workers import it by its name
fake_cells = importlib.import_module("fake_cells")

CELLS = int(os.environ.get("FAKE_CELLS", "1000"))
AT_ONCE = int(os.environ.get("FAKE_AT_ONCE", "100"))

SUITE = """\
name: thousand
dataset: {name: digits, validation: 200}
model: small_cnn
threat: {norm: linf, eps: 0.15}
training: {epochs: 200, batch_size: 64}
evaluation:
  final: [clean, {name: pgd, steps: 20}, {name: cw, steps: 20}]
methods: [pgd_at]
seeds: [%s]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scale") / "results"


def test_a_thousand_cells_a_hundred_at_once(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "work_in_process", fake_cells.pretend)
    (tmp_path / "suite.yaml").write_text(SUITE % ", ".join(map(str, range(CELLS))))
    began = time.monotonic()
    loaded = load_suite(str(tmp_path / "suite.yaml"))
    states = plan(loaded.cells, results)
    print(f"\nplanned in {time.monotonic() - began:.1f} s")
    executor = LocalExecutor(Allocation((("cpu",),) * AT_ONCE, 1), Paths(results, None))
    began, used = time.monotonic(), time.process_time()
    most = 0
    with View(quiet=True) as view:

        def watch(states):
            nonlocal most
            most = max(most, sum(state.status == "running" for state in states))
            view.update(states)

        run_planned(states, executor, Paths(results, None), None, RetryPolicy(), watch)
    wall, cpu = time.monotonic() - began, time.process_time() - used
    print(
        f"{CELLS} cells of {fake_cells.SECONDS:g} s, {most} at once: {wall:.0f} s, {100 * cpu / wall:.1f} % of a core"
    )
    assert {state.status for state in states} == {"finished"}, {state.reason for state in states}
    assert not any(state.attempts for state in states)
    assert most >= 0.9 * AT_ONCE
    assert cpu < 0.1 * wall
    with Store.of(results) as store:
        runs = store.runs()
    assert sorted(run.seed for run in runs) == [*range(CELLS)]
    assert {run.status for run in runs} == {"finished"}


def test_a_thousand_runs_are_taken_in(results: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    taken = ingest_results(results, f"sqlite:///{tmp_path}/again.sqlite")
    seconds = time.monotonic() - began
    size = (tmp_path / "again.sqlite").stat().st_size
    print(
        f"\n{len(taken)} runs of {fake_cells.EPOCHS} epochs and 9 outcomes of {fake_cells.IMAGES} images taken in "
        f"in {seconds:.1f} s, {len(taken) / seconds:.0f} a second; a store of {size / len(taken) / 1024:.0f} KiB a run"
    )
    assert len(taken) / seconds > 100
    folders = sum(path.stat().st_size for path in (results / "runs").rglob("*") if path.is_file())
    print(f"run folders without weights: {folders / len(taken) / 1024:.0f} KiB each")


def test_watching_them_costs_little(results: Path) -> None:
    watcher, began = Watcher(results), time.process_time()
    assert len(watcher.look()) == CELLS
    found, began = time.process_time() - began, time.process_time()
    for _ in range(20):
        watcher.look()
    look = (time.process_time() - began) / 20
    print(f"\n`bench watch` on {CELLS} cells: {found:.1f} s to find them, {look:.3f} s for each further look")
