"""Teachers: trained networks of other cells, named in the parameters of a method."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bench.config.base import BaseConfig
from bench.config.protocol import Name, Seed


class Teacher(BaseConfig):
    """The network of another cell of the same protocol, which is trained first.

    Defaults are filled in when a suite is loaded, so that all fields are part of the identity of the cell that uses
    the network.
    """

    method: Name
    """Name of the method that trains the network."""
    params: dict[str, Any] = Field({})
    """Parameters of that method; default: its canonical ones."""
    seed: Seed | Literal["same"] = "same"
    """`same`: the seed of the cell that uses the network."""
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint of that cell: `best` is selected on validation images."""
    version: int | None = None
    """Version of that method, filled in."""
