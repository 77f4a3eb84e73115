"""`bench run`: run the cells of a suite that are not complete, then print the leaderboard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import (
    Data,
    Device,
    Json,
    Methods,
    Results,
    Seeds,
    StoreURL,
    Suite,
    Threads,
    Trackers,
    how_to_resume,
    interruptible,
    numbers,
    words,
)
from bench.cli.output import print_json, print_leaderboard
from bench.errors import ExitCode

if TYPE_CHECKING:
    from bench.execution.estimate import Machine
    from bench.execution.plan import CellState


class Kind(StrEnum):
    """Executors of cells."""

    LOCAL = "local"
    RAY = "ray"
    SLURM = "slurm"


def run(
    suite: Suite,
    methods: Methods = None,
    seeds: Seeds = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    data: Data = None,
    device: Device = "auto",
    executor: Annotated[Kind, typer.Option("--executor", help="Executor of the cells.")] = Kind.LOCAL,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Maximum number of cells that run at a time.")
    ] = None,
    threads: Threads = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the network for training; default: as the suite says."),
    ] = None,
    preview: Annotated[
        bool | None,
        typer.Option(
            "--preview/--no-preview",
            help="Bound the robust accuracy by a short attack before AutoAttack; default: as the suite says.",
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", help="Only these GPUs of this machine: comma-separated numbers.")
    ] = None,
    jobs_per_gpu: Annotated[int, typer.Option("--jobs-per-gpu", min=1, help="Number of cells that share a GPU.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Address of a Ray cluster: auto or host:port; default: a cluster of this machine."
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", help="Option of sbatch, such as partition=gpu or time=1-00:00:00; repeatable."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit to Slurm and exit; monitor with `bench watch`.")
    ] = False,
    rerun: Annotated[str, typer.Option("--rerun", help="Cells to run: missing, failed or all.")] = "missing",
    max_attempts: Annotated[
        int, typer.Option("--max-attempts", min=1, help="Maximum attempts per cell if its worker dies.")
    ] = 3,
    tries: Annotated[int | None, typer.Option("--tries", min=1, hidden=True)] = None,
    heartbeat_timeout: Annotated[
        float,
        typer.Option(
            "--heartbeat-timeout", min=1, help="Minutes without a heartbeat after which a worker counts as hung."
        ),
    ] = 30,
    hang: Annotated[float | None, typer.Option("--hang", min=1, hidden=True)] = None,
    tracker: Trackers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, then exit.")] = False,
    json: Json = False,
) -> None:
    """Train and evaluate the cells of a suite.

    Only cells that are not complete run. Then the leaderboard is printed. Rerun the same command to resume after an
    interruption.
    """
    from bench.config.suite import load_suite, select_cells
    from bench.errors import BenchError, did_you_mean
    from bench.execution.driver import RetryPolicy, run_suite
    from bench.execution.estimate import Machine
    from bench.execution.executor import ExecutorSettings
    from bench.execution.plan import Rerun, check_data, plan
    from bench.utils.device import emulates_bf16, resolve_device

    if rerun not in set(Rerun):
        raise BenchError(f"unknown value of --rerun, '{rerun:.60}'{did_you_mean(rerun, Rerun)}")
    loaded = load_suite(suite)
    only, only_seeds = words(methods, "--methods"), numbers(seeds, "--seeds")
    settings = ExecutorSettings(
        executor=executor.value,
        device=device,
        jobs=jobs,
        threads=threads,
        compile=compile,
        preview=preview,
        gpus=tuple(numbers(gpus, "--gpus")),
        jobs_per_gpu=jobs_per_gpu,
        address=address,
        slurm=pairs(slurm or []),
    )
    here = device if executor is Kind.LOCAL else "auto"
    bf16 = loaded.suite.protocol.training.precision == "bf16"
    if dry_run or (bf16 and executor is Kind.LOCAL and emulates_bf16(resolve_device(here))):
        devices = loaded.suite.execution.devices or 1
        chosen = select_cells(loaded.cells, only, only_seeds)
        states = plan(chosen, results, Rerun(rerun), data=data, devices=devices)
        machine = Machine(resolve_device(here))
        warn_of_emulation(states, machine)
        if dry_run:
            print_plan(states, machine, json=json)
            try:
                check_data(states, data)
            except BenchError as error:  # the images may be on another machine
                print(f"warning: the same command would not start here without --dry-run: {error}", file=sys.stderr)
            return

    from bench.cli.progress import View
    from bench.trackers.live import LiveTrackers

    trackers = LiveTrackers(words(tracker, "--tracker"), results, data)
    with interruptible(lambda: how_to_resume(results)), View(quiet=json) as view, trackers:

        def watch(states: Sequence[CellState]) -> None:
            view.show(states)
            trackers.watch(states)

        states = run_suite(
            loaded,
            results=results,
            store=store,
            data=data,
            settings=settings,
            methods=only,
            seeds=only_seeds,
            rerun=Rerun(rerun),
            retry=RetryPolicy(tries or max_attempts, hang or heartbeat_timeout),
            watch=watch,
            detach=detach,
        )
        if not detach:
            trackers.watch(states)  # also if there was nothing to run
            view.finish(states)

    if json:
        print_json(
            [
                {
                    "name": state.folder.path.name,
                    "method": state.cell.method.label,
                    "seed": state.cell.seed,
                    "status": state.status,
                    "reason": state.reason,
                    "folder": str(state.folder.path),
                }
                for state in states
            ]
        )
    elif detach:
        queued = sum(state.status == "queued" for state in states)
        print(f"{queued} of {len(states)} cells are queued; `bench watch` monitors them, and the same command without")
        print("--detach collects their results")
    else:
        print_leaderboard(loaded.suite.protocol.fingerprint, results, store)
    if any(state.status not in {"finished", *(["queued"] if detach else [])} for state in states):
        raise typer.Exit(ExitCode.SOME_FAILED)


def pairs(words: list[str]) -> dict[str, str]:
    """Return KEY=VALUE words as a dict. Raises typer.BadParameter for anything else."""
    options = dict(word.partition("=")[::2] for word in words)
    for key, value in options.items():
        if not (key and value):
            raise typer.BadParameter(f"'{key:.60}' is not of the form option=value")
    return options


def warn_of_emulation(states: Sequence[CellState], machine: Machine) -> None:
    """Print a warning on stderr if the machine emulates the precision of the cells to run."""
    for state in states:
        if state.action != "skip" and state.work and (warning := machine.emulation(state.cell.protocol, state.work)):
            print(f"warning: {warning}", file=sys.stderr)
            return


def print_plan(states: Sequence[CellState], machine: Machine, *, json: bool) -> None:
    """Print which cells would run, the estimated compute, and the hours on this machine.

    The hours are estimated from a few attack steps that are timed now. Compute and hours are None if the images would
    have to be counted and are not there.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bench.utils.formatting import counted, duration

    rows: list[dict[str, Any]] = []
    for state in states:
        work, skipped = state.work, state.action == "skip"
        rows.append(
            {
                "cell": str(state.cell),
                "fingerprint": state.cell.fingerprint,
                "status": state.status,
                "action": state.action,
                "pflop": 0.0 if skipped else work and work.total,
                "hours": 0.0 if skipped else work and machine.hours(state.cell.protocol, work),
            }
        )
    if json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("cell", "status", "action", "PFLOP, about", "hours here, about"):
        table.add_column(heading, justify="right" if "about" in heading else "left")
    for row in rows:
        figures = ["?" if row[key] is None else f"{float(f'{row[key]:.3g}'):,g}" for key in ("pflop", "hours")]
        table.add_row(Text(row["cell"]), row["status"], row["action"], *figures)
    console = Console()
    console.print(table)
    pflop, hours = (sum(row[key] or 0 for row in rows) for key in ("pflop", "hours"))
    estimate = f"about {float(f'{pflop:.3g}'):,g} PFLOP, {duration(3600 * hours)} in sequence on {machine.name}"
    if any(row["pflop"] is None for row in rows):
        estimate = "compute unknown: the images must be counted, and are not there (--data)"
    running = sum(row["action"] != "skip" for row in rows)
    console.print(f"{running} of {counted(len(rows), 'cell')} would run, {estimate}", highlight=False)
