"""A run as RobustBench's model information: the JSON that a submission adds to its `model_info/<dataset>/<threat>`.

The fields are those of `robustbench.utils.ModelInfo`; accuracies are percentages and, like the radius, texts, as in the
files that RobustBench publishes. What is not known is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import registry
from bench.config.attacks import STANDARD, radius
from bench.config.cell import EVALUATED
from bench.config.protocol import DatasetSettings
from bench.errors import BenchError
from bench.models.architecture import Architecture

DATASETS = {"cifar10": 10_000, "cifar100": 10_000}
"""Datasets of RobustBench that a suite may have, and how many test images its leaderboards rest on."""

FIELDS = (
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture"),
    *("eps", "clean_acc", "reported", "autoattack_acc", "footnote"),
)


def model_information(
    run: Mapping[str, Any], checkpoint: str | None, stated: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that are known, in RobustBench's order, and the names of those that are not.

    Args:
        run: what `Store.show_run` returns.
        checkpoint: best, best_on_test or last; None: best, or of a network that was only evaluated its one.
        stated: what people must say: link, name, authors, venue, additional_data, reported, architecture,
            number_forward_passes, footnote; None where they do not.

    Raises:
        BenchError: the run has not finished, is not of one of RobustBench's datasets, or has no outcome on clean images
            or under the standard version of AutoAttack at the checkpoint.
    """
    protocol, name = run["protocol"], run["name"]
    if run["status"] != "finished":
        raise BenchError(f"{name} has not finished ({run['status']}), so it has nothing to export")
    dataset = DatasetSettings.model_validate(protocol["dataset"])
    if dataset.name not in DATASETS or dataset.resize:
        what = f"{dataset.name} at {dataset.resize}x{dataset.resize} pixels" if dataset.resize else dataset.name
        raise BenchError(
            f"RobustBench compares networks on {' and '.join(DATASETS)}, and {name} was evaluated on {what}"
        )
    chosen = checkpoint or ("last" if run["method"] == EVALUATED else "best")
    outcomes = [outcome for outcome in run["outcomes"] if outcome["checkpoint"] == chosen]
    if not outcomes:
        known = ", ".join(sorted({outcome["checkpoint"] for outcome in run["outcomes"]}))
        raise BenchError(f"{name} has no outcome of a checkpoint '{chosen:.40}'; it has {known or 'none'}")
    clean = _outcome(run, outcomes, {"name": "clean"}, "on clean images")
    standard = {
        "name": "autoattack",
        "version": "standard",
        "precision": "fp32",
        "attacks": list(STANDARD),
        "threat": None,
    }
    robust = _outcome(run, outcomes, standard, "under standard AutoAttack")
    architecture, passes = _architecture(run)
    found = {
        "number_forward_passes": passes,
        "dataset": dataset.name,
        "architecture": architecture,
        "eps": radius(protocol["threat"]["eps"]),
        "clean_acc": _percent(clean),
        "autoattack_acc": _percent(robust),
        "footnote": _footnote([clean, robust], DATASETS[dataset.name]),
        **{field: value for field, value in stated.items() if value is not None},
    }
    unknown = [field for field in FIELDS if found.get(field) is None and field != "footnote"]
    return {field: found[field] for field in FIELDS if found.get(field) is not None}, unknown


def _outcome(
    run: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any], what: str
) -> Mapping[str, Any]:
    """Return the outcome on the most images whose attack is the one wanted."""
    found = [
        outcome
        for outcome in outcomes
        if all(run["attacks"][outcome["key"]].get(key) == value for key, value in wanted.items())
    ]
    if not found:
        raise BenchError(f"{run['name']} has no outcome {what}, which RobustBench's leaderboards need")
    return max(found, key=lambda outcome: int(outcome["count"]))


def _architecture(run: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Return what people call the architecture, and its forward passes; None for networks that are not built here."""
    name = run["params"].get("model") if run["method"] == EVALUATED else run["protocol"]["model"]
    try:
        architecture: Architecture = registry.MODELS.get(str(name))
    except BenchError:  # of the zoo, of a factory, or of a plug-in that is not loaded
        return None, None
    return architecture.title, 1


def _percent(outcome: Mapping[str, Any]) -> str:
    return f"{100 * outcome['accuracy']:.2f}"


def _footnote(outcomes: Sequence[Mapping[str, Any]], images: int) -> str | None:
    """Say which figures do not rest on the whole test set, as RobustBench's do."""
    parts = [f"{outcome['title']} on {outcome['count']:,}" for outcome in outcomes if outcome["count"] != images]
    return f"Of the {images:,} test images: {', '.join(parts)}." if parts else None
