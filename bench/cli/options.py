"""The options that several commands share, each described once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Selection(StrEnum):
    """Which images chose the best checkpoint."""

    VALIDATION = "validation"
    TEST = "test"


def complete_suite(incomplete: str) -> list[str]:
    """Complete the name of a shipped suite."""
    from bench.config.suite import shipped_suites

    return [name for name in shipped_suites() if name.startswith(incomplete)]


Suite = Annotated[
    str, typer.Argument(help="A suite file, or the name of a shipped one.", autocompletion=complete_suite)
]
OnlySuite = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(help="Only this suite's protocol; default: every one.", autocompletion=complete_suite),
]
SelectedBy = Annotated[
    Selection, typer.Option("--selection", help="Images that chose `best`; the test set is an oracle.")
]
Results = Annotated[Path, typer.Option("--results", help="Folder of the run folders and the default store.")]
StoreURL = Annotated[Optional[str], typer.Option("--store", help="SQLAlchemy URL of the store.")]  # noqa: UP045
Data = Annotated[Optional[Path], typer.Option("--data", envvar="BENCH_DATA", help="Root folder of the datasets.")]  # noqa: UP045
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[Optional[int], typer.Option("--threads", min=1, help="CPU threads of each worker.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Methods = Annotated[Optional[str], typer.Option("--methods", help="Only these methods: names or labels, with commas.")]  # noqa: UP045
Seeds = Annotated[Optional[str], typer.Option("--seeds", help="Only these seeds, with commas.")]  # noqa: UP045


def words(text: str | None) -> list[str]:
    """Split a list with commas; None is an empty one."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def numbers(text: str | None) -> list[int]:
    """Split a list of whole numbers with commas. Raises typer.BadParameter for anything else."""
    found = words(text)
    for word in found:
        if not word.isdecimal():
            raise typer.BadParameter(f"'{word}' is not a whole number")
    return [int(word) for word in found]


@contextmanager
def interruptible(saved: Callable[[], str]) -> Iterator[None]:
    """Say on stderr what is `saved` when the block is interrupted, by Ctrl-C or SIGTERM, and exit with 130."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(f"bench: interrupted; {saved()}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def print_json(value: object) -> None:
    """Print `value` as JSON on stdout."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
