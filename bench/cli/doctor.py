"""`bench doctor`: checks of the installation, the machine and the results, each with advice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from bench.cli.options import Data, Json, Results, StoreURL
from bench.cli.output import print_json
from bench.errors import BenchError, ExitCode, printable

if TYPE_CHECKING:
    from bench.registry import Registry


class Check(NamedTuple):
    """The result of one check."""

    check: str
    ok: bool
    detail: str


def doctor(results: Results = Path("results"), store: StoreURL = None, data: Data = None, json: Json = False) -> None:
    """Check installation, database and runs.

    Each file of a run folder is compared with its digest, each outcome with its accuracy, and the database with the
    run folders. Runs of one protocol must have used the same images, and with --data, those that are there. Exit 2 if a
    check fails.
    """
    checks = diagnose(results, store, data)
    if json:
        print_json([check._asdict() for check in checks])
    else:
        width = max(len(check.check) for check in checks)
        for check in checks:
            print(f"{'ok ' if check.ok else 'BAD'}  {check.check:<{width}}  {check.detail}")
    if not all(check.ok for check in checks):
        raise typer.Exit(ExitCode.INVALID)


def diagnose(results: Path, store: str | None, data: Path | None = None) -> list[Check]:
    """Return the result of every check. Writes nothing."""
    from bench.registry import DATASETS, METHODS, MODELS

    return [
        _check("versions", _versions),
        _check("torchvision", _torchvision),
        _check("AutoAttack", _autoattack),
        _check("processor", _processor),
        _check("GPU", _gpu),
        *(_check(f"{registry.kind}s", partial(_registry, registry)) for registry in (METHODS, DATASETS, MODELS)),
        _check("results folder", lambda: _results(results)),
        _check("store", lambda: _store(results, store)),
        *_runs(results, store),
        *(_data(results, data) if data else ()),
    ]


def _check(name: str, examine: Callable[[], str]) -> Check:
    try:
        return Check(name, True, examine())
    except Exception as error:  # a broken package can raise anything
        return Check(name, False, str(error).splitlines()[0] if str(error) else type(error).__name__)


def _versions() -> str:
    from bench.utils.environment import versions

    return ", ".join(f"{package} {version or 'missing'}" for package, version in versions().items())


def _torchvision() -> str:
    try:
        import torchvision
    except RuntimeError as error:  # operator torchvision::nms does not exist
        raise BenchError(
            f"torchvision does not match the installed torch ({error}); reinstall both: "
            "pip install --force-reinstall torch torchvision"
        ) from error
    return f"{torchvision.__version__} matches torch"


def _autoattack() -> str:
    import pyautoattack

    return f"{pyautoattack.__name__} can be imported"


def _processor() -> str:
    import torch

    from bench.utils.device import cores, emulates_bf16
    from bench.utils.environment import cpu_name

    bf16 = "bfloat16 is emulated, very slow" if emulates_bf16(torch.device("cpu")) else "bfloat16 in hardware"
    return f"{cpu_name()}, {cores()} cores for this process, {bf16}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees none; runs use the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bf16 = "with" if torch.cuda.is_bf16_supported(False) else "without"
    return f"{', '.join(names)}, {bf16} bfloat16"


def _registry(registry: Registry) -> str:
    names = registry.names()
    for name in names:
        registry.entry(name)
    if not names:
        raise BenchError("none are registered; reinstall the package, its entry points are missing")
    return f"{len(names)} can be imported: {', '.join(names)}"


def _results(results: Path) -> str:
    import os
    import shutil

    folder = results
    while not folder.exists():
        folder = folder.parent
    if os.access(folder, os.W_OK):
        return f"{results.resolve()}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"
    if folder == results and os.access(folder, os.R_OK | os.X_OK):
        return f"{results.resolve()} may only be read: `bench run` needs another folder (--results)"
    raise BenchError(f"{folder.resolve()} cannot be written; choose another folder with --results")


def _store(results: Path, url: str | None) -> str:
    from bench.storage.run_folder import run_folders
    from bench.storage.store import Store, default_url

    try:
        with Store(url or default_url(results), create=False) as store:
            return store.describe()
    except FileNotFoundError:
        if run_folders(results):
            raise BenchError("missing, although there are run folders; `bench ingest` rebuilds it") from None
        return "none yet; the first run creates it"


def _runs(results: Path, url: str | None) -> list[Check]:
    """Return one check of the database's content and the run folders, or one for each problem."""
    from bench.storage.database import NoStore
    from bench.storage.store import Store, default_url
    from bench.storage.verify import verify

    try:
        with Store(url or default_url(results), create=False) as store:
            report = verify(store, results)
    except NoStore:
        return []
    except (BenchError, OSError) as error:
        return [Check("runs", False, str(error))]
    if report.problems:
        return [Check("runs", False, printable(problem)) for problem in report.problems]
    elsewhere = f"; the folders of {report.elsewhere} runs are elsewhere" if report.elsewhere else ""
    detail = f"{report.runs} in the database, {report.folders} folders: all digests and accuracies match"
    return [Check("runs", True, f"{detail}{elsewhere}")]


def _data(results: Path, root: Path) -> list[Check]:
    """Return one check of the images below the data root against those of every run, or one for each problem."""
    from bench.config.cell import Cell
    from bench.execution.data_identity import DataRoot
    from bench.registry import DATASETS
    from bench.storage.run_folder import run_folders

    images, problems = DataRoot(root), {}
    for folder in run_folders(results):
        try:
            cell = Cell.model_validate(folder.cell()["cell"])
            if cell.protocol.dataset.name in DATASETS.names():  # not of a plug-in, which is not executed for this
                images.check(cell, folder)
        except (BenchError, ValueError, KeyError) as error:
            problems[str(error)] = Check("data", False, printable(str(error)))
    return [*problems.values()] or [Check("data", True, f"{root}: no run used other images than are there")]
