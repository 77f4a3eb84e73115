"""`bench list` and `bench show`: methods, models, datasets, suites and runs as plain data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import Json, Results, StoreURL
from bench.cli.output import print_fields, print_json, print_rows

if TYPE_CHECKING:
    from bench.models.architecture import Architecture


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    MODELS = "models"
    DATASETS = "datasets"
    SUITES = "suites"
    RUNS = "runs"
    PUBLISHED = "published"


class Thing(StrEnum):
    """What can be shown."""

    METHOD = "method"
    MODEL = "model"
    DATASET = "dataset"
    SUITE = "suite"
    RUN = "run"


def list_(
    kind: Annotated[Kind, typer.Argument(help="Kind of objects.")],
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """List methods, models, datasets, suites, runs.

    One line each. `published` are the figures that papers report.
    """
    lists: dict[Kind, Callable[[], list[dict[str, Any]]]] = {
        Kind.METHODS: list_methods,
        Kind.MODELS: list_models,
        Kind.DATASETS: list_datasets,
        Kind.SUITES: list_suites,
        Kind.RUNS: lambda: list_runs(results, store),
        Kind.PUBLISHED: list_published,
    }
    rows = lists[kind]()
    print_json(rows) if json else print_rows(rows)


def show(
    thing: Annotated[Thing, typer.Argument(help="Kind of object.")],
    name: Annotated[str, typer.Argument(help="Name; for a run, the beginning of its folder's name or fingerprint.")],
    suite: Annotated[
        str | None, typer.Option(help="For a method: show its shares of training in this suite, in epochs and steps.")
    ] = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    json: Json = False,
) -> None:
    """Show all details of one object.

    A method, model, dataset, suite or run.
    """
    if suite is not None and thing is not Thing.METHOD:
        raise typer.BadParameter("--suite is for `bench show method`")
    shows: dict[Thing, Callable[[str], dict[str, Any]]] = {
        Thing.METHOD: lambda name: _show_method(name, suite),
        Thing.MODEL: show_model,
        Thing.DATASET: show_dataset,
        Thing.SUITE: show_suite,
        Thing.RUN: lambda name: show_run(name, results, store),
    }
    fields = shows[thing](name)
    print_json(fields) if json else print_fields(fields)


def list_methods() -> list[dict[str, Any]]:
    """Return name, title, year and description of every method."""
    from bench.registry import METHODS

    infos = [METHODS.get(name).info for name in METHODS.names()]
    return [{key: getattr(info, key) for key in ("name", "title", "year", "description")} for info in infos]


def _show_method(name: str, suite: str | None) -> dict[str, Any]:
    from bench.reporting.method_card import show_method

    return show_method(name, suite)


def list_models() -> list[dict[str, Any]]:
    """Return name, size and forward GFLOP per image of every architecture; a multiply-add counts as two.

    A family is listed as its listed members, or as one row without a size.
    """
    from bench.models.architecture import Architecture, Family
    from bench.registry import MODELS

    rows = []
    for name in MODELS.names():
        entry: Architecture | Family = MODELS.entry(name)
        if isinstance(entry, Architecture):
            rows.append(_model(entry))
        elif entry.listed:
            rows += [_model(MODELS.get(f"{name}/{variant}")) for variant in entry.listed]
        else:
            row = dict.fromkeys(("name", "title", "parameters", "gflops", "image", "classes"))
            rows.append({**row, "name": f"{name}/{entry.written}", "title": entry.title})
    return rows


def show_model(name: str) -> dict[str, Any]:
    """Return all details of one architecture.

    Raises:
        BenchError: no such architecture, or the name of a whole family.
    """
    from bench.registry import MODELS

    architecture: Architecture = MODELS.get(name)
    return {**_model(architecture), "reference": architecture.reference}


def _model(architecture: Architecture) -> dict[str, Any]:
    from bench.models.architecture import size_of

    parameters, gflops = None, None
    with suppress(NotImplementedError):  # torch cannot count it
        parameters, flops = size_of(architecture)
        gflops = flops / 1e9
    classes, *image = architecture.typical
    return {
        "name": architecture.name,
        "title": architecture.title,
        "parameters": parameters,
        "gflops": gflops,
        "image": "x".join(map(str, image)),
        "classes": classes,
    }


def list_datasets() -> list[dict[str, Any]]:
    """Return name, size and licence of every dataset."""
    from bench.registry import DATASETS

    rows = map(show_dataset, DATASETS.names())
    return [
        {key: row[key] for key in ("name", "title", "classes", "image", "train", "test", "licence")} for row in rows
    ]


def show_dataset(name: str) -> dict[str, Any]:
    """Return all details of one dataset. Raises BenchError: no such dataset."""
    from bench.registry import DATASETS

    dataset = DATASETS.get(name)
    return {
        "name": dataset.name,
        "title": dataset.title,
        "classes": None if dataset.own_files else dataset.classes,  # the suite states them
        "image": None if dataset.own_files else "x".join(map(str, dataset.shape)),
        "train": dataset.train_images,
        "test": dataset.test_images,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "augmentation": [step.model_dump(mode="json") for step in dataset.augmentation],
        "licence": dataset.licence,
        "citation": dataset.citation,
        "obtain": dataset.obtain or None,
    }


def list_suites() -> list[dict[str, Any]]:
    """Return name, description and size of every shipped suite."""
    from bench.config.suite import load_suite, shipped_suites

    return [
        {
            "name": name,
            "description": loaded.suite.description,
            "methods": len(loaded.suite.methods),
            "seeds": len(loaded.suite.seeds),
            "cells": len(loaded.cells),
        }
        for name, loaded in ((name, load_suite(str(path))) for name, path in shipped_suites().items())
    ]


def show_suite(name: str) -> dict[str, Any]:
    """Return a suite's protocol and rows, defaults included. Raises BenchError: no such suite."""
    from bench.config.suite import load_suite

    loaded = load_suite(name)
    return {
        "name": loaded.suite.name,
        "description": loaded.suite.description,
        "protocol_fingerprint": loaded.suite.protocol.fingerprint,
        "protocol": loaded.suite.protocol.identity(),
        "seeds": list(loaded.suite.seeds),
        "methods": [
            {key: getattr(row, key) for key in ("name", "label", "custom", "origin", "params")}
            for row in loaded.methods
        ],
    }


def list_runs(results: Path, store: str | None) -> list[dict[str, Any]]:
    """Return one row for every run in the database; none if there is no database yet."""
    from bench.storage.store import Store

    try:
        with Store.of(results, store, create=False) as opened:
            return opened.list_runs()
    except FileNotFoundError:
        return []


def show_run(name: str, results: Path, store: str | None) -> dict[str, Any]:
    """Return all details of one run, found by the beginning of its folder's name or its fingerprint.

    Raises:
        BenchError: none or several runs match.
    """
    from bench.storage.store import Store

    with Store.of(results, store, create=False) as opened:
        return opened.show_run(name)


def list_published() -> list[dict[str, Any]]:
    """Return the papers' figures in percent, and whether each method is built in or installed."""
    from bench.registry import METHODS
    from bench.reporting.published import ATTACKS, read_published
    from bench.reporting.published_comparison import plain

    known = {plain(name) for name in METHODS.names()}
    for name in METHODS.names():
        choices = METHODS.get(name).Params.model_json_schema()["properties"].values()
        known |= {plain(f"{name}_{value}") for choice in choices for value in choice.get("enum", ())}
    return [
        {
            "dataset": line.dataset,
            "architecture": line.architecture,
            "threat": line.threat,
            "method": line.method,
            "built_in": plain(line.method) in known,
            **{
                f"{prefix}_{checkpoint}": round(100 * figures[attack], 4) if attack in figures else None
                for checkpoint, figures in (("best", line.best), ("last", line.last))
                for attack, prefix in ATTACKS.items()
            },
            "pgd_steps": line.pgd_steps,
            "selection": line.selection,
            "seeds": line.seeds,
            "status": line.status,
            "source": line.source,
        }
        for line in read_published()
    ]
