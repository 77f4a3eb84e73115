"""Is anything lost when a run is killed, its disk fails, or several runs share a results folder?

A small suite is disturbed again and again, continued by the same command, and must come to what it comes to
undisturbed: weights, curves, outcomes, store and leaderboard. `tox -e faults` runs this; an ordinary pytest does not
collect it. `docs/fault-tolerance.md` has the figures.
"""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.config.suite import load_suite
from bench.errors import DamagedFile
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder, run_folders
from bench.storage.store import Store
from bench.storage.verify import folder_damage

from .processes import SECONDS, Act, Bed, Operations, epochs_begun, start, warm

KILLS = 120
"""Moments at which the process group is killed: half of them at a random time, half at a random operation."""

ONE = ("--methods", "fomo")
"""Only the cell whose method keeps a state of its own."""

CLEAN = {0, 2, 3}
"""Exit codes of a run on a disk that fails: it was mended in time, it was refused, some cells could not go on."""


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    folder = tmp_path_factory.mktemp("bed")
    warm(folder)
    return Bed(folder)


@pytest.fixture(scope="session")
def undisturbed(bed: Bed) -> dict[str, Any]:
    """What the suite comes to, and how many operations and seconds that takes."""
    results = bed.folder / "undisturbed"
    operations, began = Operations(results), time.monotonic()
    run = bed.command(results, operations=operations)
    assert run.wait() == 0, run.said
    taken = time.monotonic() - began
    kinds = Counter(line.split()[1] for line in operations.names.read_text().splitlines())
    print(f"\nundisturbed: {taken:.1f} s, {operations.count} operations: {dict(kinds)}")
    return {"state": bed.state(results), "operations": operations.count, "seconds": taken, "results": results}


def phase_of(results: Path) -> str:
    """Say what a run was doing when it was killed."""
    for folder in run_folders(results):
        if folder.result() is None:
            if list(folder.checkpoints.glob(".*.tmp")):
                return "writing a checkpoint"
            if Checkpoints(folder.checkpoints).finished:
                return "evaluation"
            return str(folder.read_progress().get("phase", "starting"))
    return "storing, or between cells" if run_folders(results) else "starting"


def test_killed_at_any_moment_nothing_is_lost(bed, undisturbed):
    chance, kills, phases, runs, again = random.Random(0), 0, Counter(), 0, 0
    while kills < KILLS:
        results, trained = bed.folder / f"killed-{runs}", bed.folder / f"trained-{runs}"
        here = 0
        while True:
            at = chance.randint(1, undisturbed["operations"]) if chance.random() < 0.5 else None
            operations = Operations(results, Act(at, "kill") if at else None)
            run = bed.command(results, operations=operations, trained=trained)
            if at is None:
                run.wait(chance.uniform(0.05, undisturbed["seconds"]))
                killed = run.kill()
            else:
                run.wait()
                killed = run.code == -9
            if not killed:
                break
            kills, here = kills + 1, here + 1
            phases[phase_of(results)] += 1
        assert run.code == 0, run.said
        assert bed.state(results) == undisturbed["state"]
        repeated = sum(count - 1 for count in Counter(epochs_begun(trained)).values())
        assert repeated <= here, "more was trained twice than the epochs that were interrupted"
        again += repeated
        runs += 1
        shutil.rmtree(results)
        print(f"{kills} kills, {runs} runs", flush=True)
    print(f"\n{kills} kills in {runs} runs, {again} epochs begun twice, killed while: {dict(phases)}")


@pytest.mark.parametrize(("error", "lasting"), [("ENOSPC", True), ("EIO", False)])
def test_a_disk_that_fails_at_any_operation_loses_nothing(bed, error, lasting):
    whole, codes = bed.folder / "whole", Counter()
    count = Operations(whole)
    assert bed.command(whole, *ONE, operations=count).wait() == 0
    expected = bed.state(whole)
    for at in range(1, count.count + 1):
        results = bed.folder / "failing"
        run = bed.command(results, *ONE, operations=Operations(results, Act(at, error, lasting)))
        code = run.wait()
        assert code is not None, f"operation {at}: hung"
        assert code in CLEAN, f"operation {at}: {run.said}"
        assert "Traceback" not in run.said, f"operation {at}: {run.said}"
        codes[code] += 1
        run = bed.command(results, *ONE)
        assert run.wait() == 0, f"after operation {at}: {run.said}"
        assert bed.state(results) == expected, f"operation {at}"
        for folder in run_folders(results):
            assert folder_damage(folder) == [], f"operation {at}"
        shutil.rmtree(results)
    shutil.rmtree(whole)
    print(f"\n{count.count} operations failed with {error}; exit codes: {dict(codes)}")


def test_whatever_is_damaged_is_seen_and_reaches_no_leaderboard(undisturbed, tmp_path):
    """A bit of every byte of small files and of every thousandth byte of large ones, and files cut at eight lengths."""
    source = run_folders(undisturbed["results"])[0]
    folder = RunFolder(shutil.copytree(source.path, tmp_path / "results" / "runs" / source.path.name))
    chance, counts = random.Random(0), Counter()
    with Store("sqlite:///:memory:") as store:
        store.ingest(folder)
        name = folder.cell()["fingerprint"]
        intact = store.show_run(name)
        for path in sorted(path for path in folder.path.rglob("*") if path.is_file()):
            if path.name in {"log.txt", "lock", "progress.json"}:
                continue  # no figure rests on them
            data = path.read_bytes()
            for changed in damaged(data, chance):
                path.write_bytes(changed)
                damage = folder_damage(folder)
                with suppress(DamagedFile):
                    store.ingest(folder)
                    counts["taken in"] += 1
                    # What is not seen, such as an `e` that became an `E` in a number, has changed no value.
                    assert store.show_run(name) == intact
                assert not damage or any(str(path) in sentence for sentence in damage)
                counts["changes"] += 1
                counts["seen"] += bool(damage)
                if not damage:
                    store.ingest(folder)  # or it would be damage that only this sees
            path.write_bytes(data)
            counts["files"] += 1
    assert folder_damage(folder) == []
    print(f"\ndamage: {dict(counts)}; none reached a figure")


def damaged(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield the content of a file cut short, and with one bit flipped."""
    for part in range(8):
        yield data[: len(data) * part // 8]
    for place in range(0, len(data), 1 if len(data) < 20_000 else 1000):
        yield data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("together", [2, 4])
def test_runs_that_share_a_results_folder_train_nothing_twice(bed, undisturbed, together):
    for number in range(10):
        results, trained = bed.folder / f"shared-{together}-{number}", bed.folder / f"by-{together}-{number}"
        runs = [
            start(
                *("run", bed.suite, "--results", results, "--jobs", 1),
                output=bed.folder / f"said-{place}",
                trained=trained,
            )
            for place in range(together)
        ]
        codes = [run.wait(SECONDS * together) for run in runs]
        for code, run in zip(codes, runs, strict=True):
            assert code in {0, 3}, run.said
            assert "Traceback" not in run.said
            assert code == 0 or "run folder is locked by another process" in run.said
        last = bed.command(results)
        assert last.wait() == 0, last.said
        cells, epochs = load_suite(str(bed.suite)).cells, 3
        assert sorted(epochs_begun(trained)) == sorted(
            f"{cell.method.name} {epoch}" for cell in cells for epoch in range(epochs)
        )
        assert bed.state(results) == undisturbed["state"]
        shutil.rmtree(results)
    print(f"\n{together} runs at once, ten times: each epoch of each cell trained once")
