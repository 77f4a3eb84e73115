"""Named random streams: generators seeded by (seed, purpose, epoch), never global state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """Return a 63-bit seed that depends on the three arguments alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, epoch: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on `device`.

    A purpose is a word such as "order" or "attack". Purposes never share draws, so a new draw for one does not change
    another, and the draws of an epoch can be repeated without those of earlier epochs.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, epoch))


class HostRandomness(Exception):
    """A method drew a number on the host during the capture of a CUDA graph, which would replay it in every step."""


def _host_states() -> dict[str, object]:
    """Return the states of the global generators on the host, comparable with `==`."""
    return {
        "random": random.getstate(),
        "NumPy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
    }


class RngStreams:
    """The generators of one run: one per purpose, renewed at the start of every epoch.

    The draws of an epoch depend on (seed, purpose, epoch) alone, so a resumed run draws the same numbers as an
    uninterrupted one.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._seed, self._device = seed, device
        self._epoch = 0
        self._generators: dict[tuple[str, str], torch.Generator] = {}
        self._host_decides = True

    def start_epoch(self, epoch: int) -> None:
        """Renew every generator for `epoch`."""
        self._epoch = epoch
        self._generators.clear()

    def seed(self, purpose: str) -> int:
        """Return this epoch's seed for `purpose`, for code that uses the global generator."""
        return derive_seed(self._seed, purpose, self._epoch)

    def __call__(self, purpose: str) -> torch.Generator:
        """Return this epoch's generator for `purpose` on the run's device; a second call continues its stream."""
        return self._on(self._device, purpose)

    def cpu(self, purpose: str) -> torch.Generator:
        """Return a generator on the CPU, for decisions in Python, which must not wait for the device.

        Raises:
            HostRandomness: within `no_host_decisions`.
        """
        if not self._host_decides:
            raise HostRandomness(f"'{purpose}' is decided on the host")
        return self._on("cpu", purpose)

    @contextmanager
    def no_host_decisions(self) -> Iterator[None]:
        """Allow no draws on the host in the block: a CUDA graph would repeat what they decided in every step.

        Raises:
            HostRandomness: at once from `cpu`; at the end of the block if `random`, NumPy's or torch's global generator
                was drawn from. They are set back.
        """
        kept, before = (random.getstate(), np.random.get_state(), torch.get_rng_state()), _host_states()
        self._host_decides = False
        try:
            yield
        finally:
            self._host_decides = True
            drawn = [name for name, state in _host_states().items() if state != before[name]]
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])
        if drawn:
            raise HostRandomness(f"the global generator of {' and '.join(drawn)} decides on the host")

    def on_device(self) -> list[torch.Generator]:
        """Return the generators of this epoch that are on an NVIDIA GPU."""
        return [generator for generator in self._generators.values() if generator.device.type == "cuda"]

    def _on(self, device: torch.device | str, purpose: str) -> torch.Generator:
        key = (str(device), purpose)
        if key not in self._generators:
            self._generators[key] = generator(self._seed, purpose, self._epoch, device)
        return self._generators[key]
