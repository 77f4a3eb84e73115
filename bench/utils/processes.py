"""Processes that import the code of the process that starts them, wherever that was started."""

from __future__ import annotations

import os
import sys
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
