"""The progress of cells: a live table on a terminal, one line for each event elsewhere."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from bench.execution.plan import Action, CellState
from bench.storage.run_folder import CellStatus
from bench.utils.formatting import counted, duration

REFRESH_SECONDS = 0.5
ROWS = 12  # of the live table
MILESTONES = 5  # lines for the training of one cell, and for its evaluation, without a terminal
WIDE = 110  # columns of a terminal with room for the whole table
OPTIONAL = {"", "train", "s/epoch", "host"}  # left out of a narrow table

STYLES = {
    CellStatus.RUNNING: "cyan",
    CellStatus.FINISHED: "green",
    CellStatus.FAILED: "red",
    **dict.fromkeys((CellStatus.STALLED, CellStatus.INTERRUPTED, CellStatus.LOCKED, CellStatus.DIVERGED), "yellow"),
}

ORDER = {CellStatus.RUNNING: 0, CellStatus.STALLED: 1, CellStatus.INTERRUPTED: 1}  # the first rows


class _Field(TextColumn):
    """A column with a heading that shows one field of a task."""

    def __init__(self, field: str, *, right: bool = False, wrap: bool = False) -> None:
        column = Column(field, justify="right" if right else "left", no_wrap=not wrap)
        super().__init__(f"{{task.fields[{field}]}}", markup=False, table_column=column)


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        status = task.fields["status"]
        return Text(status, style=STYLES.get(status, "dim"))


COLUMNS = (
    _Field("cell"),
    _Status(Column("status", no_wrap=True)),
    BarColumn(bar_width=12, table_column=Column("")),
    _Field("where", wrap=True),
    _Field("left", right=True),  # time left of training, or of the evaluation
    *(_Field(part, right=True) for part in ("train", "val.", "test")),  # robust accuracy of the last epoch, in percent
    _Field("s/epoch", right=True),
    _Field("host"),
)


class View(Progress):
    """Shows the states of cells; a context manager around their run. The first task is the sum of all others."""

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet)
        day = 24 * 3600  # of samples for the speed: epochs can take hours
        live = console.is_terminal
        super().__init__(
            console=console, auto_refresh=False, transient=True, speed_estimate_period=day, disable=not live
        )
        self._sum = self.add_task("")
        self._rows: dict[int, TaskID] = {}
        self._printed: dict[int, tuple[Any, ...]] = {}
        self._next = 0.0

    def show(self, states: Sequence[CellState]) -> None:
        """Show `states`; can be called often, draws twice a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_SECONDS
        progress = self._update(states)
        if self.disable:
            self._print_events(states, progress)
        elif self.live.is_started:
            self.live.refresh()

    def refresh(self) -> None:
        """Do nothing: `add_task` calls this for each cell, and `show` draws once."""

    def summarise(self, states: Sequence[CellState]) -> None:
        """Print the cells that have not finished on stdout."""
        self.stop()
        self._update(states)
        unfinished = [task for task in self.tasks[1:] if task.fields["status"] != CellStatus.FINISHED]
        console = Console()
        console.print(f"{counted(len(states), 'cell')}: {_counts(state.status for state in states)}", highlight=False)
        if unfinished:
            console.print(self.make_tasks_table(unfinished, console.width))

    def finish(self, states: Sequence[CellState]) -> None:
        """Print how every cell ended."""
        self.stop()
        if self.disable:
            self._print_events(states, [{} for _ in states])
        for state in states:
            if state.status != CellStatus.FINISHED:
                log = f"see {state.folder.log}" if state.folder.log.exists() else ""  # has the traceback, if any
                self._print(_joined(f"{state.cell}: {state.status}", state.reason, log))
        skipped = sum(state.action is Action.SKIP for state in states)
        if skipped == len(states):
            complete = f"all {skipped} cells are" if skipped > 1 else "the cell is"
            self._print(f"nothing to do: {complete} complete (run again with --rerun failed or all)")
        else:
            already = f"; {skipped} complete before" if skipped else ""
            ran = sum(state.action is not Action.SKIP and state.status != CellStatus.LOCKED for state in states)
            self._print(
                f"{ran} of {counted(len(states), 'cell')} ran in {duration(self.tasks[0].elapsed or 0)}{already}"
            )

    def get_renderables(self) -> Iterable[RenderableType]:
        if not self.tasks:  # called by the constructor
            return
        rows = sorted(self.tasks[1:], key=lambda task: ORDER.get(task.fields["status"], 2))
        counts = _counts(task.fields["status"] for task in rows)
        yield Text(
            f"{counted(len(rows), 'cell')}: {counts}; {duration(self.tasks[0].elapsed or 0)}, {self._time_left()}"
        )
        yield self.make_tasks_table(rows[:ROWS])
        if len(rows) > ROWS:
            yield Text(f"... and {len(rows) - ROWS} more")

    def make_tasks_table(self, tasks: Iterable[Task], width: int | None = None) -> Table:
        tasks = list(tasks)
        omitted = set() if (width or self.console.width) >= WIDE else set(OPTIONAL)
        if all(task.fields["host"] in ("", socket.gethostname()) for task in tasks):
            omitted.add("host")
        self.columns = tuple(column for column in COLUMNS if column.get_table_column().header not in omitted)
        table = super().make_tasks_table(tasks)
        table.show_header = True
        return table

    def _update(self, states: Sequence[CellState]) -> list[dict[str, Any]]:
        """Update the task of each cell, and return its progress as its worker states it."""
        progress = [state.progress for state in states]
        shares = [_share(state, where) for state, where in zip(states, progress, strict=True)]
        for state, where, share in zip(states, progress, shares, strict=True):
            fields = _fields(state, where)
            if id(state) not in self._rows:
                self._rows[id(state)] = self.add_task("", total=1.0, **fields)
            self.update(self._rows[id(state)], completed=share, **fields)
        self.update(self._sum, total=float(len(states)), completed=sum(shares))
        return progress

    def _time_left(self) -> str:
        left = self.tasks[0].time_remaining
        return "time left: unknown yet" if left is None else f"about {duration(left)} left"

    def _print_events(self, states: Sequence[CellState], progress: Sequence[dict[str, Any]]) -> None:
        for state, where in zip(states, progress, strict=True):
            event, before = _event(state, where), self._printed.get(id(state))
            retried = state.status == CellStatus.QUEUED and state.reason  # its worker was lost
            waits = state.status == CellStatus.QUEUED and not retried
            if state.action is Action.SKIP or waits or event == before or (before and event == (CellStatus.RUNNING, 0)):
                continue
            self._printed[id(state)] = event
            text = _where(where) if state.status == CellStatus.RUNNING else _joined(state.status, state.reason)
            validation = where.get("last", {}).get("validation")
            if where.get("phase") == "training" and validation:
                text += f", validation robust {_percent(validation['robust'])} %"
            self._print(f"{state.cell}: {text or 'started'} ({self._time_left()})")

    def _print(self, text: str) -> None:
        text = " ".join(text.split())  # an exception's text may have several lines
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _share(state: CellState, where: dict[str, Any]) -> float:
    """Return the share of a cell's work that is done, from 0 to 1."""
    if state.status not in {CellStatus.RUNNING, CellStatus.QUEUED, CellStatus.STALLED, CellStatus.INTERRUPTED}:
        return 1.0
    training = 1 - state.work.final / state.work.total if state.work else 0.5
    if where.get("phase") == "training":
        return training * float(where["epoch"] + where["done"] / where["of"]) / float(where["epochs"])
    if where.get("phase") == "evaluation":
        return training + (1 - training) * float(where["share"])
    return 0.0


def _event(state: CellState, where: dict[str, Any]) -> tuple[Any, ...]:
    """Return a value that changes when there is something new to print; its second item is 0 at the start."""
    if where.get("phase") == "training":
        return state.status, int(MILESTONES * where["epoch"] / where["epochs"])
    if where.get("phase") == "evaluation":
        return state.status, where.get("checkpoint"), where.get("attack"), int(MILESTONES * where["share"])
    return state.status, 0


def _fields(state: CellState, where: dict[str, Any]) -> dict[str, Any]:
    last, left = where.get("last", {}), where.get("left")
    train, validation, test = (
        _percent((last.get(part) or {}).get("robust")) for part in ("train", "validation", "test")
    )
    return {
        "cell": str(state.cell),
        "status": state.status,
        "where": _joined(_where(where), state.reason),
        "left": "" if left is None else duration(left),
        "train": train,
        "val.": validation,
        "test": test,
        "s/epoch": f"{last['seconds']:.3g}" if "seconds" in last else "",
        "host": str(where.get("host", "")),
    }


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _where(where: dict[str, Any]) -> str:
    if where.get("phase") == "training":
        return f"epoch {where['epoch']} of {where['epochs']}"
    if where.get("phase") == "evaluation":
        robust = _percent(where.get("robust"))  # an upper bound of the accuracy
        bound = _percent(where.get("at_most"))
        return (
            f"{where.get('attack')} on {where.get('checkpoint')}{bound and f', at most {bound} % by preview'}"
            f"{robust and f', {robust} % robust so far'}"
        )
    return str(where.get("phase", ""))


def _percent(share: object) -> str:
    return f"{100 * share:.1f}" if isinstance(share, float) else ""


def _counts(statuses: Iterable[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(Counter(statuses).items()))
