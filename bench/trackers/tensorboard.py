"""TensorBoard: event files in `<experiment>/<run>`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.trackers.tracker import Picture, TrackedRun, Tracker

try:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams
except ImportError:
    raise BenchError("it needs TensorBoard: pip install 'robust-overfitting-bench[tensorboard]'") from None


class TensorBoard(Tracker):
    """Scalars, hyperparameters, and images with their captions as texts.

    No list of metrics goes with the hyperparameters, so that their dashboard shows all metrics.
    """

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        name = re.sub(r"[^A-Za-z0-9]+", "-", run.name).strip("-")
        path = folder / run.experiment / f"{name}-{run.fingerprint[:8]}"
        if path.exists():
            shutil.rmtree(path)
        self._writer = SummaryWriter(str(path))
        _, start, _ = hparams(run.params, {})  # type: ignore[no-untyped-call]
        self._writer._get_file_writer().add_summary(start)  # type: ignore[no-untyped-call]
        self._writer.flush()

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, status: str, epoch: int, metrics: Mapping[str, float], pictures: list[Picture]) -> None:
        step = max(epoch, 0)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        for picture in pictures:
            self._writer.add_image(picture.name, picture.pixels, step, dataformats="HWC")
            self._writer.add_text(picture.name, picture.caption, step)
        self._writer.add_text("status", status, step)
        self._writer.close()
