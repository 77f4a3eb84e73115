"""The papers' figures, from a CSV file that ships with the package."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bench.errors import BenchError

Rule = Literal["validation", "test", "none"]
"""Which images selected the checkpoint `best`; with `none` there is only the last one."""

ATTACKS: Mapping[str, str] = {"clean": "clean", "pgd": "pgd", "autoattack": "aa"}
"""Names of attacks, and how the columns of the file begin that hold their figures."""

_FIGURES = [f"{prefix}_{checkpoint}" for checkpoint in ("best", "last") for prefix in ATTACKS.values()]
COLUMNS = (
    "dataset", "architecture", "threat", "method", *_FIGURES, "pgd_steps", "selection", "seeds", "status", "source"
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One line of the file: what one source reports of one method.

    `best` and `last`: accuracies as shares by the name of the attack, without those that the source does not give.
    `status`: how the figures reached the file (`log`, `paper`, `readme`, `secondary`).
    """

    dataset: str
    architecture: str
    threat: str
    method: str
    best: dict[str, float]
    last: dict[str, float]
    pgd_steps: int | None
    selection: Rule | None
    seeds: int | None
    status: str
    source: str


@dataclass(frozen=True)
class CheckpointComparison:
    """One checkpoint under one attack: shares, None where there is none. `difference`: ours - paper, if comparable."""

    paper: float | None
    ours: float | None
    difference: float | None


@dataclass(frozen=True)
class PublishedComparison:
    """What a source reports of a row's method under one attack, and the row's figures.

    `title`: the attack as the source ran it. `ours` at best is the checkpoint that the source's rule selects.
    `reasons`: why there is no difference.
    """

    label: str
    published: Published
    attack: str
    title: str
    best: CheckpointComparison
    last: CheckpointComparison
    reasons: tuple[str, ...]


def find_published(name: str = "published.csv") -> Path:
    """Return the path of the shipped file, or of another one or a folder beside it."""
    package = Path(__file__).parents[1]
    paths = package / "results" / name, package.parent / "results" / name  # wheel; checkout
    return next((path for path in paths if path.exists()), paths[-1])


def read_published(path: Path | None = None) -> list[Published]:
    """Read the papers' figures, by default the shipped ones.

    Raises:
        BenchError: the file cannot be read, or a line of it is invalid; the message names the line.
    """
    path = path or find_published()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_published(line, where) for line, where in csv_lines(path, file, COLUMNS)]
    except OSError as error:
        raise BenchError(f"the papers' figures cannot be read: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BenchError(f"the papers' figures cannot be read: {path} is not UTF-8") from None


def csv_lines(path: Path, file: Iterable[str], columns: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield each line of a CSV file with exactly these columns, and where it is. Raises BenchError for any other."""
    reader, header, start = csv.reader(file, strict=True), None, 1
    while True:
        where = f"{path}, line {start}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise BenchError(f"{where}: {error}") from None
        if header is None:
            if fields is None or tuple(fields) != tuple(columns):
                raise BenchError(f"{where}: the columns must be {', '.join(columns)}")
            header = fields
        elif fields is None:
            return
        elif fields:
            if len(fields) != len(header):
                raise BenchError(f"{where}: {len(fields)} fields, but {len(header)} columns")
            yield dict(zip(header, fields, strict=True)), where
        start = reader.line_num + 1


def _published(line: Mapping[str, str], where: str) -> Published:
    for name in ("dataset", "architecture", "threat", "method", "status", "source"):
        if not line[name].strip():
            raise BenchError(f"{where}: '{name}' is empty")
    if line["selection"] not in {"", *get_args(Rule)}:
        raise BenchError(
            f"{where}: 'selection' is '{line['selection']:.40}'; it must be one of {', '.join(get_args(Rule))}"
        )
    selection: Any = line["selection"] or None
    return Published(
        **{name: line[name] for name in ("dataset", "architecture", "threat", "method", "status", "source")},
        best=_shares(line, "best", where),
        last=_shares(line, "last", where),
        pgd_steps=_count(line, "pgd_steps", where),
        selection=selection,
        seeds=_count(line, "seeds", where),
    )


def _shares(line: Mapping[str, str], checkpoint: str, where: str) -> dict[str, float]:
    shares = {
        attack: share_of(line, f"{prefix}_{checkpoint}", where)
        for attack, prefix in ATTACKS.items()
        if line[f"{prefix}_{checkpoint}"]
    }
    if 0 < max(shares.values(), default=0) <= 0.01:
        raise BenchError(f"{where}: the figures at {checkpoint} are shares; write percent, 53.49 instead of 0.5349")
    return shares


def share_of(line: Mapping[str, str], name: str, where: str) -> float:
    """Return the percentage in a column as a share. Raises BenchError if it is none."""
    try:
        percent = float(line[name])
    except ValueError:
        percent = math.nan
    if not 0 <= percent <= 100:
        raise BenchError(f"{where}: '{name}' is '{line[name]:.40}', not a percentage from 0 to 100")
    return round(percent / 100, 12)  # 51.37 becomes 0.5137, not 0.5136999999999999


def _count(line: Mapping[str, str], name: str, where: str) -> int | None:
    text = line[name]
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise BenchError(f"{where}: '{name}' is '{text:.40}', not a whole number above 0")
    return int(text)
