"""Networks trained elsewhere, judged under a suite's final attacks: cells that are only evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.config.cell import EVALUATED, Cell, ExternalModel, ResolvedMethod
from bench.config.suite import LoadedSuite
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.execution.driver import CellState, RetryPolicy, Watch, by_suite, open_executor, run_planned
from bench.execution.executor import ExecutorSettings, Paths
from bench.execution.plan import check_attacks, check_data, plan_evaluation
from bench.models.external import load_foreign, located

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
    """Judge a network that was trained elsewhere under a suite's final attacks, as a row of its leaderboard.

    It is a cell of the method `evaluated`, which the network's weights, architecture and normalisation identify. The
    same network again is done already; one that failed or was interrupted goes on.

    Args:
        loaded: whose protocol.
        network: where the network is.
        name: what the leaderboard calls it.
        results, store, data, settings, watch: as in `run_suite`.

    Raises:
        BenchError: something is wrong with the network, the name, the machine, the results folder or the store; nothing
            has run.
    """
    protocol = loaded.suite.protocol
    _check_name(name, loaded)
    check_attacks(protocol)
    params = load_foreign(network, dataset_of(protocol.dataset), protocol).params
    row = {"version": 1, "params": params, "label": name, "custom": False, "origin": None, "final_is_best": False}
    cell = Cell(
        protocol=protocol,
        method=ResolvedMethod.model_validate({"name": EVALUATED, **row}),
        seed=0,
        suite=loaded.suite.name,
        plugins=loaded.plugins,
        network=located(network),
    )
    paths = Paths(results, data)
    alone = replace(by_suite(settings, loaded), devices=1)
    with open_executor(alone, paths, [cell]) as executor:
        planned = [plan_evaluation(cell, results)]
        check_data(planned, data)
        (state,) = run_planned(planned, executor, paths, store, RetryPolicy(), watch)
    return state


def _check_name(name: str, loaded: LoadedSuite) -> None:
    """Raise BenchError unless a leaderboard can call a network so, and `bench compare` can tell it from a method."""
    if not (name and name.isprintable() and name == name.strip() and len(name) <= MAX_LABEL):
        raise BenchError(f"--name must be 1 to {MAX_LABEL} printable characters, without spaces around them")
    taken = {word for method in loaded.methods for word in (method.name, method.label)}
    if name in taken | {EVALUATED}:
        raise BenchError(f"--name '{name}': a method of this suite is called so; choose another")
