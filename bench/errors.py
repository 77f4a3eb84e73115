"""Errors that a user can act on.

Everything that is the user's to mend (a wrong suite, a missing dataset, a folder that cannot be written) raises
`BenchError` with one sentence; the command line prints that sentence and exits with `exit_code`. Any other
exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str) -> str:
    """Return `text` on one line and without control characters, which names and labels from elsewhere may hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


class BenchError(Exception):
    """One clear sentence for the user, who can mend the cause.

    It stays on one line and moves no cursor, whatever the file names, keys and values in it hold. `exit_code` is what
    the command line returns: 2 for a wrong command, suite or environment, 4 where nothing was measured or nothing is
    comparable.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class NothingMeasured(BenchError):
    """There is nothing to show or to compare."""

    exit_code = 4


class NotComparable(BenchError):
    """Two things were measured under different settings, so that no difference between them means anything."""

    exit_code = 4


class NotFound(BenchError):
    """The files of a dataset are not there."""


class DamagedFile(BenchError):
    """A file of a run folder does not match its recorded SHA-256, or cannot be parsed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `known`, or the list of what exists if nothing is near."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
