"""`bench report` with 1,000 runs of 10,000 images."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from bench.storage.schema import CheckpointRow, OutcomeRow, ProtocolRow, RunRow

from .conftest import protocol_of

RUNS, IMAGES, SEEDS = 1000, 10_000, 3
FINALS = ["clean", "pgd", "autoattack"]


@pytest.fixture
def large(store, results):
    """Fill the store, past the mapper and past run folders, which would take minutes."""
    protocol, random = protocol_of(evaluation={"final": FINALS}), np.random.default_rng(0)
    identities = protocol.identity()["evaluation"]["final"]
    runs, checkpoints, outcomes = [], [], []
    for number in range(RUNS):
        name = f"{number:064x}"
        run = {
            "fingerprint": name, "training_fingerprint": name, "protocol_fingerprint": protocol.fingerprint,
            "suite": "large", "method": f"m{number // SEEDS}", "version": 1, "label": f"M{number // SEEDS}",
            "params": {}, "custom": False, "origin": "paper", "final_is_best": False, "seed": number % SEEDS,
            "status": "finished", "environment": {"device": "cpu", "cpu": "A Processor"}, "folder": f"runs/{number}",
            "epochs": 9, "classes": 10, "train_pflop": 1.0, "train_seconds": 1.0, "track_seconds": 1.0,
            "evaluation_seconds": 1.0, "peak_memory_bytes": 1,
        }  # fmt: skip
        runs.append(run)
        for checkpoint in ("best", "best_on_test", "last"):
            checkpoints.append({"run": name, "name": checkpoint, "epoch": 1, "sha256": name, "file": "x"})
            for identity in identities:
                bits = random.integers(0, 256, IMAGES // 8, dtype=np.uint8)
                right = int(np.unpackbits(bits).sum())
                outcomes.append(
                    {
                        "run": name, "checkpoint": checkpoint, "key": identity["name"], "attack": identity["name"],
                        "title": identity["name"], "identity": identity, "count": IMAGES, "right": right,
                        "accuracy": right / IMAGES, "correct": bits.tobytes(), "seconds": 1.0, "detail": {},
                    }
                )  # fmt: skip
    content = [{"fingerprint": protocol.fingerprint, "content": protocol.identity()}]
    with store._writing.begin() as connection:
        for table, rows in (
            (ProtocolRow, content),
            (RunRow, runs),
            (CheckpointRow, checkpoints),
            (OutcomeRow, outcomes),
        ):
            connection.execute(table.__table__.insert(), rows)
    return results


@pytest.mark.slow
def test_a_report_of_a_thousand_runs_takes_less_than_three_seconds(large):
    """Processor time of the whole command, imports and all: 1.8 s where it was measured, whatever else runs there."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "bench", "report", "--results", str(large), "--format", "markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.count("\n| ") > RUNS / SEEDS
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6, "twice the bound, for slow machines"
