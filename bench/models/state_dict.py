"""State dicts in safetensors or plain torch files, checked before use.

Nothing in such a file is executed: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.architecture import Network

State: TypeAlias = Mapping[str, Tensor]

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "best", "last"),
    *("ema", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "swa", "swa_state_dict", "swa_model"),
)
"""Keys under which training scripts put a state dict."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
"""Prefixes of the names in wrapped networks: data parallelism, torch.compile, and classes that hold the network."""

SHOWN = 3
"""The number of names that a message lists before it counts the rest."""


def read_plain(path: Path) -> object:
    """Return the content of a safetensors file, or of a torch file of plain tensors and containers.

    Raises:
        BenchError: no such file, the file is damaged, or it contains code.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_growth(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about files that are refused right after
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BenchError(f"weights {path}: no such file") from None
    except Exception as error:  # torch raises nearly anything for a damaged file
        raise BenchError(f"weights {path}: not a file of plain tensors: {_reason(error)}") from error


def _refuse_growth(path: Path) -> None:
    """Raise ValueError for a zip archive whose members are larger than the file: torch does not compress."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = sum(member.file_size for member in archive.infolist())
        if content > path.stat().st_size:
            raise ValueError(f"it would unpack to {content} bytes, more than its size; torch does not compress")


def _reason(error: Exception) -> str:
    """Return the cause in a few words, without torch's advice to execute the file."""
    if match := re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error)):
        return f"it would run {match[1][:80]}, which is not allowed; save the state dict alone"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0][:200]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors or torch file, taken out of the usual wrappers.

    Raises:
        BenchError: no such file, or it holds anything but the named tensors of one network.
    """
    content = read_plain(path)
    for _ in WRAPPERS:  # a file may contain itself
        if not isinstance(content, Mapping):
            break
        inside = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if len(inside) > 1:
            raise BenchError(f"weights {path}: it holds several networks, {listed(inside)}; save only the one to load")
        if not inside:
            break
        content = content[inside[0]]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(item, Tensor) for item in content.values())
    ):
        raise BenchError(f"weights {path}: not a state dict; it must map names to tensors")
    return {str(name): tensor for name, tensor in content.items()}


def load_weights(network: nn.Module, path: Path) -> bool:
    """Load a state dict into `network`, or into its body if the file has no normalisation.

    Prefixes that all names share (`PREFIXES`) are removed if the names fit without them; `module.` also from single
    names.

    Returns:
        Whether the file had the normalisation, which is then the network's.

    Raises:
        BenchError: the file is no state dict, or names are missing, unexpected, or of another shape. Nothing is loaded.
    """
    state = read_state_dict(path)
    targets = [network, network.body] if isinstance(network, Network) else [network]
    fits = [
        (_misfits(variant, target.state_dict()), target, variant) for target in targets for variant in _variants(state)
    ]
    misfits, target, variant = min(fits, key=lambda fit: sum(map(len, fit[0])))
    if any(misfits):
        raise BenchError(f"weights {path}: {_complaint(misfits, variant, target.state_dict())}")
    target.load_state_dict({**target.state_dict(), **variant})
    return isinstance(target, Network)


def _variants(state: State, depth: int = 4) -> Iterator[State]:
    """Yield the state unchanged, and with one shared prefix after the other removed."""
    yield state
    if any(name.startswith("module.") for name in state):  # partly parallel networks have it in some names
        yield {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for prefix in PREFIXES if depth else ():
        if all(name.startswith(prefix) for name in state):
            yield from _variants({name.removeprefix(prefix): tensor for name, tensor in state.items()}, depth - 1)


Misfits: TypeAlias = tuple[list[str], list[str], list[str]]
"""Names that are missing, unexpected, and of another shape."""


def _misfits(state: State, expected: State) -> Misfits:
    return (
        [name for name in expected if name not in state and not name.endswith("num_batches_tracked")],
        [name for name in state if name not in expected],
        [name for name in state if name in expected and state[name].shape != expected[name].shape],
    )


def _complaint(misfits: Misfits, state: State, expected: State) -> str:
    """Return the misfits as text: a few names of each kind, and their number."""
    missing, unexpected, misshaped = misfits
    parts = []
    if missing:
        parts.append(f"{_counted(missing)} of the network missing: {listed(missing)}")
    if unexpected:
        parts.append(f"{_counted(unexpected)} that the network does not have: {listed(unexpected)}")
    if misshaped:
        name = misshaped[0]
        shapes = f"{list(state[name].shape)}, the network needs {list(expected[name].shape)}"
        parts.append(f"{_counted(misshaped)} of another shape, such as '{name:.80}': {shapes}")
    return f"they do not fit the network: {'; '.join(parts)}"


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'}"


def listed(names: Iterable[str]) -> str:
    """Return the first few of `names` in quotes, and the number of the others."""
    names = list(names)
    shown = ", ".join(f"'{name:.80}'" for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
