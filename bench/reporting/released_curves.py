"""Points of learning curves that authors released, from CSV files that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.reporting.published import Published, csv_lines, find_published, share_of

COLUMNS = ("dataset", "architecture", "threat", "method", "pgd_steps", "epochs", "epoch", "clean", "pgd", "source")


@dataclass(frozen=True)
class Point:
    """One epoch (from 0) of a released curve of `epochs` epochs; accuracies on the test images, as shares."""

    dataset: str
    architecture: str
    threat: str
    method: str
    pgd_steps: int
    epochs: int
    epoch: int
    clean: float
    pgd: float
    source: str

    def belongs_to(self, line: Published) -> bool:
        """Return whether it is of the run that a line of the papers' figures states."""
        setting = (line.dataset, line.architecture, line.threat, line.method, line.pgd_steps)
        own = (self.dataset, self.architecture, self.threat, self.method, self.pgd_steps)
        return own == setting and self.source in line.source


def read_curves(folder: Path | None = None) -> list[Point]:
    """Read the points of all released curves, by default the shipped ones.

    Raises:
        BenchError: a file cannot be read, or a line of it is invalid; the message names the line.
    """
    points = []
    for path in sorted((folder or find_published("curves")).glob("*.csv")):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                points += [_point(line, where) for line, where in csv_lines(path, file, COLUMNS)]
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"the released curve {path} cannot be read: {error}") from None
    return points


def _point(line: Mapping[str, str], where: str) -> Point:
    counts: dict[str, Any] = {}
    for name in ("pgd_steps", "epochs", "epoch"):
        if not (line[name].isascii() and line[name].isdecimal()):
            raise BenchError(f"{where}: '{name}' is '{line[name]:.40}', not a whole number")
        counts[name] = int(line[name])
    if counts["epoch"] >= counts["epochs"]:
        raise BenchError(f"{where}: 'epoch' counts from 0, so it must be below 'epochs'")
    texts: dict[str, Any] = {name: line[name] for name in ("dataset", "architecture", "threat", "method", "source")}
    return Point(**texts, **counts, clean=share_of(line, "clean", where), pgd=share_of(line, "pgd", where))
