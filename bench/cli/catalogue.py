"""What there is, as plain data: methods, models, datasets, suites and runs, for listings and for other programs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.config.suite import load_suite, shipped_suites
from bench.models.architecture import Architecture, Family, size_of
from bench.registry import DATASETS, METHODS, MODELS
from bench.storage.store import Store


def methods() -> list[dict[str, Any]]:
    """Return name, title, year and description of every method."""
    infos = [METHODS.get(name).info for name in METHODS.names()]
    return [
        {"name": info.name, "title": info.title, "year": info.year, "description": info.description} for info in infos
    ]


def method(name: str) -> dict[str, Any]:
    """Return all that is stated of one method, with every parameter's unit, default and origin.

    Raises:
        BenchError: no such method.
    """
    kind = METHODS.get(name)
    canonical = kind.Params.canonical("", "multi_step")
    parameters: list[dict[str, Any]] = []
    for field, known in kind.Params.sources().items():
        row = {"name": field, "unit": known.unit, "note": known.note}
        value = canonical[field].value if field in canonical else None
        parameters.append({**row, "default": value, "for": "any", "source": known.source})
        parameters += [
            {**row, "default": origin.value, "for": key, "source": origin.source}
            for key, origin in known.by_dataset.items()
        ]
    order = ("name", "default", "unit", "for", "source", "note")
    return {
        "name": kind.info.name,
        "title": kind.info.title,
        "description": kind.info.description,
        "paper": kind.info.paper,
        "year": kind.info.year,
        "version": kind.info.version,
        "final_is_best": kind.info.final_is_best,
        "parameters": [{key: row[key] for key in order} for row in parameters],
    }


def models() -> list[dict[str, Any]]:
    """Return name, size and forward GFLOP an image of every architecture; a multiply-add counts as two.

    A family stands here as the members that it lists, or as one row without a size if it lists none.
    """
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


def model(name: str) -> dict[str, Any]:
    """Return all that is stated of one architecture.

    Raises:
        BenchError: no such architecture, or the name of a whole family.
    """
    architecture: Architecture = MODELS.get(name)
    return {**_model(architecture), "reference": architecture.reference}


def _model(architecture: Architecture) -> dict[str, Any]:
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


def datasets() -> list[dict[str, Any]]:
    """Return name, size and licence of every dataset."""
    rows = [dataset(name) for name in DATASETS.names()]
    return [
        {key: row[key] for key in ("name", "title", "classes", "image", "train", "test", "licence")} for row in rows
    ]


def dataset(name: str) -> dict[str, Any]:
    """Return all that is stated of one dataset. Raises BenchError: no such dataset."""
    found = DATASETS.get(name)
    return {
        "name": found.name,
        "title": found.title,
        "classes": None if found.own_files else found.classes,  # the suite states them
        "image": None if found.own_files else "x".join(map(str, found.shape)),
        "train": found.train_images,
        "test": found.test_images,
        "mean": list(found.mean),
        "std": list(found.std),
        "augmentation": [step.model_dump(mode="json") for step in found.augmentation],
        "licence": found.licence,
        "citation": found.citation,
        "obtain": found.obtain or None,
    }


def suites() -> list[dict[str, Any]]:
    """Return name, description and size of every suite that ships with the package."""
    rows = []
    for path in shipped_suites().values():
        loaded = load_suite(str(path))
        rows.append(
            {
                "name": loaded.suite.name,
                "description": loaded.suite.description,
                "methods": len(loaded.suite.methods),
                "seeds": len(loaded.suite.seeds),
                "cells": len(loaded.cells),
            }
        )
    return rows


def suite(name: str) -> dict[str, Any]:
    """Return a suite's protocol and rows, every parameter filled in. Raises BenchError: no such suite."""
    loaded = load_suite(name)
    return {
        "name": loaded.suite.name,
        "description": loaded.suite.description,
        "protocol_fingerprint": loaded.suite.protocol.fingerprint,
        "protocol": loaded.suite.protocol.identity(),
        "seeds": list(loaded.suite.seeds),
        "methods": [
            {"name": row.name, "label": row.label, "custom": row.custom, "origin": row.origin, "params": row.params}
            for row in loaded.methods
        ],
    }


def runs(results: Path, store: str | None) -> list[dict[str, Any]]:
    """Return one line for every run in the store; none if there is no store yet."""
    try:
        with Store.of(results, store, create=False) as opened:
            return opened.list_runs()
    except FileNotFoundError:
        return []


def run(name: str, results: Path, store: str | None) -> dict[str, Any]:
    """Return all that the store knows of one run, found by the beginning of its folder's name or its fingerprint.

    Raises:
        BenchError: none or several runs begin so.
    """
    with Store.of(results, store, create=False) as opened:
        return opened.show_run(name)
