"""The images of a run: recorded when it begins, and compared whenever more is to come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.config.cell import Cell
from bench.config.protocol import DatasetSettings
from bench.data.dataset import Splits, dataset_of
from bench.errors import BenchError, DamagedFile, NotFound
from bench.storage.checkpoints import INDEX
from bench.storage.run_folder import RunFolder
from bench.training.teachers import teacher_digests
from bench.utils.environment import different_data


def identify_data(cell: Cell, folder: RunFolder, splits: Splits) -> dict[str, Any]:
    """Return the digests of a run's images and teachers, and record them if it has no checkpoint yet.

    A run of an older version that has one stays without: its images are unknown.

    Raises:
        BenchError: the run began on other images, or with other weights of its teachers; one has not been trained.
    """
    data: dict[str, Any] = _used(cell, splits.digests())
    _compare(cell, folder, data)
    if teachers := teacher_digests(cell, folder):
        data["teachers"] = teachers
        if (folder.cell()["environment"].get("data") or data).get("teachers") != teachers:
            raise BenchError(
                f"{folder.path} used other weights of its teachers, which have been trained again since; run it from "
                "the start with --rerun all"
            )
    if "data" not in folder.cell()["environment"] and not (folder.checkpoints / INDEX).exists():
        folder.record_data({**data, "files": splits.files})
    return data


class DataRoot:
    """The images below a data root, of which no more is read than tells them from those of runs."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._states: dict[DatasetSettings, str | None] = {}
        self._digests: dict[DatasetSettings, dict[str, str]] = {}

    def check(self, cell: Cell, folder: RunFolder) -> None:
        """Raise BenchError if a run used other images; nothing is known of older runs, or where no images are."""
        settings = cell.protocol.dataset
        try:
            recorded = folder.cell()["environment"].get("data")
        except (OSError, DamagedFile):
            return
        if recorded is None:
            return
        dataset = dataset_of(settings)
        if settings not in self._states:
            try:
                state = dataset.locate(self._root).state
            except NotFound:
                return
            self._states[settings] = state and state()
        if self._states[settings] is not None and self._states[settings] == recorded.get("files"):
            return
        if settings not in self._digests:
            self._digests[settings] = dataset.splits(self._root).digests()
        _compare(cell, folder, _used(cell, self._digests[settings]))


def _used(cell: Cell, digests: dict[str, str]) -> dict[str, str]:
    """Return the digests of what a cell uses: an external model only the test images."""
    return {"test": digests["test"]} if cell.network else digests


def _compare(cell: Cell, folder: RunFolder, data: dict[str, str]) -> None:
    if differing := different_data({"then": folder.cell()["environment"], "here": {"data": data}}):
        again = "" if cell.network else ", or run it from the start with --rerun all"
        raise BenchError(
            f"{folder.path} used other data than those present: {differing}; restore that data, choose another "
            f"--results{again}"
        )
