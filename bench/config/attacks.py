"""What the adversary may do, and the attacks of training and of the final evaluation, as validated settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bench.config.base import BaseConfig, Number, named
from bench.config.corruptions import Corruptions
from bench.config.hyperparameters import AttackRegime
from bench.errors import BenchError

MAX_L2 = 32.0  # published radii end at about 5

MIN_CLASSES = 4  # the targeted DLR loss compares the largest logit with the third and the fourth largest


class Threat(BaseConfig):
    """What the adversary may do to an image in [0, 1]."""

    norm: Literal["linf", "l2"]
    eps: Number = Field(gt=0)
    """Radius of the ball, in units of the pixel range [0, 1]."""

    @model_validator(mode="after")
    def _radius_fits_the_pixel_range(self) -> Threat:
        if self.norm == "linf" and self.eps > 1:
            raise PydanticCustomError("eps", f"eps {self.eps:g} exceeds the pixel range [0, 1]; {of_pixels(self.eps)}")
        return self

    @property
    def title(self) -> str:
        return f"{self.norm.capitalize()} {radius(self.eps)}"

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise BenchError if any image of `shape` can become uniformly grey, or the radius exceeds `MAX_L2`."""
        most = 0.5 if self.norm == "linf" else min(MAX_L2, 0.5 * math.sqrt(math.prod(shape)))
        if self.eps > most:
            hint = of_pixels(self.eps)
            raise BenchError(f"must be at most {most:.3g} for pixels in [0, 1] (got {self.eps:g}); {hint}")

    def check_step(self, step_size: float) -> None:
        """Raise BenchError if a step is longer than the diameter of the ball."""
        if step_size > 2 * self.eps * (1 + 1e-9):
            hint = of_pixels(step_size) if step_size >= 0.5 else f"write at most {2 * self.eps:.4g}"
            raise BenchError(f"{step_size:g} exceeds the diameter of the ball of radius {self.eps:.4g}; {hint}")


def radius(eps: float) -> str:
    """Return a radius as the literature writes it: 8/255 if it is a whole number of pixel values."""
    pixels = round(eps * 255)
    return f"{pixels}/255" if pixels < 255 and abs(eps * 255 - pixels) < 1e-6 else f"{eps:g}"


def of_pixels(value: float) -> str:
    """Return the hint for a value that seems to be in units of the pixel range 0 to 255."""
    return f"write {value:g}/255, not {value:g}"


class TrainingAttack(BaseConfig):
    """How training images are perturbed: projected gradient ascent on the cross-entropy, or not at all."""

    name: Literal["pgd", "none"] = "pgd"
    steps: int = Field(10, ge=1, le=1000)
    step_size: Number = Field(2 / 255, gt=0)
    random_start: bool = True
    """Start at a uniformly random point of the ball."""
    batch_norm: Literal["train", "eval"] = "train"
    """Mode of the network while crafting. In train mode batch statistics are used and running ones are updated."""

    @property
    def regime(self) -> AttackRegime:
        if self.name == "none":
            return "natural"
        return "single_step" if self.steps == 1 else "multi_step"


_TrainingAttackInput = TrainingAttack | Literal["pgd", "none"]
NamedTrainingAttack = Annotated[TrainingAttack, BeforeValidator(named, json_schema_input_type=_TrainingAttackInput)]


class Clean(BaseConfig):
    """No attack."""

    name: Literal["clean"] = "clean"

    @property
    def title(self) -> str:
        return "Clean"


class _InBall(BaseConfig):
    """What all attacks inside a ball have in common."""

    images: int | None = Field(None, ge=1)
    """Attack only this many test images: the class-balanced subset of `bench.attacks.evaluate.balanced_subset`."""
    threat: Threat | None = None
    """Another ball than the protocol's: a threat that training did not see."""

    def _in_its_ball(self, title: str) -> str:
        return f"{title} ({self.threat.title})" if self.threat else title


class FGSM(_InBall):
    """One step as long as the ball is wide, from the image along the sign of the gradient; in L2 along the gradient.

    Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples, 2015.
    """

    name: Literal["fgsm"] = "fgsm"

    @property
    def title(self) -> str:
        return self._in_its_ball("FGSM")


class _Ascent(_InBall):
    """What attacks by projected gradient ascent against the network in eval mode have in common."""

    steps: int = Field(20, ge=1, le=10_000)
    step_size: Number = Field(2 / 255, gt=0)
    random_start: bool = True
    restarts: int | None = Field(None, ge=2, le=1000)
    """Number of runs from different random starts; a robust image must be correct in all of them. Default: one."""
    iterate: Literal["worst"] | None = None
    """worst: an image is broken if any iterate, start included, is misclassified. Default: only the last one counts."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> _Ascent:
        if self.restarts and not self.random_start:
            raise PydanticCustomError("restarts", "without a random start all 'restarts' are the same")
        return self

    @model_validator(mode="after")
    def _step_fits_the_ball(self) -> _Ascent:
        if self.threat and "step_size" not in self.model_fields_set:
            # Madry et al., 2018, appendix B.2: 2.5 eps / steps reaches the boundary from any point of the ball.
            step_size = self.threat.eps * min(1, 2.5 / self.steps)
            object.__setattr__(self, "step_size", step_size)  # the model is frozen
        return self

    def _titled(self, kind: str) -> str:
        restarts = f"x{self.restarts}" if self.restarts else ""
        return self._in_its_ball(f"{kind}-{self.steps}{restarts}{' (worst)' if self.iterate else ''}")


class PGD(_Ascent):
    """Projected gradient ascent on the cross-entropy against the network in eval mode.

    Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
    """

    name: Literal["pgd"] = "pgd"

    @property
    def title(self) -> str:
        return self._titled("PGD")


class CW(_Ascent):
    """Projected gradient ascent on the margin: the largest wrong logit minus the right one.

    The objective of Carlini and Wagner, Towards evaluating the robustness of neural networks, 2017, inside the ball, as
    papers on adversarial training report it under the name of CW-inf.
    """

    name: Literal["cw"] = "cw"

    @property
    def title(self) -> str:
        return self._titled("CW")


class Preview(_Ascent):
    """Projected gradient ascent on the margin of probabilities: no attack of a protocol, but the preview of AutoAttack.

    The objective of Xie et al., Towards million-scale adversarial robustness evaluation with stronger individual
    attacks, 2024 (arXiv:2411.15210), there called PMA, with a step size that does not decay.
    """

    name: Literal["preview"] = "preview"
    steps: int = 50
    random_start: bool = False  # the first iterate is the image itself, which may be misclassified already
    iterate: Literal["worst"] = "worst"

    @property
    def title(self) -> str:
        return "Preview"


AutoAttackPart = Literal["apgd-ce", "apgd-t", "fab-t", "square"]

STANDARD: tuple[AutoAttackPart, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
"""AutoAttack's standard version."""


class AutoAttack(_InBall):
    """AutoAttack: apgd-ce, apgd-t, fab-t and square in a cascade, with the official parameters.

    Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
    2020.
    """

    name: Literal["autoattack"] = "autoattack"
    version: Literal["standard", "standard-bf16-confirmed"] = "standard"
    """The second searches in bfloat16 and counts an image as broken only if the fp32 network misclassifies it. It never
    counts a robust image as broken, but it is a different attack and is not ranked with the first."""
    attacks: tuple[AutoAttackPart, ...] | None = Field(None, min_length=1)
    """Only these attacks, in this order; the result is then not comparable with AutoAttack."""
    batch_size: int = Field(250, ge=1)
    """Part of the attack's identity: every batch reseeds, so the perturbations depend on it."""

    @field_validator("attacks")
    @classmethod
    def _no_part_twice(cls, attacks: tuple[AutoAttackPart, ...] | None) -> tuple[AutoAttackPart, ...] | None:
        if attacks and len(set(attacks)) < len(attacks):
            raise PydanticCustomError("attacks", "duplicate attack")
        return attacks

    def check_classes(self, classes: int) -> None:
        """Raise BenchError if an attack is not defined for this number of classes."""
        if "apgd-t" in self.cascade and classes < MIN_CLASSES:
            raise BenchError(
                f"AutoAttack's targeted attacks need at least {MIN_CLASSES} classes, not {classes}; use pgd instead"
            )

    @property
    def cascade(self) -> tuple[AutoAttackPart, ...]:
        """The attacks, in order."""
        return self.attacks or STANDARD

    @property
    def title(self) -> str:
        parts = f" ({', '.join(self.attacks)})" if self.attacks else ""
        return self._in_its_ball(f"AutoAttack{' (bf16-confirmed)' if self.version != 'standard' else ''}{parts}")


class Joint(BaseConfig):
    """All other final attacks together, from their stored results: an image is robust if it is correct under each.

    On the images that all of them saw, the smallest of their subsets. Corruptions are no attack.
    """

    name: Literal["joint"] = "joint"

    @property
    def title(self) -> str:
        return "Joint"


Attack = Clean | FGSM | PGD | CW | AutoAttack
"""What runs the network on the test images."""

_FinalAttack = Annotated[Attack | Joint | Corruptions, Field(discriminator="name")]
_FinalAttackInput = _FinalAttack | Literal["clean", "fgsm", "pgd", "cw", "autoattack", "joint", "corruptions"]
FinalAttack = Annotated[_FinalAttack, BeforeValidator(named, json_schema_input_type=_FinalAttackInput)]
