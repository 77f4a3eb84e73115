"""AutoAttack: four attacks in a cascade, each on the images that are robust so far.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, 2020.
fab-t and square come from the package `pyautoattack`; apgd-ce and apgd-t are `bench.attacks.apgd`, which drops broken
images from the batch. The package's own cascade cannot resume, changes the random state and the tracer of the process,
and needs ten classes. Given the same images, network, batch size and seed, this cascade and the package agree on every
image; docs/performance.md compares their speed.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.attacks.apgd import apgd, cross_entropy, targeted_dlr
from bench.attacks.masking import output_signs
from bench.attacks.outcome import Correct, PackedBits
from bench.attacks.passes import Passes, margin_to_target
from bench.config.attacks import AutoAttack, Threat
from bench.errors import BenchError, DamagedFile
from bench.models.low_precision import converted_layers
from bench.utils.cuda_graphs import Capture
from bench.utils.device import out_of_memory
from bench.utils.progress import ProgressCallback

PASSES: Mapping[str, int] = {"apgd-ce": 200, "apgd-t": 1800, "fab-t": 3600, "square": 5000}
"""Work of each attack on a robust image, in forward passes: an upper bound."""

MAX_TARGETS = 9

OUTSIDE = 1e-6
"""Tolerance for rounding outside the ball or [0, 1]; an image further outside is not counted as adversarial."""

SQUARE_GAIN = 0.002
"""Share of the images that square may break after the white-box attacks before a flag is set, as in the package."""


Index = NDArray[np.int64]

BatchResult = tuple[Correct, int]
"""Which images of a batch an attack breaks, bool, [n], and how many had a zero gradient at its start."""

Elsewhere = Callable[[str, "CascadeState"], BatchResult]
"""Runs the next batch of the named attack in another process; raises as the attack does."""


@dataclass(frozen=True)
class CascadeState:
    """The state of a cascade, from which it can resume.

    `robust`: per image, not broken so far. `at_start`: the same at the start of the current attack, which fixes its
    batches; the attack has finished the first `done` of these images. `batch_size` is smaller than in the settings if
    memory was exhausted. `accuracy_after` has the accuracy on clean images and after each attack. `flat` counts the
    images whose gradient was zero at the start of apgd-t with its first target.
    """

    attack: int
    done: int
    batch_size: int
    at_start: Correct
    robust: Correct
    accuracy_after: dict[str, float]
    flat: int
    seconds: float

    def batch(self, ahead: int = 0) -> Index:
        """Return the indices of the images of the next batch of the current attack, or of a later one, int64, [n]."""
        return np.flatnonzero(self.at_start)[self.done + ahead * self.batch_size :][: self.batch_size]

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
            raise DamagedFile(f"not the AutoAttack state of this version ({error})") from error


class Cascade:
    """The attacks of `settings`, one after the other, each on the images that are robust so far."""

    def __init__(
        self,
        model: nn.Module,
        threat: Threat,
        settings: AutoAttack,
        seed: int,
        capture: Capture | None = None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        """`model` takes images in [0, 1] and is in eval mode with frozen parameters; `capture` as in `Passes`."""
        self._model, self._threat, self._settings, self._seed = model, threat, settings, seed
        self._exact = self._search = Passes(model, capture, heartbeat)
        if settings.version == "standard-bf16-confirmed":
            self._search = Passes(_InBfloat16(model), capture, heartbeat)

    @staticmethod
    def identity(settings: AutoAttack) -> dict[str, Any]:
        """Return what the result depends on besides threat, seed, images and batch size."""
        search = {"precision": "bf16, confirmed in fp32"} if settings.version == "standard-bf16-confirmed" else {}
        return {"attacks": list(settings.cascade), "package": f"pyautoattack {version('pyautoattack')}", **search}

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        state: CascadeState | None,
        commit: Callable[[CascadeState], None],
        progress: ProgressCallback,
        elsewhere: Elsewhere | None = None,
    ) -> CascadeState:
        """Run the attacks and return the final state.

        Args:
            images: float32, [n, channels, height, width], in [0, 1]. labels: int64, [n].
            state: the state to resume from, as `commit` received it; None starts from the beginning.
            commit: called after every batch with the state to resume from.
            elsewhere: what runs the batches, if not this process.

        Raises:
            BenchError: too few classes, or labels or images out of range.
        """
        started = time.monotonic()
        before = state.seconds if state else 0.0
        tracer = sys.gettrace()
        devices = [images.device] if images.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):  # the package's attacks reseed the global generator
                classes = self.check(images, labels)
                if state is None:
                    size = self._settings.batch_size
                    robust = self._correct(images, labels, size)
                    state = CascadeState(0, 0, size, robust, robust, {"clean": float(robust.mean())}, 0, 0.0)
                while state.attack < len(self._settings.cascade):
                    state = self._batch(state, classes, images, labels, elsewhere)
                    state = replace(state, seconds=before + time.monotonic() - started)
                    commit(state)
                    progress(*self._work_done(state), float(state.robust.mean()))
        finally:
            sys.settrace(tracer)
        return state

    def check(self, images: Tensor, labels: Tensor) -> int:
        """Return the number of classes, after checking it, the labels and the images. Raises as `run` does."""
        with torch.no_grad():
            classes: int = self._model(images[:1]).shape[1]
        self._settings.check_classes(classes)
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise BenchError(
                f"labels from {int(labels.min())} to {int(labels.max())}, but the network has {classes} classes"
            )
        if float(images.min()) < 0 or float(images.max()) > 1:
            raise BenchError(
                f"images from {float(images.min()):.3g} to {float(images.max()):.3g}; they must be in [0, 1]"
            )
        return classes

    def attack_batch(self, name: str, index: Index, classes: int, images: Tensor, labels: Tensor) -> BatchResult:
        """Return the result of an attack on the images at `index`."""
        where = torch.from_numpy(index).to(images.device)
        broken, flat = self._attack(name, images[where].contiguous(), labels[where], classes)
        return broken.cpu().numpy(), flat

    def _batch(
        self, state: CascadeState, classes: int, images: Tensor, labels: Tensor, elsewhere: Elsewhere | None
    ) -> CascadeState:
        """Run the next batch of the current attack; if memory is exhausted, halve the batch size instead."""
        name, index = self._settings.cascade[state.attack], state.batch()
        robust, flat = state.robust.copy(), 0
        if len(index):
            try:
                if elsewhere:
                    broken, flat = elsewhere(name, state)
                else:
                    broken, flat = self.attack_batch(name, index, classes, images, labels)
            except (MemoryError, RuntimeError) as error:
                if len(index) == 1 or not out_of_memory(error):
                    raise
                return replace(state, batch_size=len(index) // 2)
            robust[index] = ~broken
        state = replace(state, done=state.done + len(index), robust=robust, flat=state.flat + flat)
        if state.done < state.at_start.sum():
            return state
        accuracies = {**state.accuracy_after, name: float(robust.mean())}
        return replace(state, attack=state.attack + 1, done=0, at_start=robust, accuracy_after=accuracies)

    def _attack(self, name: str, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, int]:
        """Return which images of a batch the attack breaks, and how many had a zero gradient."""
        random = torch.Generator().manual_seed(self._seed)
        attack = partial(apgd, self._search, threat=self._threat, random=random, confirm=self._confirm)
        if name == "apgd-ce":
            _, broken, _ = attack(x, y, y, cross_entropy)
            return broken, 0
        if name == "apgd-t":
            ranked = self._search.logits(x).sort(dim=1)[1]
            broken, flat = torch.zeros_like(y, dtype=torch.bool), 0
            for target in range(2, min(MAX_TARGETS, classes - 1) + 2):
                robust = (~broken).nonzero().squeeze(1)
                if len(robust):
                    targets = ranked[robust, -target]
                    _, broken[robust], no_gradient = attack(x[robust], y[robust], targets, targeted_dlr)
                    flat += int(no_gradient.sum()) if target == 2 else 0
            return broken, flat
        broken, claimed = self._official(name, self._search, x, y, classes)
        unconfirmed = claimed & ~broken
        if self._search is not self._exact and unconfirmed.any():  # the search in bfloat16 ended too early
            broken[unconfirmed], _ = self._official(name, self._exact, x[unconfirmed], y[unconfirmed], classes)
        return broken, 0

    def _official(self, name: str, passes: Passes, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Return which images an attack of the package breaks, and which adversarial ones the network misclassifies.

        The parameters are those of the package's standard version.
        """
        from pyautoattack import AutoAttack as Official

        norm = {"linf": "Linf", "l2": "L2"}[self._threat.norm]
        predict = passes.logits if passes.capture else passes.model
        official = Official(predict, norm=norm, eps=self._threat.eps, seed=self._seed, device=x.device)
        official.fab.targeted, official.fab.n_target_classes = True, min(MAX_TARGETS, classes - 1)
        if passes.capture:

            def margins(images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
                _, values, gradients = passes.gradients(margin_to_target, images, labels, targets)
                return values.unsqueeze(1), gradients.unsqueeze(1)

            official.fab.get_diff_logits_grads_batch_targeted = margins
        adversarial = (official.fab if name == "fab-t" else official.square).perturb(x, y)
        claimed = passes.logits(adversarial).argmax(1) != y
        broken = claimed.clone()
        broken[claimed] = self._confirm(adversarial[claimed], x[claimed], y[claimed])
        return broken, claimed

    def _confirm(self, adversarial: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Return which images are inside the ball and, one at a time in fp32, misclassified: bool, [n]."""
        perturbation = (adversarial - clean).flatten(1)
        size = (
            perturbation.abs().amax(1) if self._threat.norm == "linf" else torch.linalg.vector_norm(perturbation, dim=1)
        )
        inside = (size <= self._threat.eps + OUTSIDE) & (
            (adversarial - adversarial.clamp(0, 1)).flatten(1).abs().amax(1) <= OUTSIDE
        )
        with torch.no_grad():
            wrong = [self._model(adversarial[i : i + 1]).argmax(1) != labels[i] for i in range(len(labels))]
        return inside & torch.cat(wrong) if wrong else inside

    def _work_done(self, state: CascadeState) -> tuple[int, int]:
        """Return the finished and the total work, assuming that the images robust so far remain robust."""
        works = [PASSES[name] for name in self._settings.cascade]
        current = works[state.attack] * state.done // max(1, int(state.at_start.sum())) if state.done else 0
        return sum(works[: state.attack]) + current, sum(works)

    def _correct(self, images: Tensor, labels: Tensor, size: int) -> Correct:
        with torch.no_grad():
            batches = zip(torch.split(images, size), torch.split(labels, size), strict=True)
            correct = torch.cat([self._model(x).argmax(1) == y for x, y in batches])
        return correct.cpu().numpy()

    # --- flags -------------------------------------------------------------------------------------------------------

    def flags(self, images: Tensor, state: CascadeState) -> list[str]:
        """Return reasons why a finished cascade may overestimate robustness; usually none.

        The checks are those of the package, and of Athalye, Carlini and Wagner, Obfuscated gradients give a false sense
        of security, 2018.
        """
        flags = output_signs(self._model, images[: self._settings.batch_size])
        if state.flat:
            flags.append(f"no gradient at {state.flat} images")
        after = list(state.accuracy_after.values())
        if self._settings.cascade[-1] == "square" and len(after) > 2 and after[-2] - after[-1] > SQUARE_GAIN:
            flags.append(f"square broke {100 * (after[-2] - after[-1]):.1f} % after the white-box attacks")
        return flags


class _InBfloat16(nn.Module):
    """A network whose convolutions and products are in bfloat16; its logits are fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for layer in converted_layers(self.model):
            layer.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.model(images).float()
        return logits
