"""Checks of the installation, the machine and the results, each with a sentence on what to do."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.errors import BenchError, printable
from bench.registry import DATASETS, METHODS, MODELS, Registry
from bench.storage.database import NoStore
from bench.storage.run_folder import run_folders
from bench.storage.store import Store
from bench.storage.verify import verify
from bench.utils.device import cores
from bench.utils.environment import cpu_name, versions


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def diagnose(results: Path, store: str | None) -> list[Check]:
    """Return every check, the failed ones with what to do. Writes nothing."""
    return [
        _check("versions", _versions),
        _check("torchvision", _torchvision),
        _check("AutoAttack", _autoattack),
        _check("processor", lambda: f"{cpu_name()}, {cores()} cores for this process"),
        _check("GPU", _gpu),
        *(_check(f"{registry.kind}s", partial(_registry, registry)) for registry in (METHODS, DATASETS, MODELS)),
        _check("results folder", lambda: _results(results)),
        _check("store", lambda: _store(results, store)),
        *_runs(results, store),
    ]  # fmt: skip


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Exception as error:  # a broken package can raise anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check(name, False, text)


def _versions() -> str:
    return ", ".join(f"{package} {version or 'missing'}" for package, version in versions().items())


def _torchvision() -> str:
    try:
        torchvision = importlib.import_module("torchvision")
    except RuntimeError as error:  # operator torchvision::nms does not exist
        raise BenchError(
            f"torchvision does not fit the installed torch ({error}); install both from the same place: "
            "pip install --force-reinstall torch torchvision"
        ) from error
    return f"{torchvision.__version__} fits torch"


def _autoattack() -> str:
    importlib.import_module("pyautoattack")
    return "the attacks of pyautoattack import"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"none seen by torch {torch.__version__}; runs use the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bf16 = "with" if torch.cuda.is_bf16_supported(False) else "without"
    return f"{', '.join(names)}, {bf16} bfloat16"


def _registry(registry: Registry) -> str:
    names = registry.names()
    for name in names:
        registry.entry(name)
    if not names:
        raise BenchError("none are registered; reinstall the package, its entry points are missing")
    return f"{len(names)} import: {', '.join(names)}"


def _results(results: Path) -> str:
    folder = results
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise BenchError(f"{folder.resolve()} cannot be written; choose another with --results")
    free = shutil.disk_usage(folder).free / 2**30
    return f"{results.resolve()}, {free:.0f} GiB free"


def _store(results: Path, url: str | None) -> str:
    try:
        with Store.of(results, url, create=False) as store:
            return f"{store.describe()}"
    except FileNotFoundError:
        if run_folders(results):
            raise BenchError("there is none, though there are run folders; `bench ingest` makes it from them") from None
        return "none yet; the first run creates it"


def _runs(results: Path, url: str | None) -> list[Check]:
    """Return one check for the store's content and the run folders, or one for each thing that is amiss there."""
    try:
        with Store.of(results, url, create=False) as store:
            verdict = verify(store, results)
    except NoStore:
        return []
    except BenchError as error:
        return [Check("runs", False, str(error))]
    if verdict.problems:
        return [Check("runs", False, printable(problem)) for problem in verdict.problems]
    elsewhere = f"; the folders of {verdict.elsewhere} runs are elsewhere" if verdict.elsewhere else ""
    detail = (
        f"{verdict.runs} in the store, {verdict.folders} folders: every file has its digest, every outcome its accuracy"
    )
    return [Check("runs", True, f"{detail}{elsewhere}")]
