"""Networks of RobustBench's model zoo, from its local folder; nothing is downloaded.

Croce et al., RobustBench: a standardized adversarial robustness benchmark, 2021. This is the only module that imports
`robustbench`.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from torch import nn

from bench.config.attacks import Threat
from bench.errors import BenchError, did_you_mean
from bench.models.state_dict import read_plain

THREATS = {"linf": "Linf", "l2": "L2"}
"""RobustBench's names of the norms."""


def import_robustbench(module: str = "robustbench") -> ModuleType:
    """Import robustbench or a module of it, which takes a few seconds, and return it.

    It imports `autoattack`, but requires the package `pyautoattack`. Unless a package `autoattack` is installed, that
    name is made an alias of pyautoattack.

    Raises:
        BenchError: the import fails.
    """
    try:
        if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
            for name in ("", ".state"):
                sys.modules[f"autoattack{name}"] = importlib.import_module(f"pyautoattack{name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # meant for its developers
            return importlib.import_module(module)
    except Exception as error:  # its many imports fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"robustbench cannot be imported: {reason[:200]}") from error


def zoo_files(name: str, threat_name: str, folder: Path, dataset: str, threat: Threat) -> list[Path]:
    """Return the weight files of a network of the zoo, after checking that they hold plain tensors only.

    Args:
        name: of the network, such as "Carmon2019Unlabeled".
        threat_name: the zoo's threat model, "Linf" or "L2".
        folder: the zoo's local folder; the files lie in `<dataset>/<threat>/<name>.pt` below it.
        dataset: a dataset's name; the zoo knows cifar10, cifar100 and imagenet.
        threat: that of the suite, which must be the network's.

    Raises:
        BenchError: the threat is not the suite's, the dataset or name is unknown, or a file is missing or holds more
            than plain tensors.
    """
    what, suite_threat = f"robustbench:{threat_name}/{name}", THREATS[threat.norm]
    if threat_name != suite_threat:
        raise BenchError(f"{what:.120} has the threat '{threat_name:.40}', but the suite has {suite_threat}")
    known: dict[str, Any] = {kind.value: kind for kind in _enums().BenchmarkDataset}
    if dataset not in known:
        raise BenchError(f"{what:.120}: RobustBench has no networks for {dataset}{did_you_mean(dataset, known)}")
    networks = import_robustbench("robustbench.model_zoo").model_dicts[known[dataset]][
        _enums().ThreatModel(suite_threat)
    ]
    if name not in networks:
        raise BenchError(
            f"RobustBench has no network '{name:.80}' for {dataset}, {suite_threat}{_nearest(name, networks)}"
        )
    files = networks[name]["gdrive_id"]
    if files is None:
        raise BenchError(f"{what}: not supported: RobustBench downloads its weights while building it")
    stem = folder / dataset / suite_threat / name
    paths = [Path(f"{stem}_m{number}.pt") for number in range(len(files))] if isinstance(files, list) else [
        Path(f"{stem}.pt")
    ]  # fmt: skip
    for path in paths:
        if not path.is_file():
            raise BenchError(f"{what}: no file {path}; download it into the folder that --model-dir names")
        read_plain(path)
    return paths


def _nearest(name: str, known: Any) -> str:
    """Suggest the nearest name, without listing all of them."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("; did you mean") else f"; it has {len(known)}, such as '{sorted(known)[0]}'"


def _enums() -> Any:
    return import_robustbench("robustbench.model_zoo.enums")


def load_from_zoo(name: str, folder: Path, dataset: str, threat: Threat) -> nn.Module:
    """Return a network of the zoo, whose files `zoo_files` has checked; it takes images in [0, 1].

    Raises:
        BenchError: the weights do not fit, or loading needs a download.
    """
    load = import_robustbench("robustbench.utils").load_model
    try:
        with _offline(), redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = load(name, model_dir=folder, dataset=dataset, threat_model=THREATS[threat.norm])
    except BenchError:
        raise
    except Exception as error:  # its architectures raise anything
        lines = [line.strip() for line in str(error).splitlines()[:4] if line.strip()] or [type(error).__name__]
        raise BenchError(
            f"robustbench:{THREATS[threat.norm]}/{name} cannot be loaded: {' '.join(lines)[:400]}"
        ) from error
    return network


@contextmanager
def zoo_with(entry: tuple[str, dict[str, Any]], dataset: str, threat: Threat) -> Iterator[None]:
    """Add an entry, (name, {"model": ..., "gdrive_id": ...}), to the zoo.

    Raises:
        BenchError: the zoo has a network of this name.
    """
    name, content = entry
    kinds = _enums()
    networks = import_robustbench("robustbench.model_zoo").model_dicts[kinds.BenchmarkDataset(dataset)][
        kinds.ThreatModel(THREATS[threat.norm])
    ]
    if name in networks:
        raise BenchError(f"RobustBench has a network '{name}' already; choose another name")
    networks[name] = content
    try:
        yield
    finally:
        del networks[name]


@contextmanager
def _offline() -> Iterator[None]:
    """Make every connection to another machine fail."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise BenchError("RobustBench would download a part of this network; nothing is downloaded")

    before = socket.getaddrinfo, socket.socket.connect
    socket.getaddrinfo, socket.socket.connect = refuse, refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo, socket.socket.connect = before  # type: ignore[method-assign]
