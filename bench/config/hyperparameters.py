"""Hyperparameters of methods, each with the provenance of its value.

Every hyperparameter of a method is a field declared with `hyperparameter`: its default, its unit, the values for
particular datasets, and where each value was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError, PydanticUndefined

from bench.config.base import BaseConfig
from bench.utils.formatting import counted

Provenance = Literal["paper", "code", "log", "secondary", "declared"]
"""Where a value was read. paper: in the paper; code: in the authors' released code; log: recomputed from a released
training log; secondary: as quoted by others; declared: our choice, because no readable source gives it."""

PROVENANCES: tuple[Provenance, ...] = ("paper", "code", "log", "secondary", "declared")  # most to least reliable

ProvenanceT = TypeVar("ProvenanceT", bound=str)  # a `Provenance`, or the text that a database returned

AttackRegime = Literal["natural", "single_step", "multi_step"]
"""The kind of training attack that a paper gives hyperparameters for: none, one step, or several steps."""


class CanonicalValue(NamedTuple):
    """A value of a hyperparameter for particular datasets, and where it was read; see `hyperparameter`."""

    value: Any
    provenance: Provenance


@dataclass(frozen=True)
class Hyperparameter:
    """Unit, provenance and note of one field, and its values for particular datasets.

    `by_dataset` maps a dataset ("svhn"), a dataset and an attack regime ("cifar10/single_step"), or an attack regime on
    any other dataset ("*/single_step") to a value. The most specific key wins; the field's default applies elsewhere.
    """

    unit: str
    provenance: Provenance
    note: str
    by_dataset: Mapping[str, CanonicalValue]
    instead_of: str | None = None
    """The parameter that this one replaces if it is not None."""
    least_epochs: int | None = None
    """Of a share of training that is rounded to whole epochs: the least number of them."""


@dataclass(frozen=True)
class MethodInfo:
    """Name and description of a method, for listings and leaderboards.

    `version` is part of every cell's identity: raise it when the algorithm changes, so that runs of older versions are
    not reused. `final_is_best`: the method's last model is its best one by definition, so its gap is zero by
    construction.
    """

    name: str
    title: str
    description: str
    paper: str
    year: int
    version: int = 1
    final_is_best: bool = False


class MethodParams(BaseConfig):
    """The frozen hyperparameters of a method; subclasses declare each field with `hyperparameter`."""

    @property
    def training_radius(self) -> float:
        """Largest radius of a perturbation in training, as a multiple of the protocol's eps; at least 1."""
        return 1.0

    @property
    def held_out(self) -> int:
        """Number of training images that the method keeps for a use of its own, instead of training on them."""
        return 0

    @classmethod
    def hyperparameters(cls) -> dict[str, Hyperparameter]:
        """Return unit, provenance and note of each field.

        Raises:
            TypeError: a field was not declared with `hyperparameter` (a bug in the method's file).
        """
        declared = {}
        for name, field in cls.model_fields.items():
            metadata = [item for item in field.metadata if isinstance(item, Hyperparameter)]
            if len(metadata) != 1:
                raise TypeError(f"{cls.__qualname__}.{name} states no provenance; declare it with hyperparameter(...)")
            declared[name] = metadata[0]
        return declared

    @classmethod
    def canonical(cls, dataset: str, regime: AttackRegime) -> dict[str, CanonicalValue]:
        """Return the canonical value of each field that has one, for this dataset and attack regime."""
        values = {}
        for name, declared in cls.hyperparameters().items():
            default = CanonicalValue(cls.model_fields[name].default, declared.provenance)
            keys = (f"{dataset}/{regime}", dataset, f"*/{regime}")
            value = next((declared.by_dataset[key] for key in keys if key in declared.by_dataset), default)
            if value.value is not PydanticUndefined:
                values[name] = value
        return values

    @classmethod
    def completed(cls, given: Mapping[str, Any], canonical: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `given` values, and the canonical ones of the parameters that these neither state nor replace."""
        replaced = {
            declared.instead_of: None
            for name, declared in cls.hyperparameters().items()
            if declared.instead_of and given.get(name) is not None
        }
        return {**canonical, **replaced, **given}

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        for name, declared in self.hyperparameters().items():
            other = declared.instead_of
            if other and (getattr(self, name) is None) == (getattr(self, other) is None):
                raise PydanticCustomError("alternatives", f"give exactly one of '{other}' and '{name}'")
        return self

    def check_length(self, steps: int) -> None:
        """Raise BenchError, naming the parameter, if a value does not fit a training of `steps` steps."""

    def whole_epochs(self, name: str, epochs: int) -> int:
        """Return the share of training `name` of `epochs` epochs, rounded, and `least_epochs` of them at least."""
        share: float = getattr(self, name)
        return max(self.hyperparameters()[name].least_epochs or 0, round(share * epochs))

    def in_training(self, epochs: int, steps: int | None) -> dict[str, str]:
        """Return what each share of training is, in epochs and steps, by parameter; `steps` is None if unknown."""
        texts = {}
        for name, declared in self.hyperparameters().items():
            value = getattr(self, name)
            if declared.unit.startswith("share of training") and value is not None:
                taken = value * epochs if declared.least_epochs is None else self.whole_epochs(name, epochs)
                in_steps = "" if steps is None else f", {counted(round(taken * steps / epochs), 'step')}"
                length = f"{taken:.4g}"
                texts[name] = f"{length} {'epoch' if length == '1' else 'epochs'}{in_steps}"
        return texts


def hyperparameter(
    default: Any = ...,
    *,
    unit: str,
    provenance: Provenance,
    note: str = "",
    by_dataset: Mapping[str, CanonicalValue] | None = None,
    instead_of: str | None = None,
    least_epochs: int | None = None,
    **constraints: Any,
) -> Any:
    """Declare a hyperparameter of a method. `constraints` are pydantic's (`ge`, `lt`, ...).

    Args:
        default: the value for datasets without a value of their own.
        unit: "epochs", "share of weights", "1" for a plain number, "-" for a choice.
        provenance: where the default was read.
        note: one line on its effect, or on the choice of the value.
        by_dataset: values for particular datasets, or for a dataset and an attack regime; see `Hyperparameter`.
        instead_of: the parameter that a value of this one replaces; a suite gives one of the two.
        least_epochs: for a share of training that the method rounds to whole epochs (`MethodParams.whole_epochs`): the
            least number of them.
    """
    field = Field(default, **constraints)
    field.metadata.append(Hyperparameter(unit, provenance, note, dict(by_dataset or {}), instead_of, least_epochs))
    return field


def least_reliable(provenances: Iterable[ProvenanceT]) -> ProvenanceT | None:
    """Return the least reliable of `provenances`, or None if there are none."""
    return max(provenances, key=PROVENANCES.index, default=None)
