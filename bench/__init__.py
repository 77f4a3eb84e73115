"""Benchmark and leaderboard harness for robust overfitting in adversarial training.

What the command line does, as functions:

    loaded = bench.load_suite("quickstart")
    bench.run_suite(loaded, results=Path("results"))
    with bench.Store.of(Path("results")) as store:
        boards = bench.leaderboards(store)

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "BenchError": "bench.errors",
    "ExternalModel": "bench.config.suite",
    "Method": "bench.training.method",
    "MethodInfo": "bench.config.hyperparameters",
    "MethodParams": "bench.config.hyperparameters",
    "Store": "bench.storage.store",
    "evaluate_network": "bench.execution.external_evaluation",
    "leaderboards": "bench.reporting.leaderboard",
    "load_suite": "bench.config.suite",
    "run_suite": "bench.execution.driver",
    "sourced": "bench.config.hyperparameters",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
