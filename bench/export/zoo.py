"""An entry of RobustBench's model zoo: architecture file, weights and model information."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from bench import outside, registry
from bench.config.attacks import Threat
from bench.errors import BenchError
from bench.export.source import self_contained
from bench.export.trained import TrainedNetwork
from bench.export.weights import Format, Logits, test_images, write_new
from bench.models.activations import replace_relu
from bench.models.architecture import Architecture, Network
from bench.models.description import NetworkDescription
from bench.models.robustbench_zoo import THREATS, load_from_zoo, zoo_with


def write_zoo_entry(
    trained: TrainedNetwork, name: str, information: Mapping[str, Any], folder: Path, data: Path | None = None
) -> int:
    """Write an entry of the zoo to the new folder, and load it with the package `robustbench`.

        <name>.py                               architecture file, with `ENTRY`
        models/<dataset>/<threat>/<name>.pt     weights
        model_info/<dataset>/<threat>/<name>.json

    Args:
        trained: the network.
        name: of the network in the zoo.
        information: the model information, with `dataset`.
        folder: must not exist.
        data: root folder of the datasets, for the test images.

    Returns:
        The number of test images on which its logits are equal to the network's.

    Raises:
        BenchError: the name is invalid or taken; there is no architecture file of the network; as `write_new`.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,79}", name):
        raise BenchError(
            f"--entry '{name:.80}' is not a valid name; write letters, digits, _ and -, as in Rice2020Overfitting"
        )
    dataset, threat = information["dataset"], trained.cell.protocol.threat
    place = Path(dataset) / THREATS[threat.norm] / name
    source = architecture_file(name, trained.describe(), dataset, threat)

    def write(trained: TrainedNetwork, path: Path) -> None:
        path.mkdir()
        (path / f"{name}.py").write_text(source, encoding="utf-8")
        for kind in ("models", "model_info"):
            (path / kind / place).parent.mkdir(parents=True)
        torch.save(trained.tensors(), path / "models" / f"{place}.pt")
        text = json.dumps(dict(information), indent=2, ensure_ascii=False) + "\n"
        (path / "model_info" / f"{place}.json").write_text(text, encoding="utf-8")

    def read(_trained: TrainedNetwork, path: Path) -> Logits:
        entry = outside.import_file(path / f"{name}.py", "architecture file").ENTRY
        with zoo_with(entry, dataset, threat):
            network = load_from_zoo(name, path / "models", dataset, threat)
        return network.to(memory_format=torch.channels_last)

    images = test_images(trained, data)
    write_new(trained, Format(write, read, 0), folder, images, "RobustBench")
    return len(images)


def architecture_file(name: str, described: NetworkDescription, dataset: str, threat: Threat) -> str:
    """Return the source of a module that imports nothing of this package and builds the described network.

    Raises:
        BenchError: the architecture is not built by a function at the top of a module.
    """
    architecture: Architecture = registry.MODELS.get(described.architecture)
    build: Any = architecture.build
    arguments: tuple[Any, ...] = ()
    if isinstance(build, partial) and not build.keywords:
        arguments, build = build.args, build.func
    what = f"{described.architecture} cannot be written as one file"
    if not isinstance(build, FunctionType) or not build.__qualname__.isidentifier():
        raise BenchError(f"{what}: it is not built by a function at the top of a module")
    roots = [(Network.__module__, "Network"), (build.__module__, build.__name__)]
    call = ", ".join(map(repr, (*arguments, described.classes, described.shape)))
    lines = [f"body = {build.__name__}({call})"]
    if described.activation is not None:
        roots += [(replace_relu.__module__, one) for one in ("replace_relu", "ACTIVATIONS")]
        lines.append(f"replace_relu(body, ACTIVATIONS[{described.activation!r}])")
    lines.append(f"return Network(body, {described.mean!r}, {described.std!r})")
    try:
        definitions = self_contained(roots)
    except BenchError as error:
        raise BenchError(f"{what}: {error}") from error
    body = "\n    ".join(lines)
    return f'''"""{architecture.title}, {architecture.reference}: the network {name}.

Add `ENTRY` to the dictionary `{threat.norm}` of `robustbench/model_zoo/{dataset}.py`, with the ID under which
{name}.pt can be downloaded.
"""

from __future__ import annotations

{definitions}

def make_network():
    """Return the network without its weights; it takes images in [0, 1] and normalises them itself."""
    {body}


ENTRY = ({name!r}, {{"model": make_network, "gdrive_id": ""}})
'''
