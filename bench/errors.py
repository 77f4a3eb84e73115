"""Errors that a user can fix.

A wrong suite, a missing dataset or a folder without write permission raises a `BenchError` with one sentence. The
command line prints the sentence and exits with `exit_code`. Any other exception is a bug, whose traceback the command
line writes to a file.

    BenchError               exit code 2: wrong command, suite, environment or file
    ├── DamagedFile          a file does not match its SHA-256, or cannot be parsed
    ├── NotFound             the files of a dataset are missing
    ├── NothingMeasured      exit code 4: there is nothing to show or to compare
    └── NotComparable        exit code 4: measured under different settings
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the command line, as docs/cli.md lists them."""

    SUCCESS = 0
    REGRESSION = 1  # of the regression gate alone: Python's own 1 for an uncaught exception never gets out
    INVALID = 2
    SOME_FAILED = 3
    NOTHING_MEASURED = 4
    DIFFERENT = 5
    INTERNAL = 70  # EX_SOFTWARE of sysexits.h
    INTERRUPTED = 130  # 128 + SIGINT, as in shells
    READER_ENDED = 141  # 128 + SIGPIPE


def printable(text: str) -> str:
    """Return `text` on one line and without control characters, which names and labels in files may contain."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


class BenchError(Exception):
    """One sentence for the user: what is wrong, where, and what to write instead.

    It is one line without control characters, whatever file names, keys and values it contains. `exit_code` is the exit
    code of the command line.
    """

    exit_code: int = ExitCode.INVALID

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class NothingMeasured(BenchError):
    """There is nothing to show or to compare."""

    exit_code = ExitCode.NOTHING_MEASURED


class NotComparable(BenchError):
    """Two results were measured under different settings, so their difference has no meaning."""

    exit_code = ExitCode.NOTHING_MEASURED


class NotFound(BenchError):
    """The files of a dataset are missing."""


class DamagedFile(BenchError):
    """A file of a run folder does not match its recorded SHA-256, or cannot be parsed."""


LISTED = 24
"""Names that a sentence lists; of more, it names the closest `SHOWN`."""

SHOWN = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `known`, or the list of `known` if none is near.

    Of a long list, those that contain `word` are named, else those most similar to it.
    """
    known = sorted(known)
    nearest = get_close_matches(word, known, n=1, cutoff=0.6)
    if nearest:
        return f"; did you mean '{nearest[0]}'?"
    if len(known) > LISTED:
        closest = [name for name in known if word and word in name] or get_close_matches(word, known, SHOWN, cutoff=0)
        return f"; the closest of {len(known)}: {', '.join(closest[:SHOWN])}"
    return f"; known: {', '.join(known)}" if known else ""
