"""One tracker, kept equal to run folders: also for runs that resume, go back an epoch, or have ended long ago."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.outside import running
from bench.registry import TRACKERS
from bench.storage.run_folder import RunFolder
from bench.trackers.content import epoch_metrics, final_metrics, pictures
from bench.trackers.tracker import TrackedRun, Tracker
from bench.utils.files import fingerprint

COMPLETE = ".complete"
"""Folder of a tracker with one file for each run whose whole record it has: the digest of the run's `done.json`."""


class Mirror:
    """The records of runs in the tracker `name`, below `output / name`.

    A run is recorded from its first epoch on, also if an earlier process has recorded a part of it, so that every epoch
    is there once. One whose whole record is there is left as it is.
    """

    def __init__(self, name: str, output: Path, data: Path | None = None, device: str = "cpu") -> None:
        """Raises BenchError: there is no such tracker, or it is not installed."""
        self.name, self.folder = name, output / name
        self._kind: type[Tracker] = TRACKERS.get(name)
        self._data, self._device = data, device
        self._open: dict[Path, tuple[Tracker, list[dict[str, Any]]]] = {}
        self._complete: set[Path] = set()

    def update(self, folder: RunFolder, *, again: bool = False) -> None:
        """Record what a run folder has beyond what is recorded; `again`: also of a run whose whole record is there.

        Raises:
            FileNotFoundError: the run has not begun.
            DamagedFile: a file is damaged, or the line of an epoch is being written.
            Exception: the tracker fails.
        """
        if folder.path in self._complete:
            return
        result, curve = folder.result(), folder.epochs()  # in this order: the curve of a run that has ended is whole
        marker = self.folder / COMPLETE / folder.path.name
        if result is not None and not again and marker.exists() and marker.read_text() == fingerprint(result):
            self._complete.add(folder.path)
            return
        run = TrackedRun.of(folder.cell())
        final = {} if result is None else final_metrics(folder)
        tracker, recorded = self._open.pop(folder.path, (None, []))
        if tracker is not None and curve[: len(recorded)] != recorded:
            self._end(tracker, recorded)
            tracker = None
        if tracker is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            marker.unlink(missing_ok=True)
            tracker, recorded = self._kind(self.folder, run), []
        for record in curve[len(recorded) :]:
            tracker.log(record["epoch"], epoch_metrics(record))
        if result is None:
            self._open[folder.path] = tracker, curve
            return
        examples = pictures(folder, self._data, self._device) if result["status"] == "finished" else []
        tracker.finish(result["status"], len(curve) - 1, final, examples)
        marker.parent.mkdir(exist_ok=True)
        marker.write_text(fingerprint(result))
        self._complete.add(folder.path)

    def close(self) -> None:
        """End the records of runs that have not ended."""
        for tracker, recorded in self._open.values():
            self._end(tracker, recorded)
        self._open.clear()

    @staticmethod
    def _end(tracker: Tracker, recorded: list[dict[str, Any]]) -> None:
        tracker.finish("interrupted", len(recorded) - 1, {}, [])


def export_runs(
    folders: Sequence[RunFolder],
    names: Sequence[str],
    output: Path,
    *,
    data: Path | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, RunFolder]]:
    """Record whole runs below `output / name` of each tracker, replacing their earlier records; yield each that is.

    A run that has not ended is recorded so far, as an interrupted one.

    Raises:
        BenchError: a tracker is unknown, not installed or fails, or a run folder is damaged.
    """
    mirrors = [Mirror(name, output, data, device) for name in dict.fromkeys(names)]
    for folder in folders:
        for mirror in mirrors:
            with running(f"tracker '{mirror.name}'"):
                mirror.update(folder, again=True)
                mirror.close()
            yield mirror.name, folder
