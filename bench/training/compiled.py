"""The trained network compiled by torch: other kernels for its forward passes and their gradients."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bench.errors import BenchError

log = logging.getLogger(__name__)

BACKEND = "inductor"


def check_compiler(device: torch.device) -> None:
    """Raise BenchError if compiling for `device` needs a program that this machine lacks."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise BenchError("compiling a network needs a C++ compiler, g++ or clang++; install one, or use --no-compile")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise BenchError("compiling a network for a GPU needs the package triton; install it, or use --no-compile")


class Compiled:
    """The compiled passes of a network, each compiled at its first call with inputs of one shape, mode and precision.

    Weights, names and copies of the network stay as they are. Frozen parameters get no gradients. `failed`: the network
    does not compile, and runs eagerly.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self.failed = model, False
        self._eager: Callable[..., Any] = model._call_impl
        self._passes = torch.compile(self._eager, dynamic=False, fullgraph=True, backend=BACKEND)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Run the compiled passes within the block; if the network does not compile, the eager ones, with a warning."""
        self._model._compiled_call_impl = self._call
        try:
            yield
        finally:
            self._model._compiled_call_impl = None

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if not self.failed:
            try:
                return self._passes(*args, **kwargs)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                self.failed = True  # before anything was computed
                log.warning("the network does not compile, running eagerly: %s", error)
        return self._eager(*args, **kwargs)
