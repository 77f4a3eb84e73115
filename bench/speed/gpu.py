"""`bench speed --what gpu`: the parts of `gpu_parts`, each in a process of its own with a time limit."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import registry
from bench.config.cell import Cell
from bench.config.suite import LoadedSuite, MethodEntry, resolve_method, teachers_of
from bench.errors import BenchError
from bench.speed.gpu_parts import PARTS
from bench.speed.gpu_training import GPUSetup, Line
from bench.speed.measure import Report
from bench.speed.process import Candidate, Setup, Work

SECONDS = 540
"""Of all parts together."""

CPU_FACTOR = 10
"""By which all limits are longer on a CPU, where the parts only show that they run."""


def every_method(loaded: LoadedSuite, cell: Cell) -> tuple[Cell, ...]:
    """Return the suite's `cell` with every method in turn that needs no teachers, with its canonical parameters."""
    entries = [MethodEntry(name=name) for name in registry.METHODS.names()]
    cells = [cell.model_copy(update={"method": resolve_method(loaded.suite, entry)}) for entry in entries]
    return tuple(each for each in cells if not teachers_of(each))


def measure_gpu(setup: GPUSetup, report: Report, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
    """Yield every line as JSON data, with `part` and `seconds`. A part that fails or is too slow fails a claim."""
    factor = 1 if setup.on_gpu else CPU_FACTOR
    ends = time.monotonic() + seconds * factor
    for name, (limit, _) in PARTS.items():
        left = ends - time.monotonic()
        if left <= 0:
            yield {"part": name, "what": "not started: no time left", "holds": None, "figures": {}}
            continue
        report(name)
        started = time.monotonic()
        try:
            with Candidate(partial(_part, name=name), setup, min(limit * factor, left)) as process:
                while line := process.work(None)[1]:
                    yield {"part": name, **line}
        except BenchError as error:
            yield {"part": name, "what": "ran to its end", "holds": False, "figures": {"error": str(error)}}
        took = {"s": time.monotonic() - started, "limit": limit}
        yield {"part": name, "what": "time", "holds": None, "figures": took}


def _part(setup: Setup, name: str) -> Work:
    """Return `lines_of` a part in this process, whose output goes into a log file."""
    assert isinstance(setup, GPUSetup)
    with (setup.output / f"{name}.log").open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    for plugin in setup.cell.plugins:
        registry.load_plugin(Path(plugin))
    return lines_of(name, setup)


def lines_of(name: str, setup: GPUSetup) -> Work:
    """Return what gives one line of a part after the other, then None."""
    lines = run_part(name, setup)
    return lambda _request: next(lines, None)


def run_part(name: str, setup: GPUSetup) -> Iterator[dict[str, Any]]:
    """Yield the lines of a part as JSON data; an error fails a claim."""
    _, part = PARTS[name]
    try:
        for line in part(setup):
            yield line.__dict__
    except Exception as error:  # whatever happens, it is one part
        traceback.print_exc()
        yield Line("ran to its end", False, {"error": f"{type(error).__name__}: {error}"}).__dict__


def failed(lines: list[dict[str, Any]]) -> int:
    """Return the number of claims that failed."""
    return sum(line["holds"] is False for line in lines)


def print_lines(lines: list[dict[str, Any]]) -> None:
    """Print the lines as a table, and how many claims hold."""
    table = Table(title="gpu", title_justify="left", box=None, pad_edge=False)
    for heading in ("part", "what", "", "figures"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        verdict = {True: "holds", False: "FAILED", None: ""}[line["holds"]]
        figures = ", ".join(
            f"{name} {_text(value)}" for name, value in line["figures"].items() if value not in ("", None)
        )
        table.add_row(line["part"], line["what"], verdict, figures)
    console = Console(file=sys.stdout)
    console.width = max(console.width, 120)
    console.print(table)
    claims = sum(line["holds"] is not None for line in lines)
    console.print(f"{failed(lines)} of {claims} claims failed", highlight=False)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
