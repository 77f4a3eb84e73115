"""The folder of a site: which folders may be replaced, and how."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.errors import BenchError

MARKER = "bench-site.json"
"""The file that marks a folder as a site, and lists its files: only these are ever replaced."""

FORMAT = "bench-site"


def check_output(output: Path) -> Path:
    """Return the folder that `output` names, without links.

    Raises BenchError unless it is new, empty, or a site to which nothing was added.
    """
    folder = output.resolve()
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise BenchError(f"{output} is no folder; name a new folder with --output")
    there = _files(folder)
    if not there:
        return folder
    written = _written(folder)
    if not written:
        raise BenchError(f"{output} is not empty and not a site of `bench site`; name a new folder with --output")
    if others := sorted(there - written):
        raise BenchError(f"{output} has files that `bench site` did not write, such as {others[0]}; move them away")
    return folder


def _written(folder: Path) -> set[str]:
    """Return the files that the marker of a site lists, with the marker; none if the folder is no site."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        return {MARKER, *map(str, marker["files"])} if marker["format"] == FORMAT else set()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _files(folder: Path) -> set[str]:
    """Return the paths of all files, links and empty folders below a folder, relative to it."""
    paths = set()
    for top, folders, files in os.walk(folder):
        here = Path(top)
        links = [name for name in folders if (here / name).is_symlink()]
        empty = [here] if not folders and not files and here != folder else []
        paths |= {path.relative_to(folder).as_posix() for path in (*(here / name for name in (*files, *links)), *empty)}
    return paths


def write_site(output: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` (by relative path) and the marker as the whole content of the folder `output`.

    The new site is complete beside the old one before it takes its place, so a failure leaves the old one.

    Raises:
        BenchError: as `check_output`, or the folder cannot be written.
    """
    folder = check_output(output)
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{state}") for state in ("new", "old"))
    marker = {"format": FORMAT, "version": 1, "files": sorted(files)}
    try:
        for name, content in {**files, MARKER: (json.dumps(marker, indent=1) + "\n").encode()}.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise BenchError(f"{output} cannot be written: {error.strerror or error}") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
