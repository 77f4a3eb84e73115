"""Cells that sleep where real ones compute, and leave real run folders: `scale.py` counts what they cost others."""

import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from bench.attacks.evaluate import attack_identity
from bench.attacks.identity import attack_key
from bench.attacks.outcome import Outcome
from bench.attacks.pgd import cross_entropy  # noqa: F401  (what a worker has loaded)
from bench.execution.worker import Job, WorkerResult
from bench.storage.checkpoints import Checkpoints
from bench.utils.files import write_record

EPOCHS, IMAGES = 200, 10_000
BEATS = 2  # signs of life a second, as a real worker gives

SECONDS = float(os.environ.get("FAKE_SECONDS", "30"))


def pretend(job: Job, tell: Connection) -> None:
    """Do what a worker does with its folder, sleep in between, and say that it is finished."""
    cell, folder = job.cell, job.folder
    began = time.monotonic()
    with folder.lock(4):
        folder.progress(force=True, phase="starting")
        folder.begin(cell, {"device": "cpu", "cpu": "asleep"})
        checkpoints, epoch = Checkpoints(folder.checkpoints), 0
        weights = checkpoints.write("weights", 0, {"weight": torch.full((1000,), float(cell.seed))})
        records = []
        while (passed := time.monotonic() - began) < SECONDS:
            folder.progress(phase="training", epoch=int(EPOCHS * passed / SECONDS), epochs=EPOCHS, done=1, of=400)
            time.sleep(1 / BEATS)
        for epoch in range(EPOCHS):
            records.append(record_of(epoch, cell.seed))
        folder.replace_epochs(records)
        checkpoints.commit(
            dict.fromkeys(("best", "best_on_test", "last"), weights),
            finished_epochs=EPOCHS,
            finished=True,
            curve_sha256=folder.curve_sha256(EPOCHS),
        )
        for place, attack in enumerate(cell.protocol.evaluation.final):
            correct = np.random.default_rng([cell.seed, place]).random(IMAGES) < 0.5
            identity = attack_identity(attack, cell.protocol.threat)
            record = Outcome(identity, attack.title, weights.sha256, correct, 1.0, {}).to_record()
            for name in ("best", "best_on_test", "last"):
                write_record(folder.outcome_path(name, attack_key(attack, cell)), record)
        folder.finish("finished", classes=10, epochs=EPOCHS, train_seconds=1.0, track_seconds=1.0)
    tell.send(WorkerResult("finished"))


def record_of(epoch: int, seed: int) -> dict[str, Any]:
    """Return what the trainer writes after an epoch."""
    robust = 0.5 + (epoch + seed % 100) / 1000
    return {
        "epoch": epoch,
        "lr": 0.1,
        "train": {"loss": 1.0, "robust": robust},
        "validation": {"clean": 0.8, "robust": robust},
        "test": {"clean": 0.8, "robust": robust},
        "train_pflop": 1.0,
        "train_seconds": 1.0,
        "seconds": 1.0,
    }
