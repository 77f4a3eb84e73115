"""External models: a weights file, a hub folder, a network of RobustBench's zoo, or a factory in a Python file."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bench import outside, registry
from bench.config.attacks import AutoAttack, Clean, FinalAttack, Joint, Threat
from bench.config.cell import ExternalModel
from bench.config.corruptions import Corruptions
from bench.config.protocol import Protocol, check_normalisation
from bench.data.dataset import Dataset
from bench.errors import BenchError, did_you_mean
from bench.models.architecture import Network, build_network
from bench.models.description import WEIGHTS, NetworkDescription, load_hub_folder, plain_floats, read_description
from bench.models.robustbench_zoo import load_from_zoo, zoo_files
from bench.models.state_dict import load_weights
from bench.utils.files import file_sha256, fingerprint

Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation, per channel in units of [0, 1]."""

_ZOO = re.compile(r"robustbench:(?:([^/]*)/)?(.*)")
_FACTORY = re.compile(r"(.+\.py)(?::(\w*))?")


@dataclass(frozen=True)
class LoadedModel:
    """An external model on the CPU, in eval mode: float [n, channels, height, width] in [0, 1] -> logits.

    `params` identifies it: `model` and `weights_sha256`; `mean` and `std` if images are normalised first; `prefix` if
    one was named; `activation` if it replaces ReLU; for a factory also `code_sha256`, of its file and all that this
    imports from outside, `data_sha256`, of the files that it reads, and `outputs_sha256`, of its rounded outputs.
    `outputs`: its first logits on fixed images.
    """

    network: nn.Module
    params: dict[str, Any]
    outputs: tuple[float, ...] = ()


def with_absolute_paths(where: ExternalModel) -> ExternalModel:
    """Return `where` with absolute paths, for processes with other working directories."""
    source = where.source
    if not _ZOO.fullmatch(source):
        source = str(Path(source).absolute())
    return where.model_copy(update={"source": source, "model_dir": str(Path(where.model_dir).absolute())})


def load_external(
    where: ExternalModel, dataset: Dataset, protocol: Protocol, *, keep_imports: bool = False
) -> LoadedModel:
    """Load an external model and test it on images of the dataset's shape.

    Args:
        where: the path or name of the model.
        dataset: the dataset to classify, as the protocol configures it.
        protocol: its threat model must be that of a zoo network; its architecture is the default for weights files.
        keep_imports: leave the modules beside a factory importable, also where they hide installed ones.

    Raises:
        BenchError: there is no such model, its architecture or normalisation is not stated, its weights do not fit or
            are not plain tensors, it does not return one finite logit per class, its logits depend on the batch, or
            they have no gradient though an attack needs it.
    """
    zoo, factory = _ZOO.fullmatch(where.source), _FACTORY.fullmatch(where.source)
    hub = not zoo and Path(where.source).is_dir()
    if (zoo or factory or hub) and (where.model or where.normalisation or where.prefix is not None):
        raise BenchError(
            f"{where.source}: --model, --normalisation and --prefix are for weights files; this network takes images "
            "in [0, 1]"
        )
    with outside.imports_undone() if factory and not keep_imports else nullcontext():
        if zoo:
            loaded = _from_zoo(zoo[1] or "", zoo[2], Path(where.model_dir), dataset, protocol.threat)
        elif factory:
            loaded = _from_factory(Path(factory[1]), factory[2] or "")
        elif hub:
            loaded = _from_hub_folder(Path(where.source))
        else:
            loaded = _from_weights(where, where.model or protocol.model, dataset)
        with outside.running(where.source):
            loaded.network.eval()
            for parameter in loaded.network.parameters():
                parameter.requires_grad_(False)
        logits = _check(loaded.network, where.source, dataset, protocol)
        loaded = replace(loaded, outputs=tuple(logits.flatten()[:OUTPUTS].tolist()))
        if factory:
            loaded.params["code_sha256"] = _code_sha256(Path(factory[1]))
            loaded.params["outputs_sha256"] = _rounded_sha256(loaded.outputs)
            if digest := outside.read_digest():
                loaded.params["data_sha256"] = digest
    return loaded


def external_description(params: Mapping[str, Any], dataset: Dataset) -> NetworkDescription | None:
    """Return the description of an external model with these parameters, None for the zoo's and those of factories."""
    if "code_sha256" in params or _ZOO.fullmatch(params["model"]):
        return None
    channels = dataset.shape[0]
    return NetworkDescription(
        architecture=params["model"],
        activation=params.get("activation"),
        classes=dataset.classes,
        shape=dataset.shape,
        mean=params.get("mean", (0.0,) * channels),
        std=params.get("std", (1.0,) * channels),
    )


def same_network(loaded: LoadedModel, params: Mapping[str, Any], outputs: Sequence[float]) -> bool:
    """Return whether a model loaded again is the one of `params` and `outputs`.

    Its outputs may differ by rounding, and it may have read a file that it wrote the first time.
    """
    changing = ("outputs_sha256", "data_sha256")
    same = {key: loaded.params.get(key) for key in {*loaded.params, *params} - {*changing}}
    largest = max(map(abs, outputs), default=0.0)
    return all(params.get(key) == value for key, value in same.items()) and all(
        abs(value - before) <= TOLERANCE * largest for value, before in zip(loaded.outputs, outputs, strict=False)
    )


# --- weights ---------------------------------------------------------------------------------------------------------


def _from_weights(where: ExternalModel, model: str, dataset: Dataset) -> LoadedModel:
    path = Path(where.source)
    if not path.is_file():
        raise BenchError(f"weights {path}: no such file{_hint(where.source)}")
    stated = None if where.normalisation is None else parse_normalisation(where.normalisation, dataset)
    network = build_network(registry.MODELS.get(model), dataset, 0)
    if stated is not None:
        network = Network(network.body, *stated)
    digest = file_sha256(path)
    if load_weights(network, path, where.prefix):
        recorded = plain_floats(network.mean), plain_floats(network.std)
        if stated is not None and tuple(map(tuple, stated)) != recorded:
            raise BenchError(f"weights {path}: the file states another normalisation; remove --normalisation")
        stated = recorded
    elif stated is None:
        raise BenchError(
            f"weights {path}: state the normalisation of training: --normalisation none, dataset, or "
            '"m,m,m/s,s,s" (means / standard deviations of the channels)'
        )
    named = {} if where.prefix is None else {"prefix": where.prefix}
    params = {"model": model, **_normalised(*stated), **named, "weights_sha256": digest}
    return LoadedModel(Network(network.body, *stated), params)


def _normalised(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return the normalisation as parameters; none if it changes no image."""
    plain = all(value == 0 for value in mean) and all(value == 1 for value in std)
    return {} if plain else {"mean": list(mean), "std": list(std)}


def _from_hub_folder(folder: Path) -> LoadedModel:
    described, network = read_description(folder), load_hub_folder(folder)
    params = {"model": described.architecture, **_normalised(plain_floats(network.mean), plain_floats(network.std))}
    if described.activation is not None:
        params["activation"] = described.activation
    return LoadedModel(network, params | {"weights_sha256": file_sha256(folder / WEIGHTS)})


def parse_normalisation(text: str, dataset: Dataset) -> Normalisation:
    """Return the mean and the standard deviation that `none`, `dataset` or `m,m,m/s,s,s` states.

    Raises:
        BenchError: the text is invalid, or has another number of channels than the dataset.
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
            f"--normalisation '{text:.60}' is invalid; write none, dataset, or means and standard deviations as "
            '"0.49,0.48,0.45/0.25,0.24,0.26"'
        ) from None
    if not len(mean) == len(std) == channels or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise BenchError(
            f"--normalisation '{text:.60}': {dataset.name} needs {channels} finite means and as many standard "
            "deviations above 0"
        )
    try:
        check_normalisation(mean, std)
    except BenchError as error:
        raise BenchError(f"--normalisation '{text:.60}': {error}") from None
    return mean, std


def _hint(source: str) -> str:
    """Return a hint for a source that is no file."""
    if source.startswith("timm/"):
        return f"; for one of timm's architectures give its weights: bench evaluate WEIGHTS --model {source}"
    return did_you_mean(source.partition(":")[0], ["robustbench"]) if ":" in source else ""


# --- the zoo, a factory ----------------------------------------------------------------------------------------------


def _from_zoo(threat_name: str, name: str, folder: Path, dataset: Dataset, threat: Threat) -> LoadedModel:
    if not threat_name or not re.fullmatch(r"[\w.-]+", name):
        raise BenchError(
            "a network of the zoo is named robustbench:<threat>/<name>, as in robustbench:Linf/Wong2020Fast"
        )
    files = zoo_files(name, threat_name, folder, dataset.name, threat)
    params = {"model": f"robustbench:{threat_name}/{name}", "weights_sha256": file_sha256(*files)}
    return LoadedModel(load_from_zoo(name, folder, dataset.name, threat), params)


def _from_factory(path: Path, name: str) -> LoadedModel:
    if not name:
        raise BenchError(f"{path}: name the function that returns the network: {path}:FACTORY")
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = outside.import_file(path, "network", afresh=True)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BenchError(f"{path} has no function '{name}'{did_you_mean(name, known)}")
    with outside.running(f"{path}:{name} failed"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same random weights in every call
        network = factory()
    torch.set_default_dtype(dtype)  # images are float32, whatever the code has set
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise BenchError(f"{path}:{name} returned {type(network).__name__}, not a torch module with parameters")
    with outside.running(f"{path}:{name}"):
        network = _uncompiled(network)
        params = {"model": f"{path.name}:{name}", "weights_sha256": state_sha256(network)}
    return LoadedModel(network, params)


def _uncompiled(network: nn.Module) -> nn.Module:
    """Return a network whose compiled parts are the modules they were made of; one that is a script gets a wrapper.

    Compilation takes long and needs a C++ compiler; scripts take no hooks.
    """
    network = getattr(network, "_orig_mod", network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "_orig_mod"):
                setattr(module, name, child._orig_mod)
    return nn.Sequential(network) if isinstance(network, torch.jit.ScriptModule) else network


def _code_sha256(path: Path) -> str:
    """Return the SHA-256 of a factory's file, or if it imports others from outside, of all of them."""
    files = {path.resolve(), *outside.imported_afresh()}
    return outside.sources_digest(files, path.resolve().parent) if len(files) > 1 else file_sha256(path)


def state_sha256(network: nn.Module) -> str:
    """Return the SHA-256 (hex) of a state dict: of every tensor's name, type, shape and bytes, by rising name.

    Raises:
        BenchError: an entry is not a tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise BenchError(f"the network's state holds '{name}', which is not a tensor")
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- what all must do ------------------------------------------------------------------------------------------------


IMAGES = 4  # on which a network is tested

OUTPUTS = 40  # logits that are compared

TOLERANCE = 0.02  # of the largest logit; reduced precision rounds differently in batches of other sizes


def _check(network: nn.Module, source: str, dataset: Dataset, protocol: Protocol) -> Tensor:
    """Return the network's logits on fixed random images, if it is one that can be evaluated.

    Raises:
        BenchError: see `load_external`.
    """
    size = "x".join(map(str, dataset.shape))
    taking = f"{source} does not take {size} images"
    with outside.running(taking), torch.no_grad():
        black = network(torch.zeros(2, *dataset.shape))
    if not isinstance(black, Tensor) or black.ndim != 2 or len(black) != 2 or not black.is_floating_point():
        raise BenchError(f"{source} is not a classifier: it does not return one row of logits per image")
    if black.shape[1] != dataset.classes:
        raise BenchError(f"{source} has {black.shape[1]} classes, but {dataset.name} has {dataset.classes}")
    if not black.isfinite().all():
        raise BenchError(f"{source} returns values that are not finite numbers for a black image")
    needing = [attack.title for attack in protocol.evaluation.final if not _works_without_gradient(attack)]
    images = torch.rand(IMAGES, *dataset.shape, generator=torch.Generator().manual_seed(0))
    images *= torch.linspace(0.25, 1, IMAGES).view(-1, 1, 1, 1)  # so that statistics of a part are not those of all
    images.requires_grad_(bool(needing))
    before = {name: buffer.clone() for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    needed = f"{source} has no gradient with respect to the images, which {needing[0]} needs" if needing else taking
    with outside.running(needed), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        logits: Tensor = network(images)
        again, part = network(images), network(images[: IMAGES // 2])
        if needing and (not logits.requires_grad or not _has_gradient(logits, images)):
            raise BenchError("it is computed without gradients, or detached")
    after = dict(network.named_buffers())
    if any(module.training for module in network.modules()) or any(
        name in after and not torch.equal(buffer, after[name]) for name, buffer in before.items()
    ):
        raise BenchError(f"{source} switches itself to train mode, or changes its buffers, when it is called")
    logits, again, part = logits.detach().float(), again.detach().float(), part.detach().float()
    if torch.equal(logits, again) and (logits[: len(part)] - part).abs().max() > TOLERANCE * logits.abs().max():
        raise BenchError(f"{source}: its logits of an image depend on the other images of the batch, as in train mode")
    return logits


def _works_without_gradient(attack: FinalAttack) -> bool:
    return isinstance(attack, Clean | Joint | Corruptions) or (
        isinstance(attack, AutoAttack) and set(attack.cascade) == {"square"}
    )


def _has_gradient(logits: Tensor, images: Tensor) -> bool:
    return torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is not None


def _rounded_sha256(outputs: Sequence[float]) -> str:
    """Return the SHA-256 of outputs that are rounded to a thousandth to a hundredth of the largest.

    Rounding errors of other processors, or numbers of threads, hardly ever change it.
    """
    largest = max(map(abs, outputs))
    unit = 10.0 ** (math.floor(math.log10(largest)) - 2) if largest > 0 else 1.0
    return fingerprint([unit, [round(value / unit) for value in outputs]])
