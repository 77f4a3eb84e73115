"""The evaluation of external models: cells that are not trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.config.cell import EVALUATED, Cell, ExternalModel, ResolvedMethod
from bench.config.suite import LoadedSuite
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.execution.driver import RetryPolicy, Watch, by_suite, open_executor, run_planned
from bench.execution.executor import ExecutorSettings, Paths
from bench.execution.plan import CellState, check_data, plan_evaluation
from bench.models.external import load_external, with_absolute_paths

MAX_LABEL = 80  # characters, as in a suite


def evaluate_network(
    loaded: LoadedSuite,
    network: ExternalModel,
    name: str,
    *,
    results: Path = Path("results"),
    store: str | None = None,
    data: Path | None = None,
    settings: ExecutorSettings = ExecutorSettings(),
    watch: Watch = lambda _states: None,
) -> CellState:
    """Evaluate an external model under a suite's final attacks, as a row of its leaderboard.

    It is a cell of the method `evaluated`, whose parameters are the network's weights, architecture and normalisation.
    A network that was evaluated before is skipped; one that failed or was interrupted resumes.

    Args:
        loaded: the suite whose protocol applies.
        network: where the network is.
        name: the label in the leaderboard.
        results, store, data, settings, watch: as in `run_suite`.

    Raises:
        BenchError: the network, the name, the machine, the results folder or the store is not usable; nothing has run.
    """
    protocol = loaded.suite.protocol
    _check_name(name, loaded)
    external = load_external(network, dataset_of(protocol.dataset), protocol)
    row = {
        "version": 1,
        "params": external.params,
        "label": name,
        "custom": False,
        "origin": None,
        "final_is_best": False,
    }
    cell = Cell(
        protocol=protocol,
        method=ResolvedMethod.model_validate({"name": EVALUATED, **row}),
        seed=0,
        suite=loaded.suite.name,
        plugins=loaded.plugins,
        network=with_absolute_paths(network).model_copy(update={"outputs": external.outputs}),
    )
    paths = Paths(results, data)
    alone = replace(by_suite(settings, loaded), devices=1, compile=False)
    with open_executor(alone, paths, [cell]) as executor:
        state = plan_evaluation(cell, results, data)
        check_data([state], data)
        run_planned([state], executor, paths, store, RetryPolicy(), watch)
    return state


def _check_name(name: str, loaded: LoadedSuite) -> None:
    """Raise BenchError unless `name` can be a label, and differs from all names and labels of the suite's methods."""
    if not (name and name.isprintable() and name == name.strip() and len(name) <= MAX_LABEL):
        raise BenchError(f"--name must be 1 to {MAX_LABEL} printable characters, without spaces around them")
    taken = {word for method in loaded.methods for word in (method.name, method.label)}
    if name in taken | {EVALUATED}:
        raise BenchError(f"--name '{name}': a method of this suite has this name; choose another")
