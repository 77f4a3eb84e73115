"""`bench watch`: monitor the cells of a results folder, from any machine that sees it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import Json, Results, complete_suite, interruptible
from bench.cli.output import print_json
from bench.errors import ExitCode

if TYPE_CHECKING:
    from bench.execution.plan import CellState

REFRESH_SECONDS = 1.0


def watch(
    suite: Annotated[
        str | None,
        typer.Argument(help="Only this suite's cells, including those not started.", autocompletion=complete_suite),
    ] = None,
    results: Results = Path("results"),
    once: Annotated[bool, typer.Option("--once", help="Show the current state, then exit.")] = False,
    json: Json = False,
) -> None:
    """Monitor the cells of a results folder.

    Shows the cells from any machine that sees the folder, until none is running. Writes nothing: `bench run` and
    `bench ingest` import runs that have ended into the database. Exit 3 if a cell failed or diverged.
    """
    from bench.cli.progress import View
    from bench.config.suite import load_suite, with_teachers
    from bench.errors import NothingMeasured
    from bench.execution.watch import Watcher

    watcher = Watcher(results, with_teachers(load_suite(suite).cells) if suite else None)
    states = watcher.states()
    if not states:
        raise NothingMeasured(f"there is no run folder in {results / 'runs'}; `bench run SUITE` creates them")
    if json:
        print_json([_as_json(state) for state in states])
    else:
        with interruptible(lambda: "the cells keep running"), View() as view:
            while not once and any(state.status in {"running", "queued"} for state in states):
                view.show(states)
                time.sleep(REFRESH_SECONDS)
                states = watcher.states()
            view.summarise(states)
    if any(state.status in {"diverged", "failed"} for state in states):
        raise typer.Exit(ExitCode.SOME_FAILED)


def _as_json(state: CellState) -> dict[str, Any]:
    position = state.progress
    return {
        "name": state.folder.path.name,
        "method": state.cell.method.label,
        "seed": state.cell.seed,
        "suite": state.cell.suite,
        "status": state.status,
        "reason": state.reason,
        **{key: position.get(key) for key in ("host", "pid", "phase", "epoch", "epochs", "left", "last")},
        **{key: position[key] for key in ("at_most",) if key in position},
    }
