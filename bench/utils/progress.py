"""The one callback by which long jobs report their progress."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Called with the finished and the total units of work; attacks may add the share of images robust so far."""

    def __call__(self, done: int, total: int, /, robust: float | None = None) -> None: ...


def no_progress(_done: int, _total: int, /, robust: float | None = None) -> None:
    """Report nothing."""
