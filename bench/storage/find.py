"""Finding a run folder by the beginning of its name."""

from __future__ import annotations

from pathlib import Path

from bench.errors import BenchError, NothingMeasured
from bench.storage.run_folder import RunFolder, run_folders


def find_run(run: str | Path, results: Path) -> RunFolder:
    """Return a run folder by its path, or by the beginning of its name below `results`, or of its cell's fingerprint.

    Raises:
        NothingMeasured: there is no such run.
        BenchError: several runs begin so.
        DamagedFile: the record of a cell is not what was written.
    """
    if (Path(run) / "cell.json").exists():
        return RunFolder(Path(run))
    name = str(run)
    matches = [
        folder
        for folder in run_folders(results)
        if folder.path.name.startswith(name) or folder.cell().get("fingerprint", "").startswith(name)
    ]
    if not matches:
        raise NothingMeasured(f"no run in {results / 'runs'} begins with '{name:.100}'; `bench list runs` names them")
    if len(matches) > 1:
        names = " and ".join(folder.path.name for folder in matches[:2])
        raise BenchError(f"'{name:.100}' is the beginning of several runs, such as {names}; add characters")
    return matches[0]
