"""The campaigns of `tests/campaigns/faults.py` in small: some kills, some failing disks, two runs at once."""

import os
import random
import shutil
import signal
from collections import Counter

import pytest

from bench.storage.run_folder import run_folders
from bench.storage.verify import folder_damage

from ..campaigns.processes import Act, Bed, Operations, epochs_begun, start, warm

ONE = ("--methods", "fomo")  # whose state is its own


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bed")
    warm(folder)
    return Bed(folder)


@pytest.fixture(scope="module")
def undisturbed(bed):
    """What the cell comes to, and how many operations that takes."""
    operations = Operations(bed.folder / "undisturbed")
    run = bed.command(bed.folder / "undisturbed", *ONE, operations=operations)
    assert run.wait() == 0, run.said
    return bed.state(bed.folder / "undisturbed"), operations.count


def test_kills_lose_nothing(bed, undisturbed):
    expected, count = undisturbed
    results, trained, chance = bed.folder / "killed", bed.folder / "trained", random.Random(0)
    for _ in range(5):
        act = Act(chance.randint(count // 10, count // 3), "kill")
        assert bed.command(results, *ONE, operations=Operations(results, act), trained=trained).wait() in {-9, 0}
    assert bed.command(results, *ONE, trained=trained).wait() == 0
    assert bed.state(results) == expected
    assert sum(count - 1 for count in Counter(epochs_begun(trained)).values()) <= 5


@pytest.mark.parametrize(("error", "lasting"), [("ENOSPC", True), ("EIO", False)])
def test_a_failing_disk_loses_nothing(bed, undisturbed, error, lasting):
    expected, count = undisturbed
    for at in random.Random(0).sample(range(1, count + 1), 3):
        results = bed.folder / "failing"
        run = bed.command(results, *ONE, operations=Operations(results, Act(at, error, lasting)))
        assert run.wait() in {0, 2, 3}, f"operation {at}: {run.said}"
        assert "Traceback" not in run.said
        assert bed.command(results, *ONE).wait() == 0, f"operation {at}"
        assert bed.state(results) == expected, f"operation {at}"
        assert [folder_damage(folder) for folder in run_folders(results)] == [[]]
        shutil.rmtree(results)


def test_a_driver_that_is_killed_alone_is_followed_at_once(bed, undisturbed):
    """Its worker notices within a second that it is alone; the next run waits for that, and calls nothing busy."""
    results = bed.folder / "orphaned"
    run = bed.command(results, *ONE)
    while not list(results.glob("runs/*/epochs.jsonl")):
        assert run.wait(0.01) is None, run.said
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    again = bed.command(results, *ONE)
    assert again.wait() == 0, again.said
    assert bed.state(results) == undisturbed[0]


def test_two_runs_at_once_share_the_work(bed):
    results, trained = bed.folder / "shared", bed.folder / "by"
    words = ("run", bed.suite, "--results", results, "--jobs", 1)
    runs = [start(*words, output=bed.folder / f"said-{number}", trained=trained) for number in range(2)]
    assert {run.wait() for run in runs} <= {0, 3}
    for run in runs:
        assert run.code == 0 or "run folder is locked by another process" in run.said
    assert bed.command(results).wait() == 0
    assert sorted(epochs_begun(trained)) == [f"{method} {epoch}" for method in ("fomo", "pgd_at") for epoch in range(3)]
