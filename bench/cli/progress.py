"""What `bench run` and `bench watch` show: on a terminal a live table, elsewhere a line for what happened."""

from __future__ import annotations

import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.cli.output import print_json
from bench.execution.driver import CellState
from bench.execution.estimate import Machine
from bench.execution.plan import Planned
from bench.utils.device import resolve_device

REFRESH_SECONDS = 0.5
ROWS = 12  # rows of the live table; more cells than that are counted, not listed
MILESTONES = 5  # lines for the training of one cell, and for judging it, where there is no terminal

HEADINGS = ("cell", "status", "", "where", "left", "train", "val.", "test", "s/epoch", "host")
"""`left`: of training, or of the evaluation; then the robust accuracies of the last epoch, in percent."""

WIDE = 110  # columns of a terminal that has room for everything

SPARED = ("", "train", "s/epoch", "host")  # where there is no room

FIRST = {"running": 0, "silent": 1}  # what the table begins with

HOST = socket.gethostname()

STYLES = {
    "running": "cyan",
    "silent": "yellow",
    "finished": "green",
    "diverged": "yellow",
    "failed": "red",
    "busy": "yellow",
}


class View:
    """Shows the states of cells; use it as a context manager around what they do."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )
        self._started = time.monotonic()
        self._next = 0.0
        self._said: dict[int, tuple[str, int]] = {}
        self._at_start: float | None = None

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, states: Sequence[CellState]) -> None:
        """Show `states`; called often, draws twice a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REFRESH_SECONDS
        progress = [state.progress for state in states]
        if self._live:
            self._live.update(self._table(states, progress), refresh=True)
        else:
            self._lines(states, progress)

    def print(self, states: Sequence[CellState]) -> None:
        """Print how `states` stand on stdout, all that have not finished."""
        if self._live:
            self._live.stop()
        console = Console()
        table = self._table(states, [state.progress for state in states], None, console.width)
        table.title = f"{len(states)} cells: {_standing(states)}"
        console.print(table)

    def finish(self, states: Sequence[CellState]) -> None:
        """Say how every cell ended."""
        if self._live:
            self._live.stop()
        else:
            self._lines(states, [{} for _ in states])
        ran = [state for state in states if state.planned.action != "skip"]
        for state in states:
            if state.status != "finished":
                self._say(
                    f"{state.planned.cell}: {state.status}; {state.reason or 'see ' + str(state.planned.folder.log)}"
                )
        if not ran:
            self._say(
                f"nothing to do: all {len(states)} cells have ended before (--rerun failed or all runs them again)"
            )
        else:
            kept = f", {len(states) - len(ran)} were there already" if len(states) > len(ran) else ""
            self._say(f"{len(ran)} cells ran in {_duration(time.monotonic() - self._started)}{kept}")

    # --- how far ---------------------------------------------------------------------------------------------------

    def _share(self, state: CellState, progress: dict[str, Any]) -> float:
        """Return the part of a cell's work that is done, from 0 to 1."""
        if state.status not in {"running", "waiting", "silent"}:
            return 1.0
        work = state.planned.work
        training = 1 - work.final / work.total if work else 0.5
        if progress.get("phase") == "training":
            done = float(progress["epoch"]) + float(progress["done"]) / float(progress["of"])
            return training * done / float(progress["epochs"])
        if progress.get("phase") == "evaluation":
            return training + (1 - training) * float(progress["share"])
        return 0.0

    def _left(self, shares: Sequence[float]) -> str:
        """Return the time left, as the work done since the start suggests."""
        done = sum(shares)
        if self._at_start is None:
            self._at_start = done
        gained, elapsed = done - self._at_start, time.monotonic() - self._started
        if gained < 0.01 * len(shares) or elapsed < 2:
            return "time left: not known yet"
        return f"about {_duration((len(shares) - done) * elapsed / gained)} left"

    # --- a terminal ------------------------------------------------------------------------------------------------

    def _table(
        self,
        states: Sequence[CellState],
        progress: Sequence[dict[str, Any]],
        limit: int | None = ROWS,
        width: int | None = None,
    ) -> Table:
        shares = [self._share(state, where) for state, where in zip(states, progress, strict=True)]
        so_far = _duration(time.monotonic() - self._started)
        title = f"{len(states)} cells: {_standing(states)}; {so_far}, {self._left(shares)}"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        elsewhere = any(where.get("host", HOST) != HOST for where in progress)
        left_out = {*(() if elsewhere else ("host",)), *(() if (width or self._console.width) >= WIDE else SPARED)}
        headings = [heading for heading in HEADINGS if heading not in left_out]
        for heading in headings:
            figures = heading in {"left", "train", "val.", "test", "s/epoch"}
            table.add_column(heading, justify="right" if figures else "left", no_wrap=heading != "where")
        rows = sorted(zip(states, progress, shares, strict=True), key=lambda row: FIRST.get(row[0].status, 2))
        kept = [row for row in rows if row[0].status != "finished" or limit is not None][:limit]
        for state, where, share in kept:
            last, left = where.get("last", {}), where.get("left")
            robust = [_percent((last.get(part) or {}).get("robust")) for part in ("train", "validation", "test")]
            cells: dict[str, Any] = {
                "cell": Text(str(state.planned.cell)),
                "status": Text(state.status, style=STYLES.get(state.status, "dim")),
                "": ProgressBar(total=1.0, completed=share, width=12),
                "where": Text(_where(where) or state.reason),
                "left": "" if left is None else _duration(left),
                **dict(zip(("train", "val.", "test"), robust, strict=True)),
                "s/epoch": f"{last['seconds']:.3g}" if "seconds" in last else "",
                "host": Text(str(where.get("host", ""))),
            }
            table.add_row(*(cells[heading] for heading in headings))
        if len(rows) > len(kept):
            table.caption = f"... and {len(rows) - len(kept)} more"
        return table

    # --- no terminal -----------------------------------------------------------------------------------------------

    def _lines(self, states: Sequence[CellState], progress: Sequence[dict[str, Any]]) -> None:
        shares = [self._share(state, where) for state, where in zip(states, progress, strict=True)]
        left = self._left(shares)
        for index, (state, where) in enumerate(zip(states, progress, strict=True)):
            stage = (state.status, self._stage(where))
            waits = state.status == "waiting" and not state.reason  # with a reason, its worker was lost
            if state.planned.action == "skip" or waits or self._said.get(index) == stage:
                continue
            if state.status == "running" and stage[1] == 0 and index in self._said:
                continue
            self._said[index] = stage
            text = _where(where) if state.status == "running" else f"{state.status} {state.reason}".strip()
            last = where.get("last", {})
            if where.get("phase") == "training" and last.get("validation"):
                text += f", validation robust {_percent(last['validation']['robust'])} %"
            self._say(f"{state.planned.cell}: {text or 'started'} ({left})")

    @staticmethod
    def _stage(where: dict[str, Any]) -> int:
        """Return a number that changes when there is something new to say."""
        if where.get("phase") == "training":
            return int(MILESTONES * float(where["epoch"]) / float(where["epochs"]))
        if where.get("phase") == "evaluation":
            part = int(MILESTONES * float(where["share"]))
            return MILESTONES + 1 + hash((str(where.get("checkpoint")), str(where.get("attack")), part)) % 1_000_000
        return 0

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _standing(states: Sequence[CellState]) -> str:
    counts = Counter(state.status for state in states)
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _where(progress: dict[str, Any]) -> str:
    if progress.get("phase") == "training":
        return f"epoch {progress['epoch']} of {progress['epochs']}"
    if progress.get("phase") == "evaluation":
        stand = _percent(progress.get("robust"))  # of the images, so far: the accuracy is at most that
        return f"{progress.get('attack')} on {progress.get('checkpoint')}{stand and f', {stand} % still stand'}"
    return str(progress.get("phase", ""))


def _percent(accuracy: object) -> str:
    return f"{100 * accuracy:.1f}" if isinstance(accuracy, float) else ""


def _duration(seconds: float) -> str:
    """Return a time span as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"


def print_plan(planned: Sequence[Planned], device: str, *, json: bool) -> None:
    """Print on stdout what would run, what has ended, the estimated work, and the hours on this machine.

    Hours rest on a few attack steps timed now. Work and hours are None where the images would have to be counted.
    """
    machine = Machine(resolve_device(device))
    rows: list[dict[str, Any]] = []
    for item in planned:
        pflop: float | None = 0.0
        hours: float | None = 0.0
        if item.action != "skip":
            pflop = item.work.total if item.work else None
            hours = machine.hours(item.cell.protocol, item.work) if item.work else None
        rows.append(
            {
                "cell": str(item.cell),
                "fingerprint": item.cell.fingerprint,
                "status": item.status,
                "action": item.action,
                "pflop": pflop,
                "hours": hours,
            }
        )
    if json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("cell", "status", "would", "PFLOP, about", "hours here, about"):
        table.add_column(heading, justify="right" if "about" in heading else "left")
    for row in rows:
        figures = ["?" if row[key] is None else f"{float(f'{row[key]:.3g}'):,g}" for key in ("pflop", "hours")]
        table.add_row(Text(row["cell"]), row["status"], row["action"], *figures)
    console = Console(file=sys.stdout)
    console.print(table)
    total, took = (sum(row[key] or 0 for row in rows) for key in ("pflop", "hours"))
    work, duration = f"{float(f'{total:.3g}'):,g}", _duration(3600 * took)
    about = f"about {work} PFLOP, {duration} one after the other on this machine ({machine.name})"
    if any(row["pflop"] is None for row in rows):
        about = "how much work is not known: the images must be counted, and are not there (--data)"
    running = sum(row["action"] != "skip" for row in rows)
    console.print(f"{running} of {len(rows)} cells would run, {about}", highlight=False)
