"""`bench evaluate`: evaluate an external model and add it to the leaderboard of a suite."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import (
    Data,
    Device,
    Json,
    Results,
    StoreURL,
    Threads,
    complete_suite,
    how_to_resume,
    interruptible,
)
from bench.cli.output import print_json, print_leaderboard
from bench.errors import ExitCode

if TYPE_CHECKING:
    from bench.execution.plan import CellState


def complete_model(incomplete: str) -> list[str]:
    """Complete the name of an architecture."""
    from bench.registry import MODELS

    return [name for name in MODELS.names() if name.startswith(incomplete)]


def complete_normalisation(incomplete: str) -> list[str]:
    """Complete a named normalisation."""
    return [word for word in ("none", "dataset") if word.startswith(incomplete)]


def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            help="A weights file, a hub folder, robustbench:<threat>/<name>, or <file>.py:<factory>, which is executed."
        ),
    ],
    suite: Annotated[
        str,
        typer.Option("--suite", help="Suite whose protocol applies: a file or a name.", autocompletion=complete_suite),
    ],
    name: Annotated[str, typer.Option("--name", help="Label in the leaderboard.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Architecture of a weights file; default: the suite's.", autocompletion=complete_model
        ),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            "--normalisation",
            metavar="HOW",
            help='Normalisation of a weights file: none, dataset, or "m,m,m/s,s,s" (means / standard deviations).',
            autocompletion=complete_normalisation,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Prefix of the network's tensor names in a file with several networks."),
    ] = None,
    model_dir: Annotated[Path, typer.Option("--model-dir", help="Local folder of RobustBench's zoo.")] = Path("models"),
    results: Results = Path("results"),
    store: StoreURL = None,
    data: Data = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Evaluate an external model.

    Runs the final attacks of a suite, then prints the leaderboard. Nothing in a weights file is executed. Rerun the
    same command to resume.
    """
    from pydantic import ValidationError

    from bench.config.cell import ExternalModel
    from bench.config.suite import load_suite
    from bench.errors import BenchError
    from bench.execution.executor import ExecutorSettings
    from bench.execution.external_evaluation import evaluate_network

    try:
        where = ExternalModel(
            source=network, model=model, normalisation=normalisation, prefix=prefix, model_dir=str(model_dir)
        )
    except ValidationError:
        raise BenchError(f"--model '{model:.60}' is not a valid name") from None
    loaded = load_suite(suite)

    from bench.cli.progress import View

    started = time.monotonic()
    with interruptible(lambda: how_to_resume(results)), View(quiet=json) as view:
        state = evaluate_network(
            loaded,
            where,
            name,
            results=results,
            store=store,
            data=data,
            settings=ExecutorSettings(device=device, threads=threads),
            watch=view.show,
        )
    _say(state, time.monotonic() - started)
    if json:
        print_json(_as_json(state))
    else:
        print_leaderboard(loaded.suite.protocol.fingerprint, results, store)
    if state.status != "finished":
        raise typer.Exit(ExitCode.SOME_FAILED)


def _say(state: CellState, seconds: float) -> None:
    """Print the result of the evaluation on stderr."""
    name = _label(state)
    if state.status != "finished":
        text = f"{name}: {state.status}; {state.reason or 'see ' + str(state.folder.log)}"
    elif state.action == "skip":
        text = f"nothing to do: this network is already evaluated, as '{name}'"
    else:
        text = f"{name}: evaluated in {seconds:.1f} s"
    print(f"bench: {text}", file=sys.stderr)


def _label(state: CellState) -> str:
    """Return the label of the run that first evaluated the network, whatever it is called now."""
    from bench.errors import BenchError

    try:
        return str(state.folder.cell()["cell"]["method"]["label"])
    except (FileNotFoundError, BenchError):
        return state.cell.method.label


def _as_json(state: CellState) -> dict[str, Any]:
    from bench.attacks.identity import attack_key
    from bench.storage.rows import read_run

    cell, folder = state.cell, state.folder
    outcomes = read_run(folder)[1].checkpoints["last"].outcomes if state.status == "finished" else {}
    evaluated = [outcomes[attack_key(attack, cell)] for attack in cell.protocol.evaluation.final] if outcomes else []
    return {
        "name": folder.path.name,
        "label": _label(state),
        "status": state.status,
        "reason": state.reason,
        "folder": str(folder.path),
        "network": cell.method.params,
        "outcomes": [
            {"attack": outcome.title, "images": outcome.count, "right": outcome.right, "accuracy": outcome.accuracy}
            for outcome in evaluated
        ],
    }
