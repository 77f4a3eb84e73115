"""Processes that import the code of the process that starts them, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def import_no_working_directory() -> None:
    """Keep the working directory off the import path, here and in all processes started from now on.

    Python runs the servers and children of `multiprocessing` with `-c`, which puts the working directory first on the
    path, as an empty entry of PYTHONPATH does: a file `random.py` or another checkout of `bench` there would be
    imported in place of the real one. The variables are inherited, also by jobs of Slurm and Ray.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    path = os.environ.get("PYTHONPATH", "")
    entries = path.split(os.pathsep)
    if path and "" in entries:
        named = [entry for entry in entries if entry]
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        unwanted = {"", str(Path.cwd())} - {str(Path(entry).absolute()) for entry in named}
        sys.path[:] = [entry for entry in sys.path if entry not in unwanted]


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started within ignore Ctrl-C from their first moment on; the process that starts them ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def end_with_parent() -> None:
    """End this process at once when the process that started it through `multiprocessing` dies, even by SIGKILL.

    That one holds the other end of a pipe; the parent that the system knows may be a fork server, which lives on. Where
    another program started this process, as Slurm and Ray do, nothing happens: their jobs outlive the driver.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
