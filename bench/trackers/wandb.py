"""Weights & Biases in offline mode, unless `WANDB_MODE` names another: files that `wandb sync` uploads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.trackers.tracker import Picture, TrackedRun, Tracker

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which would use the network

try:
    import wandb
except ImportError:
    raise BenchError("it needs Weights & Biases: pip install 'robust-overfitting-bench[wandb]'") from None


class WandB(Tracker):
    """History, configuration, summary and images. The earlier offline record of a run is replaced."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        identity = run.fingerprint[:12]
        for earlier in folder.glob(f"wandb/offline-run-*-{identity}"):
            shutil.rmtree(earlier)
        settings = wandb.Settings(
            mode=os.environ.get("WANDB_MODE", "offline"),
            silent=True,
            console="off",
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
        )  # nothing of the driver's process belongs to a run
        self._run = wandb.init(
            project=run.experiment, id=identity, name=run.name, config=run.params,
            dir=str(folder), reinit="create_new", settings=settings,
        )  # fmt: skip

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=epoch, commit=True)

    def finish(self, status: str, epoch: int, metrics: Mapping[str, float], pictures: list[Picture]) -> None:
        if pictures:
            images = {picture.name: wandb.Image(picture.pixels, caption=picture.caption) for picture in pictures}
            self._run.log(images, step=epoch + 1)
        self._run.summary.update({**metrics, "status": status})
        self._run.finish(exit_code=0 if status == "finished" else 1)
