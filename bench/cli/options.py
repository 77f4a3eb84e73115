"""The options that several commands share, each described once."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError, ExitCode


class Selection(StrEnum):
    """The images that select the best checkpoint."""

    VALIDATION = "validation"
    TEST = "test"


def complete_suite(incomplete: str) -> list[str]:
    """Complete the name of a shipped suite."""
    from bench.config.suite import shipped_suites

    return [name for name in shipped_suites() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Complete the name of a run in the default store."""
    from bench.storage.store import Store

    with suppress(FileNotFoundError), Store.of(Path("results"), create=False) as store:
        return [row["name"] for row in store.list_runs() if row["name"].startswith(incomplete)]
    return []


def complete_checkpoint(incomplete: str) -> list[str]:
    """Complete the name of a checkpoint."""
    from bench.storage.run_folder import CHECKPOINTS

    return [name for name in CHECKPOINTS if name.startswith(incomplete)]


def complete_tracker(incomplete: str) -> list[str]:
    """Complete the name of an experiment tracker, the last of a list."""
    from bench.registry import TRACKERS

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in TRACKERS.names() if name.startswith(last)]


Suite = Annotated[
    str, typer.Argument(help="A suite file, or the name of a shipped suite.", autocompletion=complete_suite)
]
OnlySuite = Annotated[
    str | None,
    typer.Argument(help="Only this suite's protocol; default: all protocols.", autocompletion=complete_suite),
]
SelectedBy = Annotated[
    Selection, typer.Option("--selection", help="Images that select `best`; the test set is an oracle.")
]
Results = Annotated[Path, typer.Option("--results", help="Folder of the run folders and the default database.")]
StoreURL = Annotated[
    str | None, typer.Option("--store", help="SQLAlchemy URL of the database; default: SQLite in the results folder.")
]
Data = Annotated[Path | None, typer.Option("--data", envvar="BENCH_DATA", help="Root folder of the datasets.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of each worker.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Methods = Annotated[str | None, typer.Option("--methods", help="Only these methods: names or labels, comma-separated.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Only these seeds, comma-separated.")]
Trackers = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        envvar="BENCH_TRACKER",
        help="Experiment trackers: tensorboard, mlflow, wandb; comma-separated.",
        autocompletion=complete_tracker,
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, atomically; default: stdout.")]

FORMAT = typer.Option("--format", help="Output format; default: as --output ends, else terminal.")


def words(text: str | None, option: str) -> list[str]:
    """Split the comma-separated list of an option; None is an empty one.

    Raises BenchError if nothing is listed: an unset variable of a shell must not select everything.
    """
    listed = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not listed:
        raise BenchError(f"{option} is empty; list values, separated by commas")
    return listed


def numbers(text: str | None, option: str) -> list[int]:
    """Split the comma-separated whole numbers of an option. Raises BenchError for anything else."""
    listed = words(text, option)
    for word in listed:
        if not word.isdecimal():
            raise BenchError(f"{option}: '{word:.40}' is not a whole number")
    return list(map(int, listed))


@contextmanager
def interruptible(saved: Callable[[], str]) -> Iterator[None]:
    """When the block is interrupted by Ctrl-C, SIGTERM or SIGHUP, print on stderr what is `saved` and exit with 130.

    SIGHUP, of a terminal that is closed, stays ignored under `nohup`.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(f"bench: interrupted; {saved()}", file=sys.stderr)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def how_to_resume(results: Path) -> str:
    """Return what is saved after an interruption, and the command that resumes."""
    command = shlex.join(["bench", *without_rerun(sys.argv[1:])])
    return f"every finished epoch and attack is saved in {results}; resume with: {command}"


def without_rerun(words: list[str]) -> list[str]:
    """Return a command's words without `--rerun`: the cells that it selected are reset by now, and count as missing."""
    kept, skip = [], False
    for word in words:
        if not (skip or word == "--rerun" or word.startswith("--rerun=")):
            kept.append(word)
        skip = word == "--rerun"
    return kept
