"""`bench run`: run what a suite still needs, and show the leaderboard."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from bench.cli.options import (
    EXIT_SOME_FAILED,
    Data,
    Device,
    Json,
    Methods,
    Results,
    Seeds,
    Selection,
    StoreURL,
    Suite,
    Threads,
    interruptible,
    numbers,
    print_json,
    words,
)
from bench.cli.report import Format, print_boards


class Kind(StrEnum):
    """What runs the cells."""

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
    executor: Annotated[Kind, typer.Option("--executor", help="Where cells run.")] = Kind.LOCAL,
    jobs: Annotated[Optional[int], typer.Option("--jobs", min=1, help="Cells at a time.")] = None,  # noqa: UP045
    threads: Threads = None,
    gpus: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--gpus", help="Only these GPUs of this machine: numbers, with commas."),
    ] = None,
    jobs_per_gpu: Annotated[int, typer.Option("--jobs-per-gpu", min=1, help="Cells that share a GPU.")] = 1,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--address", help="Of a Ray cluster: auto or host:port; default: one on this machine."),
    ] = None,
    slurm: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--slurm", help="Option of sbatch, such as partition=gpu or time=1-00:00:00; may be repeated."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave the cells to Slurm's queue; look with `bench watch`.")
    ] = False,
    rerun: Annotated[str, typer.Option("--rerun", help="missing, failed or all.")] = "missing",
    max_attempts: Annotated[
        int, typer.Option("--max-attempts", min=1, help="Maximum attempts per cell if its worker dies.")
    ] = 3,
    tries: Annotated[Optional[int], typer.Option("--tries", min=1, hidden=True)] = None,  # noqa: UP045  former spelling
    heartbeat_timeout: Annotated[
        float,
        typer.Option("--heartbeat-timeout", min=1, help="Minutes without a heartbeat after which a worker is killed."),
    ] = 30,
    hang: Annotated[Optional[float], typer.Option("--hang", min=1, hidden=True)] = None,  # noqa: UP045  former spelling
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")] = False,
    json: Json = False,
) -> None:
    """Train and evaluate the cells of a suite that have not ended, then print the leaderboard.

    Interrupted, it says what is saved and which command goes on from there.
    """
    from bench.config.suite import load_suite, select_cells
    from bench.errors import BenchError, did_you_mean
    from bench.execution.driver import RetryPolicy, run_suite
    from bench.execution.executor import ExecutorSettings
    from bench.execution.plan import Rerun, plan

    if rerun not in set(Rerun):
        raise BenchError(f"--rerun '{rerun:.60}'{did_you_mean(rerun, Rerun)}")
    loaded = load_suite(suite)
    only, only_seeds = words(methods), numbers(seeds)
    settings = ExecutorSettings(
        executor=executor.value,
        device=device,
        jobs=jobs,
        threads=threads,
        gpus=tuple(numbers(gpus)),
        jobs_per_gpu=jobs_per_gpu,
        address=address,
        slurm=pairs(slurm or []),
    )
    if dry_run:
        from bench.cli.progress import print_plan

        devices = loaded.suite.execution.devices or 1
        chosen = select_cells(loaded.cells, only, only_seeds)
        planned = plan(chosen, results, Rerun(rerun), data=data, devices=devices)
        print_plan(planned, device if executor is Kind.LOCAL else "auto", json=json)
        return

    from bench.cli.progress import View

    with interruptible(lambda: saved(results)), View(quiet=json) as view:
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
            watch=view.update,
            detach=detach,
        )
        if not detach:
            view.finish(states)

    if json:
        print_json(
            [
                {
                    "name": state.planned.folder.path.name,
                    "method": state.planned.cell.method.label,
                    "seed": state.planned.cell.seed,
                    "status": state.status,
                    "reason": state.reason,
                    "folder": str(state.planned.folder.path),
                }
                for state in states
            ]
        )
    elif detach:
        queued = sum(state.status == "waiting" for state in states)
        print(f"{queued} of {len(states)} cells are in the queue; `bench watch` shows them, and the same command")
        print("without --detach takes in what they came to")
    else:
        print_leaderboard(loaded.suite.protocol.fingerprint, results, store)
    if any(state.status not in {"finished", *(["waiting"] if detach else [])} for state in states):
        raise typer.Exit(EXIT_SOME_FAILED)


def pairs(words: list[str]) -> dict[str, str]:
    """Return KEY=VALUE words as a dict. Raises typer.BadParameter for anything else."""
    found = dict(word.partition("=")[::2] for word in words)
    for key, value in found.items():
        if not (key and value):
            raise typer.BadParameter(f"'{key:.60}' is not of the form option=value")
    return found


def saved(results: Path) -> str:
    """Return what is kept after an interruption, and the command that goes on from there."""
    command = shlex.join(["bench", *without_rerun(sys.argv[1:])])
    return f"every finished epoch and attack is saved in {results}; continue with: {command}"


def without_rerun(words: list[str]) -> list[str]:
    """Return a command's words without `--rerun`: what it asked for has been prepared, and is now merely missing."""
    kept, skip = [], False
    for word in words:
        if not (skip or word == "--rerun" or word.startswith("--rerun=")):
            kept.append(word)
        skip = word == "--rerun"
    return kept


def print_leaderboard(protocol: str, results: Path, store: str | None) -> None:
    """Print the protocol's leaderboard, unless no cell of it has been measured."""
    from bench.errors import NothingMeasured
    from bench.reporting.leaderboard import leaderboards
    from bench.storage.store import Store

    try:
        with Store.of(results, store) as opened:
            print_boards(leaderboards(opened, protocol=protocol, selection=Selection.VALIDATION.value), Format.TERMINAL)
    except NothingMeasured as error:
        print(f"bench: {error}", file=sys.stderr)
