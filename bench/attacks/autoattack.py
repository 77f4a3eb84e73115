"""AutoAttack: four attacks in a cascade, each on the images that still stand.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020.
fab-t and square are those of the package `pyautoattack`; apgd-ce and apgd-t are `bench.attacks.apgd`, which leaves
fallen images out. The cascade is ours, since the package's own loses its place when interrupted, leaves the process's
random state and tracer changed, and asks for nine target classes whatever there are. Given the same images, network,
batch size and seed, the verdicts are the package's, image by image; docs/performance.md says how much sooner.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.attacks.apgd import apgd, cross_entropy, targeted_dlr
from bench.attacks.outcome import Correct, PackedBits
from bench.config.attacks import STANDARD, AutoAttack, Threat
from bench.errors import BenchError, DamagedFile
from bench.utils.device import out_of_memory
from bench.utils.progress import ProgressCallback

PASSES: Mapping[str, int] = {"apgd-ce": 200, "apgd-t": 1800, "fab-t": 3600, "square": 5000}
"""Forward passes' worth of work that each attack spends on an image that stands: an upper bound."""

MIN_CLASSES = 4  # the targeted DLR loss compares the largest logit with the third and the fourth largest
MOST_TARGETS = 9

OUTSIDE = 1e-6
"""By how much rounding may carry an image out of the ball or of [0, 1]; one that is further out breaks nothing."""

SQUARE_GAIN = 0.002
"""Share of the images that square may break after white-box attacks before gradients are in doubt; the authors' own."""

SAME_LOGITS = 1e-4
"""Between the logits of two passes, in units of their length: up to here a network is deterministic; theirs too."""


@dataclass(frozen=True)
class CascadeState:
    """Where a cascade stands; enough to continue it.

    `robust`: per image, not broken so far. `at_start`: the same when the current attack began, which fixes its batches;
    the first `done` of these images have been through it. `batch_size` is smaller than asked for where memory did not
    suffice. `accuracy_after` has the accuracy on clean images and after each attack. `flat` counts the images whose
    gradient was zero where apgd-t began with its first target.
    """

    attack: int
    done: int
    batch_size: int
    at_start: Correct
    robust: Correct
    accuracy_after: dict[str, float]
    flat: int
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """Return JSON data."""
        packed = {name: PackedBits.pack(getattr(self, name)).text for name in ("at_start", "robust")}
        return {**self.__dict__, **packed, "count": len(self.robust)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CascadeState:
        """Undo `to_record`. Raises DamagedFile for the record of another version."""
        try:
            fields = {name: value for name, value in record.items() if name != "count"}
            for name in ("at_start", "robust"):
                fields[name] = PackedBits.from_text(record[name], record["count"]).unpack()
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"not the place of an AutoAttack of this version ({error})") from error


def check_classes(classes: int, attacks: Sequence[str] = STANDARD) -> None:
    """Raise BenchError if one of the attacks is not defined for this number of classes."""
    if "apgd-t" in attacks and classes < MIN_CLASSES:
        raise BenchError(
            f"AutoAttack's targeted attacks need at least {MIN_CLASSES} classes, not {classes}; use pgd instead"
        )


class Cascade:
    """The attacks of `settings`, one after the other; each sees only the images that still stand."""

    def __init__(self, model: nn.Module, threat: Threat, settings: AutoAttack, seed: int) -> None:
        """`model` takes images in [0, 1], is in eval mode and has no parameter that needs a gradient."""
        self._model, self._threat, self._settings, self._seed = model, threat, settings, seed
        self._search = _InBfloat16(model) if settings.version == "standard-bf16-confirmed" else model

    @staticmethod
    def identity(settings: AutoAttack) -> dict[str, Any]:
        """Return what makes the verdicts what they are, beyond threat, seed, images and batch size."""
        search = {"precision": "bf16, confirmed in fp32"} if settings.version == "standard-bf16-confirmed" else {}
        return {"attacks": list(settings.cascade), "package": f"pyautoattack {version('pyautoattack')}", **search}

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        state: CascadeState | None,
        commit: Callable[[CascadeState], None],
        progress: ProgressCallback,
    ) -> CascadeState:
        """Return the final state; `robust` in it holds the verdicts.

        Args:
            images: float32, [n, channels, height, width], in [0, 1]. labels: int64, [n].
            state: where to continue, from `commit`; None for the beginning.
            commit: called after every batch with the state to continue from.

        Raises:
            BenchError: too few classes, or labels or images outside their range.
        """
        started = time.monotonic()
        before = state.seconds if state else 0.0
        tracer = sys.gettrace()
        devices = [images.device] if images.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):  # the package's attacks reseed the global generator
                classes = self._check(images, labels)
                if state is None:
                    size = self._settings.batch_size
                    robust = self._right(images, labels, size)
                    state = CascadeState(0, 0, size, robust, robust, {"clean": float(robust.mean())}, 0, 0.0)
                while state.attack < len(self._settings.cascade):
                    state = self._batch(state, classes, images, labels)
                    state = replace(state, seconds=before + time.monotonic() - started)
                    commit(state)
                    progress(*self._place(state), float(state.robust.mean()))
        finally:
            sys.settrace(tracer)
        return state

    def _check(self, images: Tensor, labels: Tensor) -> int:
        """Return the number of classes, if the cascade is defined for them and for these images."""
        with torch.no_grad():
            classes: int = self._model(images[:1]).shape[1]
        check_classes(classes, self._settings.cascade)
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise BenchError(
                f"labels from {int(labels.min())} to {int(labels.max())}, but the network has {classes} classes"
            )
        if float(images.min()) < 0 or float(images.max()) > 1:
            raise BenchError(
                f"images from {float(images.min()):.3g} to {float(images.max()):.3g}; they must be in [0, 1]"
            )
        return classes

    def _batch(self, state: CascadeState, classes: int, images: Tensor, labels: Tensor) -> CascadeState:
        """Run the next batch of the current attack; with half the images where there is no memory for all."""
        name = self._settings.cascade[state.attack]
        index = np.flatnonzero(state.at_start)[state.done :][: state.batch_size]
        robust, flat = state.robust.copy(), 0
        if len(index):
            where = torch.from_numpy(index).to(images.device)
            x, y = images[where].contiguous(), labels[where]
            try:
                broken, flat = self._attack(name, x, y, classes)
            except (MemoryError, RuntimeError) as error:
                if len(index) == 1 or not out_of_memory(error):
                    raise
                return replace(state, batch_size=len(index) // 2)
            robust[index] = ~broken.cpu().numpy()
        state = replace(state, done=state.done + len(index), robust=robust, flat=state.flat + flat)
        if state.done < state.at_start.sum():
            return state
        accuracies = {**state.accuracy_after, name: float(robust.mean())}
        return replace(state, attack=state.attack + 1, done=0, at_start=robust, accuracy_after=accuracies)

    def _attack(self, name: str, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, int]:
        """Return which images of a batch the attack breaks, and how many had no gradient."""
        random = torch.Generator().manual_seed(self._seed)
        climb = partial(apgd, self._search, threat=self._threat, random=random, confirmed=self._confirmed)
        if name == "apgd-ce":
            _, broken, _ = climb(x, y, cross_entropy(y))
            return broken, 0
        if name == "apgd-t":
            with torch.no_grad():
                ranked = self._search(x).sort(dim=1)[1]
            broken, flat = torch.zeros_like(y, dtype=torch.bool), 0
            for target in range(2, min(MOST_TARGETS, classes - 1) + 2):
                left = (~broken).nonzero().squeeze(1)
                if len(left):
                    loss = targeted_dlr(y[left], ranked[left, -target])
                    _, broken[left], no_gradient = climb(x[left], y[left], loss)
                    flat += int(no_gradient.sum()) if target == 2 else 0
            return broken, flat
        broken, claimed = self._official(name, self._search, x, y, classes)
        again = claimed & ~broken
        if self._search is not self._model and again.any():  # the precisions disagree, so the search ended too soon
            broken[again], _ = self._official(name, self._model, x[again], y[again], classes)
        return broken, 0

    def _official(self, name: str, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Return which images one of the package's attacks on `model` breaks, and which `model` gets wrong after it.

        With the parameters of the package's standard version.
        """
        from pyautoattack import AutoAttack as Official

        norm = {"linf": "Linf", "l2": "L2"}[self._threat.norm]
        official = Official(model, norm=norm, eps=self._threat.eps, seed=self._seed, device=x.device)
        official.fab.targeted, official.fab.n_target_classes = True, min(MOST_TARGETS, classes - 1)
        found = (official.fab if name == "fab-t" else official.square).perturb(x, y)
        with torch.no_grad():
            claimed = model(found).argmax(1) != y
        broken = claimed.clone()
        broken[claimed] = self._confirmed(found[claimed], x[claimed], y[claimed])
        return broken, claimed

    def _confirmed(self, found: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Return which images are broken for certain: inside the ball, and wrong in fp32 on their own: bool, [n]."""
        moved = (found - clean).flatten(1)
        size = moved.abs().amax(1) if self._threat.norm == "linf" else torch.linalg.vector_norm(moved, dim=1)
        inside = (size <= self._threat.eps + OUTSIDE) & (
            (found - found.clamp(0, 1)).flatten(1).abs().amax(1) <= OUTSIDE
        )
        with torch.no_grad():
            wrong = [self._model(found[i : i + 1]).argmax(1) != labels[i] for i in range(len(found))]
        return inside & torch.cat(wrong) if wrong else inside

    def _place(self, state: CascadeState) -> tuple[int, int]:
        """Return how much of the work is done, and how much there is, as if all images that stand went on standing."""
        works = [PASSES[name] for name in self._settings.cascade]
        current = works[state.attack] * state.done // max(1, int(state.at_start.sum())) if state.done else 0
        return sum(works[: state.attack]) + current, sum(works)

    def _right(self, images: Tensor, labels: Tensor, size: int) -> Correct:
        with torch.no_grad():
            batches = zip(torch.split(images, size), torch.split(labels, size), strict=True)
            right = torch.cat([self._model(x).argmax(1) == y for x, y in batches])
        return right.cpu().numpy()

    # --- doubts ------------------------------------------------------------------------------------------------------

    def doubts(self, images: Tensor, state: CascadeState) -> list[str]:
        """Return why the verdicts of a finished cascade may flatter the network; usually nothing.

        The signs are those of the package's own checks, and of Athalye, Carlini and Wagner, Obfuscated gradients give a
        false sense of security, 2018.
        """
        found = []
        few = images[: self._settings.batch_size]
        with torch.no_grad():
            once, again = self._model(few), self._model(few)
        length = torch.linalg.vector_norm(once, dim=1, keepdim=True) + 1e-10
        if bool((torch.linalg.vector_norm((once - again) / length, dim=1) > SAME_LOGITS).any()):
            found.append("the network is not deterministic")
        if bool((once >= -1e-5).all()) and bool(((once.sum(1) - 1).abs() < 1e-5).all()):
            found.append("the network returns probabilities, not logits")
        if state.flat:
            found.append(f"no gradient at {state.flat} images")
        after = list(state.accuracy_after.values())
        if self._settings.cascade[-1] == "square" and len(after) > 2 and after[-2] - after[-1] > SQUARE_GAIN:
            found.append(f"square broke {100 * (after[-2] - after[-1]):.1f} % after the white-box attacks")
        return found


class _InBfloat16(nn.Module):
    """A network whose convolutions and products are in bfloat16; its logits are fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for module in self.model.modules():
            if type(module) in (nn.Conv2d, nn.Linear):  # once, what autocast would do at every pass
                module.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.model(images).float()
        return logits
