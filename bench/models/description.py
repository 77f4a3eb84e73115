"""Descriptions of networks, from which they are rebuilt, and hub folders: a description with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from bench import registry
from bench.config.base import BaseConfig
from bench.config.messages import complaint
from bench.config.protocol import Channels, Deviations, Name, Side
from bench.errors import BenchError
from bench.models.activations import ACTIVATIONS, replace_relu
from bench.models.architecture import Architecture, Network, Shape
from bench.models.state_dict import load_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a hub folder; the first has the description under the key `network`."""


class NetworkDescription(BaseConfig):
    """All that rebuilds a `Network`, without its weights."""

    architecture: Name
    activation: str | None = None
    """In place of every ReLU, by its name in `ACTIVATIONS`."""
    classes: Annotated[int, Field(ge=2, le=100_000)]
    shape: tuple[Side, Side, Side]
    """Channels, height, width of an image."""
    mean: Channels
    std: Deviations
    """Per channel, in units of [0, 1]."""

    @model_validator(mode="after")
    def _fits(self) -> NetworkDescription:
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise PydanticCustomError("channels", "'mean' and 'std' need one value a channel")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise PydanticCustomError("activation", f"the activation must be one of {', '.join(ACTIVATIONS)}")
        return self

    def build(self) -> Network:
        """Return the network with any weights. Raises BenchError: the architecture is unknown, or does not fit."""
        architecture: Architecture = registry.MODELS.get(self.architecture)
        body = architecture.build(self.classes, self.shape)
        if self.activation is not None:
            replace_relu(body, ACTIVATIONS[self.activation])
        return Network(body, self.mean, self.std)


def describe_network(network: nn.Module, architecture: str, classes: int, shape: Shape) -> NetworkDescription:
    """Return the description of a network that a method made of `architecture` for images of `shape`.

    Raises:
        BenchError: the method did more than to replace the activation.
    """
    for activation in (None, *ACTIVATIONS):
        if not isinstance(network, Network):
            break
        described = NetworkDescription(
            architecture=architecture,
            activation=activation,
            classes=classes,
            shape=shape,
            mean=plain_floats(network.mean),
            std=plain_floats(network.std),
        )
        try:
            same = _layers(described.build()) == _layers(network)
        except BenchError:  # there is no ReLU to replace
            continue
        if same:
            return described
    raise BenchError(
        f"its layers differ from those of {architecture}, so a hub folder cannot describe it; export it as "
        "torchscript or onnx"
    )


def _layers(network: nn.Module) -> list[tuple[str, type, str]]:
    return [(name, type(module), module.extra_repr()) for name, module in network.named_modules()]


def plain_floats(values: Tensor) -> tuple[float, ...]:
    """Return fp32 values as their shortest decimals: 0.4914, not 0.4914000034332275."""
    return tuple(float(str(np.float32(value))) for value in values.flatten().tolist())


def read_description(folder: Path) -> NetworkDescription:
    """Return the description in a hub folder.

    Raises:
        BenchError: there is none, or it is invalid; the sentence names file and key.
    """
    path = folder / CONFIG
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "network" not in content:
        raise BenchError(f"{path} has no key 'network'; `bench export weights --format hub` writes such folders")
    try:
        return NetworkDescription.model_validate(content["network"])
    except ValidationError as error:
        raise BenchError(f"{path}: {complaint(error, 'network')}") from error


def load_hub_folder(folder: Path) -> Network:
    """Return the network of a hub folder, on the CPU in eval mode, frozen; it takes images in [0, 1].

    Raises:
        BenchError: as `read_description`, or the weights are missing or do not fit.
    """
    network = read_description(folder).build()
    if not load_weights(network, folder / WEIGHTS):
        raise BenchError(f"weights {folder / WEIGHTS}: mean and standard deviation of the images are missing")
    return network.eval().requires_grad_(False)
