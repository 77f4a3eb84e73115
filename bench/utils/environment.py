"""The environment of a run: hardware, versions, revision of the code. Recorded, but not part of any identity."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.outside import sources_digest

if TYPE_CHECKING:
    import torch

PACKAGES = ("robust-overfitting-bench", "torch", "torchvision", "numpy", "pyautoattack", "robustbench", "timm")

DATA = {"training": "training images", "test": "test images"}
"""The digests in `data` of a run's environment, each with its name in sentences."""


def versions() -> dict[str, str | None]:
    """Return the installed version of each package that results may depend on; None if it is missing."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


@cache
def code_digest() -> str:
    """Return the SHA-256 (hex) of the sources of `bench` and the built-in methods that this process imports.

    It is of their names and contents, so it tells edited files from committed ones, with and without git.
    """
    package = Path(__file__).parents[1]
    sources = [path for folder in (package, package.parent / "methods") for path in folder.rglob("*.py")]
    return sources_digest(sources, package.parent)


def different_data(environments: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return which of the named environments had which data, in words; None if all that they record is equal.

    Older versions recorded none, and an external model has no training images.
    """
    parts = []
    for part, words in DATA.items():
        names: dict[str, list[str]] = {}
        for name, environment in environments.items():
            if digest := (environment.get("data") or {}).get(part):
                names.setdefault(digest, []).append(name)
        if len(names) > 1:
            listed = "; ".join(f"{digest[:12]}: {', '.join(some)}" for digest, some in names.items())
            parts.append(f"{words} ({listed})")
    return ", ".join(parts) or None


def other_code(recorded: Mapping[str, Any], plugins: Mapping[str, str]) -> str | None:
    """Return what code made a run, if it is not the code that is here.

    Args:
        recorded: the run's environment.
        plugins: the digests of the plug-ins that the run would use here.
    """
    then, now = recorded.get("code"), code_digest()
    if then is None:
        return "code that it does not name"
    if then != now:
        return f"other code (digest {then[:12]}, here {now[:12]})"
    before = recorded.get("plugins", {})
    for name in sorted({*before, *plugins}):
        if before.get(name) != plugins.get(name):
            digests = [str(digest)[:12] for digest in (before.get(name), plugins.get(name))]
            return f"other code of the plug-in for the {name} (digest {digests[0]}, here {digests[1]})"
    return None


def git_revision(folder: Path) -> dict[str, Any]:
    """Return the commit of the checkout that holds `folder` and whether files differ from it; empty outside one."""
    try:
        top = Path(_git(folder, "rev-parse", "--show-toplevel"))
        if not (top / "bench" / "training" / "method.py").exists():  # installed inside the checkout of another project
            return {}
        return {"revision": _git(top, "rev-parse", "HEAD"), "dirty": bool(_git(top, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(
    device: torch.device, threads: int, plugins: Mapping[str, str] | None = None, *, compiled: bool = False
) -> dict[str, Any]:
    """Return the environment of a run on `device` as JSON data.

    `plugins`: the digests of those that it uses; `compiled`: whether its network is compiled for training.
    """
    import torch  # here, because its import takes seconds, and commands that only read results need none of it

    from bench.utils.device import cores

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": versions(),
        "code": code_digest(),
        "plugins": dict(plugins or {}),
        "git": git_revision(Path(__file__).parent),
        "system": platform.platform(),
        "host": socket.gethostname(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": threads,
        "kernels": "compiled"
        if compiled
        else "eager",  # of training; older versions recorded nothing and had eager ones
        "device": device.type,
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
    }
