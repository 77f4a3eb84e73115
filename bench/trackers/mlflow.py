"""MLflow: a local SQLite database and a folder of artifacts, or what `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.trackers.tracker import Picture, TrackedRun, Tracker

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # which would use the network
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

try:
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient
except ImportError:
    raise BenchError("it needs MLflow: pip install 'robust-overfitting-bench[mlflow]'") from None

STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}  # the others failed

FINGERPRINT = "bench.fingerprint"  # tag by which a run is found again

AT_ONCE = 100  # parameters of one request, at most

LONGEST = 6000  # characters of a parameter, at most


class MLflow(Tracker):
    """Metrics, parameters, and images and their captions as artifacts. Earlier records of a run are deleted."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        artifacts = None if uri.startswith("http") else (folder.absolute() / "artifacts").as_uri()  # a server's own
        self._client = MlflowClient(uri)
        known = self._client.get_experiment_by_name(run.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(run.experiment, artifacts)
        for earlier in self._client.search_runs([experiment], f"tags.`{FINGERPRINT}` = '{run.fingerprint}'"):
            self._client.delete_run(earlier.info.run_id)
        self._run = self._client.create_run(
            experiment, tags={FINGERPRINT: run.fingerprint}, run_name=run.name
        ).info.run_id
        params = [Param(name, str(value)[:LONGEST]) for name, value in run.params.items()]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + AT_ONCE])

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(name, value, now, epoch) for name, value in metrics.items()])

    def finish(self, status: str, epoch: int, metrics: Mapping[str, float], pictures: list[Picture]) -> None:
        self.log(max(epoch, 0), metrics)
        for picture in pictures:
            self._client.log_image(self._run, picture.pixels, f"{picture.name}.png")
            self._client.log_text(self._run, picture.caption, f"{picture.name}.txt")
        self._client.set_tag(self._run, "bench.status", status)
        self._client.set_terminated(self._run, STATUS.get(status, "FAILED"))
