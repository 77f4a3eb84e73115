"""Networks that were trained elsewhere: from weights, from RobustBench's zoo, or from a factory in a Python file."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bench import registry
from bench.config.attacks import Threat
from bench.config.cell import ExternalModel
from bench.config.protocol import Protocol
from bench.data.dataset import Dataset
from bench.errors import BenchError, did_you_mean
from bench.models.architecture import Network, build_network
from bench.models.robustbench_zoo import load_from_zoo, zoo_files
from bench.models.state_dict import load_weights

FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation, per channel in units of [0, 1]."""

_ZOO = re.compile(r"robustbench:(?:([^/]*)/)?(.*)")
_FACTORY = re.compile(r"(.+\.py)(?::(\w*))?")


@dataclass(frozen=True)
class Foreign:
    """A network from elsewhere, on the CPU, in eval mode: float [n, channels, height, width] in [0, 1] -> logits.

    `params` is what it is recognised by: `model`, `weights_sha256`, for weights that are normalised before `mean` and
    `std`, and for a factory `code_sha256`.
    """

    network: nn.Module
    params: dict[str, Any]


def located(where: ExternalModel) -> ExternalModel:
    """Return the same with absolute paths, for processes that work in other folders."""
    source = where.source
    if not _ZOO.fullmatch(source):
        source = str(Path(source).absolute())
    return where.model_copy(update={"source": source, "model_dir": str(Path(where.model_dir).absolute())})


def load_foreign(where: ExternalModel, dataset: Dataset, protocol: Protocol) -> Foreign:
    """Load a network trained elsewhere and try it on images of the dataset's shape.

    Args:
        where: where it is.
        dataset: whose images it is to classify, as the protocol configures it.
        protocol: its threat must be that of a network of the zoo; its architecture is that of weights that name none.

    Raises:
        BenchError: there is no such network, something needed is not stated, its weights do not fit or are not plain
            tensors, or it does not return one finite logit for each class.
    """
    zoo, factory = _ZOO.fullmatch(where.source), _FACTORY.fullmatch(where.source)
    if (zoo or factory) and (where.model or where.normalisation):
        raise BenchError(
            f"{where.source}: --model and --normalisation are for weights files; this network takes images in [0, 1]"
        )
    if zoo:
        found = _from_zoo(zoo[1] or "", zoo[2], Path(where.model_dir), dataset, protocol.threat)
    elif factory:
        found = _from_factory(Path(factory[1]), factory[2] or "")
    else:
        found = _from_weights(where, where.model or protocol.model, dataset)
    found.network.eval().requires_grad_(False)
    _check(found.network, where.source, dataset)
    return found


# --- weights ---------------------------------------------------------------------------------------------------------


def _from_weights(where: ExternalModel, model: str, dataset: Dataset) -> Foreign:
    path = Path(where.source)
    if not path.is_file():
        raise BenchError(f"weights {path}: no such file{_hint(where.source)}")
    if path.suffix not in FORMATS:
        raise BenchError(f"weights {path}: not a format that is read; known: {', '.join(FORMATS)}")
    stated = None if where.normalisation is None else parse_normalisation(where.normalisation, dataset)
    network = build_network(registry.MODELS.get(model), dataset, 0)
    digest = _digest([path])
    if load_weights(network, path):
        own = _floats(network.mean), _floats(network.std)
        if stated is not None and tuple(map(tuple, stated)) != own:
            raise BenchError(f"weights {path}: they state another normalisation themselves; leave --normalisation out")
        stated = own
    elif stated is None:
        raise BenchError(
            f"weights {path}: state what images were normalised by in training: --normalisation none, dataset, or "
            '"m,m,m/s,s,s" (means / standard deviations of the channels)'
        )
    mean, std = stated
    plain = all(value == 0 for value in mean) and all(value == 1 for value in std)
    named = {} if plain else {"mean": list(mean), "std": list(std)}
    return Foreign(Network(network.body, mean, std), {"model": model, **named, "weights_sha256": digest})


def parse_normalisation(text: str, dataset: Dataset) -> Normalisation:
    """Return the mean and the standard deviation that `none`, `dataset` or `m,m,m/s,s,s` states.

    Raises:
        BenchError: it states none, or not those of as many channels as the dataset has.
    """
    channels = dataset.shape[0]
    if text == "none":
        return (0.0,) * channels, (1.0,) * channels
    if text == "dataset":
        return dataset.mean, dataset.std
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        raise BenchError(
            f"--normalisation '{text:.60}' is not one; write none, dataset, or means and standard deviations as "
            '"0.49,0.48,0.45/0.25,0.24,0.26"'
        ) from None
    if not len(mean) == len(std) == channels or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise BenchError(
            f"--normalisation '{text:.60}': {dataset.name} needs {channels} finite means and as many standard "
            "deviations above 0"
        )
    return mean, std


def _floats(values: Tensor) -> tuple[float, ...]:
    """Return fp32 values as the shortest decimals that give them again: 0.4914, not 0.4914000034332275."""
    return tuple(float(str(np.float32(value))) for value in values.flatten().tolist())


def _hint(source: str) -> str:
    """Say what somebody may have meant who names no file."""
    if source.startswith("timm/"):
        return f"; for one of timm's architectures give its weights: bench evaluate WEIGHTS --model {source}"
    return did_you_mean(source.partition(":")[0], ["robustbench"]) if ":" in source else ""


def _digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 (hex) of the bytes of a file, or of several, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# --- the zoo, a factory ----------------------------------------------------------------------------------------------


def _from_zoo(threat_name: str, name: str, folder: Path, dataset: Dataset, threat: Threat) -> Foreign:
    if not threat_name or not re.fullmatch(r"[\w.-]+", name):
        raise BenchError(
            "a network of the zoo is named robustbench:<threat>/<name>, as in robustbench:Linf/Wong2020Fast"
        )
    files = zoo_files(name, threat_name, folder, dataset.name, threat)
    params = {"model": f"robustbench:{threat_name}/{name}", "weights_sha256": _digest(files)}
    return Foreign(load_from_zoo(name, folder, dataset.name, threat), params)


def _from_factory(path: Path, name: str) -> Foreign:
    if not name:
        raise BenchError(f"{path}: say which function of the file returns the network: {path}:FACTORY")
    if (folder := str(path.parent.absolute())) not in sys.path:
        sys.path.append(folder)  # for what the file imports from beside it
    module = registry.import_file(path, "network")
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BenchError(f"{path} has no function '{name}'{did_you_mean(name, known)}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same network each time, whatever it draws
            network = factory()
    except Exception as error:
        raise BenchError(f"{path}:{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise BenchError(f"{path}:{name} returned {type(network).__name__}, not a torch module with parameters")
    params = {"model": f"{path.name}:{name}", "code_sha256": _digest([path])}
    return Foreign(network, {**params, "weights_sha256": state_sha256(network)})


def state_sha256(network: nn.Module) -> str:
    """Return the SHA-256 (hex) of a state dict: of every tensor's name, type, shape and bytes, by rising name.

    Raises:
        BenchError: something in it is no tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise BenchError(f"the network's state holds '{name}', which is no tensor")
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- what all must do ------------------------------------------------------------------------------------------------


def _check(network: nn.Module, source: str, dataset: Dataset) -> None:
    """Raise BenchError unless the network returns one finite logit for each class, on black images."""
    size = "x".join(map(str, dataset.shape))
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, *dataset.shape))
    except Exception as error:  # whatever a network may complain of
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"{source} does not take {size} images: {reason[:200]}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or not logits.is_floating_point():
        raise BenchError(f"{source} is no classifier: it does not return one row of logits for each image")
    if logits.shape[1] != dataset.classes:
        raise BenchError(f"{source} tells {logits.shape[1]} classes apart, and {dataset.name} has {dataset.classes}")
    if not logits.isfinite().all():
        raise BenchError(f"{source} returns values that are not finite numbers for a black image")
