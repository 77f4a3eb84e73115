"""Parameters that say where their value comes from.

Every hyper-parameter of a method is a field declared with `sourced`: its default, the unit, the defaults of
particular datasets, and the origin of each figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field
from pydantic_core import PydanticUndefined

from bench.config.base import Settings

Source = Literal["paper", "code", "log", "secondary", "declared"]
"""Where a figure was read. paper: in the paper; code: in the authors' released code; log: recomputed from a released
training log; secondary: as quoted by others; declared: our choice, because no readable source gives it."""

SOURCES: tuple[Source, ...] = ("paper", "code", "log", "secondary", "declared")  # from the firmest to the weakest

SourceT = TypeVar("SourceT", bound=str)  # a `Source`, or one that a database returned

Setting = Literal["natural", "single_step", "multi_step"]
"""The kind of training attack, which some papers give parameters for: none, one step, or several."""


class Origin(NamedTuple):
    """A value and where it comes from."""

    value: Any
    source: Source


@dataclass(frozen=True)
class Sourced:
    """What is known of one parameter: unit, origin, note, and its values for particular datasets.

    `by_dataset` maps a dataset's name ("svhn"), or name and setting ("cifar10/single_step"), to a value with its
    source, and "*/single_step" to one for any other dataset; the more particular one wins, and the field's default
    serves the rest.
    """

    unit: str
    source: Source
    note: str
    by_dataset: Mapping[str, Origin]


@dataclass(frozen=True)
class MethodInfo:
    """What a method is, for listings and leaderboards.

    `version` is part of every cell's identity: raise it when the algorithm changes, so that older runs are not taken
    for newer ones. `final_is_best`: the method's last model is its best one by definition, so its gap is zero by
    construction.
    """

    name: str
    title: str
    description: str
    paper: str
    year: int
    version: int = 1
    final_is_best: bool = False


class MethodParams(Settings):
    """The frozen parameters of a method; subclasses declare each field with `sourced`."""

    @classmethod
    def sources(cls) -> dict[str, Sourced]:
        """Return what is known of each field.

        Raises:
            TypeError: a field was not declared with `sourced` (a bug in the method's file).
        """
        found = {}
        for name, field in cls.model_fields.items():
            known = [item for item in field.metadata if isinstance(item, Sourced)]
            if len(known) != 1:
                raise TypeError(f"{cls.__qualname__}.{name} does not say where its value comes from; use sourced(...)")
            found[name] = known[0]
        return found

    @classmethod
    def canonical(cls, dataset: str, setting: Setting) -> dict[str, Origin]:
        """Return the canonical value of each field that has one, for this dataset and training setting."""
        values = {}
        for name, known in cls.sources().items():
            default = cls.model_fields[name].default
            origin = Origin(default, known.source)
            for key in (f"{dataset}/{setting}", dataset, f"*/{setting}"):
                if key in known.by_dataset:
                    origin = known.by_dataset[key]
                    break
            if origin.value is not PydanticUndefined:
                values[name] = origin
        return values


def sourced(
    default: Any = ...,
    *,
    unit: str,
    source: Source,
    note: str = "",
    by_dataset: Mapping[str, Origin] | None = None,
    **constraints: Any,
) -> Any:
    """Declare a parameter of a method. `constraints` are pydantic's (`ge`, `lt`, ...).

    Args:
        default: the value where no dataset's own is known.
        unit: "epochs", "share of weights", "1" for a plain number, "-" for a choice.
        source: where the default was read.
        note: one line on what it does or why this value.
        by_dataset: values for particular datasets or for a dataset and setting; see `Sourced`.
    """
    field = Field(default, **constraints)
    field.metadata.append(Sourced(unit, source, note, dict(by_dataset or {})))
    return field


def weakest(sources: Iterable[SourceT]) -> SourceT | None:
    """Return the least firm of `sources`, or None where there are none."""
    return max(sources, key=SOURCES.index, default=None)
