"""`bench export`: a run in the form that other benchmarks take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from bench.cli.options import Results, StoreURL

app = typer.Typer(help="Write a run as other benchmarks take it.", no_args_is_help=True, rich_markup_mode=None)


def complete_run(incomplete: str) -> list[str]:
    """Complete the name of a run in the default store."""
    from bench.cli import catalogue

    return [row["name"] for row in catalogue.runs(Path("results"), None) if row["name"].startswith(incomplete)]


def complete_checkpoint(incomplete: str) -> list[str]:
    """Complete the name of a checkpoint."""
    from bench.storage.run_folder import CHECKPOINTS

    return [name for name in CHECKPOINTS if name.startswith(incomplete)]


@app.callback()
def _export() -> None:
    """Write a run as other benchmarks take it."""


@app.command("robustbench")
def robustbench(
    run: Annotated[
        str,
        typer.Argument(help="The beginning of a run's folder name or fingerprint.", autocompletion=complete_run),
    ],
    checkpoint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--checkpoint", help="best, best_on_test or last.", autocompletion=complete_checkpoint),
    ] = None,
    title: Annotated[Optional[str], typer.Option("--title", help="Title of the paper.")] = None,  # noqa: UP045
    authors: Annotated[Optional[str], typer.Option("--authors", help="Its authors, with commas.")] = None,  # noqa: UP045
    venue: Annotated[Optional[str], typer.Option("--venue", help='As "NeurIPS 2019".')] = None,  # noqa: UP045
    link: Annotated[Optional[str], typer.Option("--link", help="Where the paper is.")] = None,  # noqa: UP045
    additional_data: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--additional-data/--no-additional-data", help="Trained on more than the dataset's images?"),
    ] = None,
    reported: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--reported", min=0, max=100, help="Robust accuracy that the paper reports, in percent."),
    ] = None,
    architecture: Annotated[Optional[str], typer.Option("--architecture", help="Its name; default: ours.")] = None,  # noqa: UP045
    passes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--forward-passes", min=1, help="Forward passes of a prediction."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Write to this file, whole or not at all; default: stdout."),
    ] = None,
    results: Results = Path("results"),
    store: StoreURL = None,
) -> None:
    """Write RobustBench's model information of a run; what nobody states is left out, and named on stderr."""
    from bench.cli.report import write_text
    from bench.reporting.robustbench import model_information
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
        found, unknown = model_information(opened.show_run(run), checkpoint, stated)
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)
    if unknown:
        print(f"bench: left out, because nothing states it: {', '.join(unknown)}", file=sys.stderr)
    if note := found.get("footnote"):
        print(f"bench: RobustBench judges on the whole test set. {note}", file=sys.stderr)
