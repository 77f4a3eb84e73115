"""`bench export`: write a run in the format of another program."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import (
    Data,
    Device,
    Json,
    Output,
    Results,
    StoreURL,
    Trackers,
    complete_checkpoint,
    complete_run,
    words,
)
from bench.cli.output import print_json, write_output
from bench.export.formats import WeightsFormat

app = typer.Typer(help="Write a run in another program's format.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _export() -> None:
    """Write a run in another program's format."""


Run = Annotated[
    str, typer.Argument(help="The beginning of a run's folder name or fingerprint.", autocompletion=complete_run)
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", help="best (default), best_on_test or last.", autocompletion=complete_checkpoint),
]


@app.command("weights")
def weights(
    run: Run,
    format: Annotated[WeightsFormat, typer.Option("--format", help="Format of the network; hub is a folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New file, or for hub new folder.")],
    checkpoint: Checkpoint = None,
    results: Results = Path("results"),
    data: Data = None,
    json: Json = False,
) -> None:
    """Write the trained network of a run.

    The network takes pixels in [0, 1] and normalises them itself. It is read back, and its logits on test images are
    compared with those of the run's network, before the command succeeds.
    """
    from rich.console import Console

    from bench.export.weights import export_weights

    with Console(stderr=True, quiet=json).status("writing and comparing logits"):
        written = export_weights(run, format, output, checkpoint=checkpoint, results=results, data=data)
    if json:
        print_json({**asdict(written), "path": str(written.path)})
        return
    same = f"equal on {written.images} test images"
    if written.difference:
        same = f"within {written.difference:.1g} on {written.images} test images"
    what = f"{written.checkpoint} of {written.run} as {written.format}"
    print(f"bench: {what}: {written.path}; logits {same}", file=sys.stderr)


@app.command("robustbench")
def robustbench(
    run: Run,
    checkpoint: Checkpoint = None,
    title: Annotated[str | None, typer.Option("--title", help="Title of the paper.")] = None,
    authors: Annotated[str | None, typer.Option("--authors", help="Authors, comma-separated.")] = None,
    venue: Annotated[str | None, typer.Option("--venue", help='Venue, such as "NeurIPS 2019".')] = None,
    link: Annotated[str | None, typer.Option("--link", help="URL of the paper.")] = None,
    additional_data: Annotated[
        bool | None,
        typer.Option(
            "--additional-data/--no-additional-data", help="Whether training used more than the dataset's images."
        ),
    ] = None,
    reported: Annotated[
        float | None,
        typer.Option("--reported", min=0, max=100, help="Robust accuracy that the paper reports, in percent."),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option("--architecture", help="Architecture; default: the run's.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option("--forward-passes", min=1, help="Number of forward passes per prediction.")
    ] = None,
    zoo: Annotated[
        Path | None,
        typer.Option("--zoo", help="Also write architecture file and weights, to this new folder."),
    ] = None,
    entry: Annotated[
        str | None, typer.Option("--entry", help="Name of the network in the zoo; default: the run's label.")
    ] = None,
    output: Output = None,
    results: Results = Path("results"),
    store: StoreURL = None,
    data: Data = None,
) -> None:
    """Write RobustBench's model information.

    Fields that no option and no run states are left out, and named on stderr. With --zoo, what a submission adds to the
    zoo is written, and loaded by RobustBench.
    """
    from bench.export.robustbench import model_information
    from bench.storage.store import Store

    stated = {
        "name": title,
        "authors": authors,
        "venue": venue,
        "link": link,
        "additional_data": additional_data,
        "reported": None if reported is None else f"{reported:g}",
        "architecture": architecture,
        "number_forward_passes": passes,
    }
    with Store.of(results, store, create=False) as opened:
        found = opened.show_run(run)
    information, unknown = model_information(found, checkpoint, stated)
    if zoo is not None:
        from bench.export.trained import trained_network
        from bench.export.zoo import write_zoo_entry

        name = entry or re.sub(r"[^A-Za-z0-9]+", "_", found["label"]).strip("_")
        trained = trained_network(results / found["folder"], checkpoint)
        compared = write_zoo_entry(trained, name, information, zoo, data)
        print(f"bench: {zoo}: loaded by RobustBench; logits equal on {compared} test images", file=sys.stderr)
    if zoo is None or output is not None:
        write_output(output, json.dumps(information, indent=2, ensure_ascii=False) + "\n")
    if unknown:
        print(
            f"bench: fields left out, because nothing states them: {', '.join(unknown)}",
            file=sys.stderr,
        )
    if note := information.get("footnote"):
        print(f"bench: RobustBench evaluates on the whole test set. {note}", file=sys.stderr)


@app.command("tracker")
def tracker(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Beginnings of runs' folder names or fingerprints; default: all runs that have ended.",
            autocompletion=complete_run,
        ),
    ] = None,
    tracker: Trackers = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the trackers' files; default: trackers in the results.")
    ] = None,
    results: Results = Path("results"),
    data: Data = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Record runs in experiment trackers.

    Writes curves, final accuracies, hyperparameters and adversarial examples, and prints each run that is recorded.
    """
    from bench.errors import BenchError, NothingMeasured
    from bench.storage.find import find_run
    from bench.storage.run_folder import run_folders
    from bench.trackers.live import FOLDER
    from bench.trackers.mirror import export_runs

    if not (names := words(tracker, "--tracker")):
        raise BenchError("name the trackers with --tracker, as in --tracker tensorboard,mlflow")
    folders = [find_run(run, results) for run in runs or []]
    folders = folders or [folder for folder in run_folders(results) if folder.status().is_final]
    if not folders:
        raise NothingMeasured(f"no run in {results / 'runs'} has ended")
    recorded, target = [], output or results / FOLDER
    for name, folder in export_runs(folders, names, target, data=data, device=device):
        recorded.append({"run": folder.path.name, "tracker": name, "folder": str(target / name)})
        if not json:
            print(f"{folder.path.name} in {target / name}")
    if json:
        print_json(recorded)
