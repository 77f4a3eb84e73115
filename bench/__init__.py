"""Benchmark and leaderboard harness for robust overfitting in adversarial training.

The public API: all that scripts, notebooks and authors of methods need.

    loaded = bench.load_suite("quickstart")
    bench.run_suite(loaded, results=Path("results"))
    with bench.Store.of(Path("results")) as store:
        boards = bench.leaderboards(store)
        table = bench.results_frame(store)
    network = bench.load_network("fomo-seed0", results=Path("results"))

A name is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test compares it with _PUBLIC
    from bench.attacks.pgd import cross_entropy as cross_entropy
    from bench.attacks.pgd import pgd as pgd
    from bench.attacks.pgd import train_mode as train_mode
    from bench.config.augmentation import Mix as Mix
    from bench.config.augmentation import RandomErasing as RandomErasing
    from bench.config.averages import AverageParams as AverageParams
    from bench.config.cell import Cell as Cell
    from bench.config.cell import ExternalModel as ExternalModel
    from bench.config.hyperparameters import CanonicalValue as CanonicalValue
    from bench.config.hyperparameters import MethodInfo as MethodInfo
    from bench.config.hyperparameters import MethodParams as MethodParams
    from bench.config.hyperparameters import hyperparameter as hyperparameter
    from bench.config.suite import LoadedSuite as LoadedSuite
    from bench.config.suite import load_suite as load_suite
    from bench.config.teacher import Teacher as Teacher
    from bench.data.augmentation import augment as augment
    from bench.data.augmentation import inside as inside
    from bench.data.batches import Batch as Batch
    from bench.data.batches import to_float as to_float
    from bench.data.colour import ENHANCEMENTS as ENHANCEMENTS
    from bench.data.colour import TONES as TONES
    from bench.data.mixing import mix as mix
    from bench.errors import BenchError as BenchError
    from bench.errors import DamagedFile as DamagedFile
    from bench.errors import NotComparable as NotComparable
    from bench.errors import NothingMeasured as NothingMeasured
    from bench.execution.driver import RetryPolicy as RetryPolicy
    from bench.execution.driver import run_suite as run_suite
    from bench.execution.executor import ExecutorSettings as ExecutorSettings
    from bench.execution.external_evaluation import evaluate_network as evaluate_network
    from bench.models.activations import ACTIVATIONS as ACTIVATIONS
    from bench.models.activations import SmoothReLU as SmoothReLU
    from bench.models.activations import replace_relu as replace_relu
    from bench.models.state_dict import load_weights as load_weights
    from bench.models.weight_averaging import frozen_copy as frozen_copy
    from bench.models.weight_averaging import move_towards as move_towards
    from bench.models.weight_averaging import recompute_statistics as recompute_statistics
    from bench.models.weight_averaging import running_statistics_kept as running_statistics_kept
    from bench.registry import load_plugin as load_plugin
    from bench.reporting.frames import classes_frame as classes_frame
    from bench.reporting.frames import curves_frame as curves_frame
    from bench.reporting.frames import outcomes_frame as outcomes_frame
    from bench.reporting.frames import results_frame as results_frame
    from bench.reporting.leaderboard import Leaderboard as Leaderboard
    from bench.reporting.leaderboard import leaderboards as leaderboards
    from bench.reporting.plots.data import figures as figures
    from bench.reporting.plots.render import draw as draw
    from bench.storage.store import Store as Store
    from bench.testing.conformance import NotConforming as NotConforming
    from bench.testing.conformance import conform as conform
    from bench.trackers.tracker import Tracker as Tracker
    from bench.training.load import load_network as load_network
    from bench.training.lr_schedule import Schedule as Schedule
    from bench.training.method import Context as Context
    from bench.training.method import EpochRecord as EpochRecord
    from bench.training.method import Method as Method
    from bench.utils.files import file_sha256 as file_sha256

_PUBLIC = {
    "ACTIVATIONS": "bench.models.activations",
    "ENHANCEMENTS": "bench.data.colour",
    "Mix": "bench.config.augmentation",
    "RandomErasing": "bench.config.augmentation",
    "TONES": "bench.data.colour",
    "augment": "bench.data.augmentation",
    "inside": "bench.data.augmentation",
    "to_float": "bench.data.batches",
    "mix": "bench.data.mixing",
    "AverageParams": "bench.config.averages",
    "Batch": "bench.data.batches",
    "BenchError": "bench.errors",
    "Cell": "bench.config.cell",
    "Context": "bench.training.method",
    "DamagedFile": "bench.errors",
    "EpochRecord": "bench.training.method",
    "ExecutorSettings": "bench.execution.executor",
    "ExternalModel": "bench.config.cell",
    "Leaderboard": "bench.reporting.leaderboard",
    "LoadedSuite": "bench.config.suite",
    "Method": "bench.training.method",
    "MethodInfo": "bench.config.hyperparameters",
    "MethodParams": "bench.config.hyperparameters",
    "NotComparable": "bench.errors",
    "NotConforming": "bench.testing.conformance",
    "NothingMeasured": "bench.errors",
    "CanonicalValue": "bench.config.hyperparameters",
    "RetryPolicy": "bench.execution.driver",
    "Schedule": "bench.training.lr_schedule",
    "SmoothReLU": "bench.models.activations",
    "Store": "bench.storage.store",
    "Teacher": "bench.config.teacher",
    "Tracker": "bench.trackers.tracker",
    "classes_frame": "bench.reporting.frames",
    "conform": "bench.testing.conformance",
    "cross_entropy": "bench.attacks.pgd",
    "curves_frame": "bench.reporting.frames",
    "draw": "bench.reporting.plots.render",
    "evaluate_network": "bench.execution.external_evaluation",
    "figures": "bench.reporting.plots.data",
    "file_sha256": "bench.utils.files",
    "frozen_copy": "bench.models.weight_averaging",
    "leaderboards": "bench.reporting.leaderboard",
    "load_network": "bench.training.load",
    "load_plugin": "bench.registry",
    "load_suite": "bench.config.suite",
    "load_weights": "bench.models.state_dict",
    "train_mode": "bench.attacks.pgd",
    "move_towards": "bench.models.weight_averaging",
    "outcomes_frame": "bench.reporting.frames",
    "pgd": "bench.attacks.pgd",
    "recompute_statistics": "bench.models.weight_averaging",
    "replace_relu": "bench.models.activations",
    "results_frame": "bench.reporting.frames",
    "run_suite": "bench.execution.driver",
    "running_statistics_kept": "bench.models.weight_averaging",
    "hyperparameter": "bench.config.hyperparameters",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
