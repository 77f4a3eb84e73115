"""AutoAttack: the attacks of `pyautoattack` under a cascade of our own.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020.
The attacks are the official ones. The cascade around them is ours because the package's own loses its place when
interrupted, leaves the process's random state and tracer changed, and asks for nine target classes whatever there are.
Given the same images, network, batch size and seed, the verdicts are the same, image by image.
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.outcome import Verdicts, pack, unpack
from bench.protocol import Threat

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
MIN_CLASSES = 4  # the targeted DLR loss compares the largest logit with the third and the fourth largest


@dataclass(frozen=True)
class CascadeState:
    """Where a cascade stands; enough to continue it.

    `robust`: per image, not fooled so far. `at_start`: the same when the current attack began, which fixes its batches.
    `attack` and `batch` say what comes next. `accuracy_after` has the accuracy on clean images and after each attack.
    """

    attack: int
    batch: int
    at_start: Verdicts
    robust: Verdicts
    accuracy_after: dict[str, float]
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """Return JSON data."""
        packed = {name: base64.b64encode(pack(getattr(self, name))).decode() for name in ("at_start", "robust")}
        return {**self.__dict__, **packed, "count": len(self.robust)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CascadeState:
        """Undo `to_record`."""
        fields = {name: value for name, value in record.items() if name != "count"}
        for name in ("at_start", "robust"):
            fields[name] = unpack(base64.b64decode(record[name]), record["count"])
        return cls(**fields)


def check_classes(classes: int) -> None:
    """Raise BenchError if the standard version is not defined for this number of classes."""
    if classes < MIN_CLASSES:
        raise BenchError(
            f"AutoAttack's targeted attacks need at least {MIN_CLASSES} classes, not {classes}; use pgd instead"
        )


class Cascade:
    """The standard version: each attack sees only the images that are still robust."""

    def __init__(self, model: nn.Module, threat: Threat, batch_size: int, seed: int) -> None:
        """`model` takes images in [0, 1], is in eval mode and has no parameter that needs a gradient."""
        self._model, self._threat, self._batch_size, self._seed = model, threat, batch_size, seed

    @staticmethod
    def identity() -> dict[str, Any]:
        """Return what makes the verdicts what they are, beyond threat, seed, images and batch size."""
        return {"attacks": list(STANDARD), "package": f"pyautoattack {version('pyautoattack')}"}

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        state: CascadeState | None,
        commit: Callable[[CascadeState], None],
        tick: Callable[[int, int], None],
    ) -> CascadeState:
        """Return the final state; `robust` in it holds the verdicts.

        Args:
            images: float32, [n, channels, height, width], in [0, 1]. labels: int64, [n].
            state: where to continue, from `commit`; None for the beginning.
            commit: called after every batch with the state to continue from.
            tick: called with (batches done, batches in all, as far as known).

        Raises:
            BenchError: too few classes.
        """
        started = time.monotonic()
        before = state.seconds if state else 0.0

        def clock() -> float:
            return before + time.monotonic() - started

        tracer = sys.gettrace()
        devices = [images.device] if images.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):  # every attack reseeds the global generator
                if state is None:
                    robust = self._right(images, labels)
                    state = CascadeState(0, 0, robust, robust, {"clean": float(robust.mean())}, clock())
                attacks = self._attacks(self._classes(images))
                while state.attack < len(STANDARD):
                    state = self._batch(state, attacks, images, labels, clock)
                    commit(state)
                    tick(*self._place(state))
        finally:
            sys.settrace(tracer)
        return state

    def _batch(
        self,
        state: CascadeState,
        attacks: list[Callable[[Tensor, Tensor], Tensor]],
        images: Tensor,
        labels: Tensor,
        clock: Callable[[], float],
    ) -> CascadeState:
        """Run the next batch of the current attack."""
        index = np.flatnonzero(state.at_start)[state.batch * self._batch_size :][: self._batch_size]
        robust = state.robust.copy()
        if len(index):
            where = torch.from_numpy(index).to(images.device)
            x, y = images[where].contiguous(), labels[where]
            found = attacks[state.attack](x, y)
            robust[index] = self._right(found, y)
        last = (state.batch + 1) * self._batch_size >= state.at_start.sum()
        if not last:
            accuracies = state.accuracy_after
            return CascadeState(state.attack, state.batch + 1, state.at_start, robust, accuracies, clock())
        accuracies = {**state.accuracy_after, STANDARD[state.attack]: float(robust.mean())}
        return CascadeState(state.attack + 1, 0, robust, robust, accuracies, clock())

    def _place(self, state: CascadeState) -> tuple[int, int]:
        batches = max(1, -(-int(state.at_start.sum()) // self._batch_size))
        return state.attack * batches + state.batch, len(STANDARD) * batches

    def _classes(self, images: Tensor) -> int:
        with torch.no_grad():
            classes: int = self._model(images[:1]).shape[1]
        check_classes(classes)
        return classes

    def _right(self, images: Tensor, labels: Tensor) -> Verdicts:
        with torch.no_grad():
            batches = zip(torch.split(images, self._batch_size), torch.split(labels, self._batch_size), strict=True)
            right = torch.cat([self._model(x).argmax(1) == y for x, y in batches])
        return right.cpu().numpy()

    def _attacks(self, classes: int) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """Return the four attacks with the parameters of the standard version, in the order of `STANDARD`."""
        from pyautoattack import AutoAttack

        device = next(self._model.parameters()).device
        norm = {"linf": "Linf", "l2": "L2"}[self._threat.norm]
        official = AutoAttack(self._model, norm=norm, eps=self._threat.eps, seed=self._seed, device=device)
        targets = min(9, classes - 1)
        official.apgd_targeted.n_target_classes = official.fab.n_target_classes = targets
        official.fab.targeted = True
        official.apgd.loss = "ce"
        return [official.apgd.perturb, official.apgd_targeted.perturb, official.fab.perturb, official.square.perturb]
