"""Cells: one method with its parameters and one seed under one protocol, each with its fingerprint."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from bench import registry
from bench.config.base import BaseConfig
from bench.config.hyperparameters import Provenance
from bench.config.protocol import Name, Protocol, Seed
from bench.utils.files import fingerprint


class ResolvedMethod(BaseConfig):
    """A method with every parameter filled in."""

    name: Name
    version: int
    params: dict[str, Any]
    label: str
    custom: bool
    """Some parameter differs from the canonical one."""
    origin: Provenance | None
    """The least reliable provenance of the canonical values in use; None for a method without hyperparameters."""
    final_is_best: bool
    """The last model is the best one by definition, so the gap is zero by construction."""


EVALUATED = "evaluated"
"""The method of networks that were trained elsewhere and only evaluated here; its parameters say which network."""


class ExternalModel(BaseConfig):
    """An external model: where it is, and what must be known to build it."""

    source: str
    """A weights file, a hub folder, `robustbench:<threat>/<name>`, or `<file>.py:<factory>`."""
    model: Name | None = None
    """Architecture of a weights file."""
    normalisation: str | None = None
    """Of a weights file: none, dataset, or means and standard deviations as "m,m,m/s,s,s"."""
    prefix: str | None = None
    """The beginning of the names of the network's tensors, in a weights file with several networks."""
    outputs: tuple[float, ...] = ()
    """Its first logits on fixed images when the cell was planned."""
    model_dir: str = "models"
    """Local folder of RobustBench's zoo."""


class Cell(BaseConfig):
    """One training run and its evaluation: a protocol, a method with parameters, and a seed."""

    protocol: Protocol
    method: ResolvedMethod
    seed: Seed
    suite: str
    """Name of the suite it came from; not part of its identity."""
    plugins: tuple[str, ...] = ()
    """Absolute paths of the plug-in files that the method may need; not part of its identity."""
    network: ExternalModel | None = None
    """Where to find the network of a cell that is only evaluated; its identity is in the method's parameters."""

    def identity(self) -> dict[str, Any]:
        """Return the plain data that makes this cell what it is: protocol, method with parameters, seed."""
        method = self.method.model_dump(mode="json", include={"name", "version", "params"})
        return {"protocol": self.protocol.identity(), "method": method, "seed": self.seed}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    @cached_property
    def training_fingerprint(self) -> str:
        """Digest of all that the trained weights depend on: the identity without the final attacks."""
        identity = self.identity()
        del identity["protocol"]["evaluation"]["final"]
        return fingerprint(identity)

    def plugin_digests(self) -> dict[str, str]:
        """Return the digest of the sources of each plug-in that this cell uses: {"method mine": SHA-256 (hex)}."""
        model = (self.network and self.network.model) or self.protocol.model
        used = (
            (registry.METHODS, self.method.name),
            (registry.DATASETS, self.protocol.dataset.name),
            (registry.MODELS, model),
        )
        return {f"{kind.kind} {name}": digest for kind, name in used if (digest := kind.digest(name))}

    def __str__(self) -> str:
        return self.method.label if self.network else f"{self.method.label} seed {self.seed}"
