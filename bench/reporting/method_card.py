"""What is known of a method: the facts it states of itself, and the parameters that its runs recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bench.config.base import BaseConfig
from bench.config.cell import EVALUATED
from bench.config.hyperparameters import AttackRegime, MethodInfo, MethodParams
from bench.config.suite import LoadedSuite, MethodEntry, load_suite, resolve_method
from bench.config.teacher import Teacher
from bench.errors import BenchError
from bench.registry import METHODS
from bench.reporting.rows import Row

ORIGINS = {
    "paper": "in the paper",
    "code": "in the authors' released code",
    "log": "recomputed from a released training log",
    "secondary": "as quoted by others",
    "declared": "this benchmark's choice, because no readable source gives it",
    "suite": "set in the suite, so the row is custom",
}
"""What the provenance of a parameter means, and what a suite sets."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as a run used it. `origin` is None where nothing installed tells where the value comes from."""

    name: str
    value: Any
    unit: str = ""
    origin: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Description:
    """A row's method. `info` is None if it is not installed; `caveat` says in a sentence why a rerun may differ."""

    info: MethodInfo | None
    parameters: tuple[Parameter, ...]
    caveat: str | None


def describe(row: Row, dataset: str, regime: AttackRegime) -> Description:
    """Describe the method of a row; `dataset` and attack regime choose its canonical parameters."""
    return describe_method(row.method, row.version, row.params, dataset, regime)


def describe_method(
    method: str, version: int, params: Mapping[str, Any], dataset: str, regime: AttackRegime
) -> Description:
    """Describe a method with the version and the parameters that runs recorded, as `describe` does."""
    recorded = tuple(Parameter(name, value) for name, value in params.items())
    if method == EVALUATED:
        caveat = "A network that was trained elsewhere and only evaluated here: how it was trained is not known."
        return Description(None, recorded, caveat)
    try:
        kind = METHODS.get(method)
        info: MethodInfo = kind.info
        declared: type[MethodParams] = kind.Params
        hyperparameters, canonical = declared.hyperparameters(), declared.canonical(dataset, regime)
    except (BenchError, AttributeError, TypeError):
        return Description(
            None,
            recorded,
            "This method is not installed here, so this is all that the runs recorded. A suite that runs it names the "
            "file that defines it under 'plugins'.",
        )
    if info.version != version:
        caveat = (
            f"The runs used version {version} of this method; installed here, and described, is {info.version}. "
            "Rerun it with the revision of the code that the runs recorded."
        )
        return Description(info, recorded, caveat)
    try:
        values = declared.model_validate(params).model_dump(mode="json")
        usual = declared.model_validate({**params, **{name: value for name, (value, _) in canonical.items()}})
    except ValidationError:
        values, usual = {}, None
    if usual is None or values != params:
        return Description(info, recorded, "The method as installed here has other parameters than the runs recorded.")
    reference = usual.model_dump(mode="json")
    for name, teacher in usual:
        if isinstance(teacher, Teacher):
            reference[name] = _filled(teacher, dataset, regime).model_dump(mode="json")
    parameters = []
    for name, value in values.items():
        hyperparameter = hyperparameters[name]
        if name in canonical and reference[name] == value:
            parameters.append(
                Parameter(name, value, hyperparameter.unit, canonical[name].provenance, hyperparameter.note)
            )
        else:
            parameters.append(
                Parameter(
                    name, value, hyperparameter.unit, "suite", _instead(hyperparameter.note, name, reference, canonical)
                )
            )
    return Description(info, tuple(parameters), None)


def _filled(teacher: Teacher, dataset: str, regime: AttackRegime) -> Teacher:
    """Return a teacher with the canonical parameters of its method and with its version, as runs record it."""
    if teacher.version is not None:
        return teacher
    kind = METHODS.get(teacher.method)
    declared: type[MethodParams] = kind.Params
    values = {name: value for name, (value, _) in declared.canonical(dataset, regime).items()}
    params = declared.model_validate(declared.completed(teacher.params, values)).model_dump(mode="json")
    return teacher.model_copy(update={"params": params, "version": kind.info.version})


def params_of_row(row: Row) -> MethodParams:
    """Return the parameters of a row, or those of plain PGD-AT if its method is not installed or has others."""
    try:
        params: MethodParams = METHODS.get(row.method).Params.model_validate(row.params)
    except (BenchError, AttributeError, ValidationError):
        return MethodParams()
    return params


def _instead(note: str, name: str, reference: Mapping[str, Any], canonical: Mapping[str, Any]) -> str:
    """Return the note of a parameter that the suite set, with the value that it replaced if there is one."""
    replaced = [f"instead of {reference[name]}"] if name in canonical else []
    return "; ".join(part for part in (*replaced, note) if part)


def show_method(name: str, suite: str | None = None) -> dict[str, Any]:
    """Return all details of one method, with every parameter's unit, default and provenance.

    With a suite also what the method's shares of training are in it.

    Raises:
        BenchError: no such method or suite.
    """
    loaded = None if suite is None else load_suite(suite)  # its plug-ins may define the method
    method = METHODS.get(name)
    canonical = method.Params.canonical("", "multi_step")
    parameters: list[dict[str, Any]] = []
    for field, declared in method.Params.hyperparameters().items():
        value = canonical[field].value if field in canonical else None
        defaults = [(value, "any", declared.provenance)]
        defaults += [(value, key, provenance) for key, (value, provenance) in declared.by_dataset.items()]
        parameters += [
            {
                "name": field,
                "default": value.model_dump(exclude_none=True) if isinstance(value, BaseConfig) else value,
                "unit": declared.unit,
                "for": key,
                "source": provenance,
                "note": declared.note,
            }
            for value, key, provenance in defaults
        ]
    stated = ("name", "title", "description", "paper", "year", "version", "final_is_best")
    shown = {**{key: getattr(method.info, key) for key in stated}, "parameters": parameters}
    return shown if loaded is None else {**shown, "in_suite": _in_suite(name, loaded)}


def _in_suite(name: str, loaded: LoadedSuite) -> list[dict[str, Any]]:
    """Return the shares of training of a method's rows in a suite; of its canonical row if it has none."""
    rows = [row for row in loaded.methods if row.name == name]
    shares = []
    for row in rows or [resolve_method(loaded.suite, MethodEntry(name=name))]:
        params = METHODS.get(name).Params.model_validate(row.params)
        texts = params.in_training(loaded.suite.training.epochs, loaded.steps)
        shares += [
            {"row": row.label, "name": field, "value": row.params[field], "in_training": text}
            for field, text in texts.items()
        ]
    return shares
