"""`bench speed`: the speed of training and AutoAttack, compared with public code."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import Data, Json, complete_suite, interruptible
from bench.cli.output import print_json
from bench.errors import ExitCode

if TYPE_CHECKING:
    from bench.config.suite import LoadedSuite
    from bench.speed.process import Setup

PARTS = ("training", "autoattack")

IMAGES = {(False, False): 16, (False, True): 512, (True, False): 4, (True, True): 64}
"""Default number of images for AutoAttack: whether `--what gpu`, whether on a GPU."""


class What(StrEnum):
    """What is measured."""

    TRAINING = "training"
    CHANGES = "changes"
    AUTOATTACK = "autoattack"
    ALL = "all"
    GPU = "gpu"


class Precision(StrEnum):
    """What this harness computes in; the reference always computes in fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


def speed(
    suite: Annotated[
        str, typer.Argument(help="Suite whose recipe is measured.", autocompletion=complete_suite)
    ] = "cifar10",
    what: Annotated[
        What,
        typer.Option(
            "--what",
            help="What to measure. changes: the reference loop with one optimisation after the other; all: training "
            "and autoattack; gpu: all that depends on the GPU, in at most 9 minutes.",
        ),
    ] = What.TRAINING,
    model: Annotated[str | None, typer.Option("--model", help="Architecture; default: the suite's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=2, help="Batch size of training; default: the suite's.")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="fp32 or bf16; default: the suite's. AutoAttack then confirms in fp32."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: all.")] = None,
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=1, help="Number of repetitions of each candidate.")
    ] = 5,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            min=1,
            help="Number of images for AutoAttack; default: 16 on a CPU, 512 on a GPU; with --what gpu 4 and 64.",
        ),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option("--eps", help="AutoAttack's radius; default: where PGD-20 breaks half of the images."),
    ] = None,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the results of --what gpu; default: gpu-check.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure the speed of training and AutoAttack.

    Compares training with the loop common to public code, and AutoAttack with plain pyautoattack, interleaved. Exit 5
    if the fast path does not compute the same as the plain one, or a check of --what gpu fails.
    """
    from bench import registry
    from bench.config.suite import load_suite
    from bench.errors import BenchError
    from bench.execution.executor import ExecutorSettings
    from bench.execution.local import allocate
    from bench.speed.measure import measure_autoattack, measure_changes, measure_peak, measure_training
    from bench.speed.process import Setup
    from bench.utils.device import check_precision, resolve_device
    from bench.utils.environment import describe

    if eps is not None and not 0 < eps <= 1:
        raise BenchError(f"--eps {eps:g}: the radius must be above 0 and at most 1, such as {8 / 255:.4f}")
    if output is not None and what is not What.GPU:
        raise BenchError("--output needs --what gpu; to write other figures to a file, use --json > FILE")
    loaded = load_suite(suite)
    cell = loaded.cells[0]
    protocol = cell.protocol
    changes = {"batch_size": batch_size, "precision": precision and precision.value}
    recipe = protocol.training.model_copy(update={key: value for key, value in changes.items() if value is not None})
    protocol = protocol.model_copy(update={"training": recipe, "model": model or protocol.model})
    registry.MODELS.get(protocol.model)
    where = resolve_device(device)
    resources = allocate(ExecutorSettings(device=device, threads=threads, jobs=1), 1)
    check_precision(recipe.precision, where)
    setup = Setup(
        cell=cell.model_copy(update={"protocol": protocol}),
        device=str(where),
        threads=resources.threads,
        images=images or IMAGES[what is What.GPU, where.type == "cuda"],
        eps=eps,
        data=data,
    )
    if what is What.GPU:
        _measure_gpu(setup, loaded, output or Path("gpu-check"), json=json)
        return
    measured: dict[str, Any] = {
        "suite": suite,
        "model": protocol.model,
        "precision": recipe.precision,
        "machine": describe(where, resources.threads),
        "partial": True,
    }
    try:
        with interruptible(lambda: _extent(measured)), _status(quiet=json) as report:
            if what is not What.AUTOATTACK:
                report("matrix products")
                peaks = measure_peak(setup, min(repetitions, 5))  # it hardly varies
                measured["peak_tflops"] = {name: value / 1e12 for name, value in peaks.items()}
                measure = measure_changes if what is What.CHANGES else measure_training
                for measured["training"] in measure(setup, repetitions, peaks, report):
                    pass
            if what in {What.AUTOATTACK, What.ALL}:
                for measured["autoattack"] in measure_autoattack(setup, repetitions, report):
                    pass
            measured["partial"] = False
    finally:  # also if it is interrupted, or a candidate fails
        if not measured["partial"] or measured.keys() & PARTS:
            print_json(measured) if json else _print(measured)
    wrong = not measured.get("training", {}).get("same", {}).get("same", True)
    differing = measured.get("autoattack", {}).get("differing", {})
    different = differing.get("bench in fp32", differing.get("bench", 0))
    if wrong or different:
        raise typer.Exit(ExitCode.DIFFERENT)


def _measure_gpu(setup: Setup, loaded: LoadedSuite, output: Path, *, json: bool) -> None:
    """Check and measure what depends on the GPU; the lines so far are always in `output`/gpu.json."""
    from bench.execution.driver import check_writable
    from bench.speed.gpu import every_method, failed, measure_gpu, print_lines
    from bench.speed.gpu_training import GPUSetup
    from bench.utils.files import write_record

    check_writable(output)
    own = GPUSetup(**setup.__dict__, methods=every_method(loaded, setup.cell), output=output.resolve())
    lines: list[dict[str, Any]] = []
    try:
        with interruptible(lambda: f"{len(lines)} lines in {output}"), _status(quiet=json) as report:
            for line in measure_gpu(own, report):
                lines.append(line)
                write_record(output / "gpu.json", {"command": sys.argv, "failed": failed(lines), "lines": lines})
    finally:
        print_json({"failed": failed(lines), "lines": lines}) if json else print_lines(lines)
    if failed(lines):
        raise typer.Exit(ExitCode.DIFFERENT)


def _extent(measured: dict[str, Any]) -> str:
    """Return how much was measured until an interruption."""
    return "the figures are partial" if measured.keys() & PARTS else "nothing was measured"


def _status(*, quiet: bool) -> Any:
    """Return a context that yields what shows one line of progress on stderr."""
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def status() -> Any:
        console = Console(stderr=True, quiet=quiet)
        with console.status("starting") as shown:
            yield shown.update if console.is_terminal else lambda text: console.print(text, highlight=False)

    return status()


def _print(measured: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    machine = measured["machine"]
    versions = machine["versions"]
    console.print(
        f"{measured['model']}, {measured['precision']}, on {machine['gpu'] or machine['cpu']} with "
        f"{machine['threads']} threads, torch {versions['torch']}",
        highlight=False,
    )
    if measured["partial"]:
        console.print("partial: not all repetitions were made, or not all checks", highlight=False)
    for part in PARTS:
        if part not in measured:
            continue
        result = measured[part]
        table = Table(title=part, title_justify="left", box=None, pad_edge=False)
        headings = ("candidate", "precision", "ratio", "from", "to", "images/s", "TFLOP/s", "of peak", "memory, GiB")
        for heading in headings:
            table.add_column(heading, justify="left" if heading in {"candidate", "precision"} else "right")
        for row in result["contenders"]:
            table.add_row(
                row["name"],
                row["precision"],
                *(f"{row[key]:.2f}" for key in ("ratio", "lowest", "highest")),
                f"{row['images_per_second']:.3g}",
                "" if row["tflops"] is None else f"{row['tflops']:.3g}",
                "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f} %",
                f"{row['peak_memory_bytes'] / 2**30:.2f}",
            )
        console.print(table)
    if "training" in measured:
        result, same = measured["training"], measured["training"].get("same")
        turns = f"{result['repetitions']} turns of {result['steps']} steps with {result['batch_size']} images"
        about = f"training: medians of {turns}"
        if same:
            verdict = "the same" if same["same"] else "NOT the same"
            about += (
                f"; fast and plain weights after {same['steps']} steps in double precision are "
                f"{same['weights_in_double_precision']:.1e} apart, gradients in fp32 {same['gradients_in_fp32']:.1e}: "
                f"{verdict} up to {same['limit']:g}"
            )
        console.print(about, highlight=False)
    if "autoattack" in measured:
        result = measured["autoattack"]
        differing = ", ".join(f"{name} {count}" for name, count in result["differing"].items() if name != "reference")
        console.print(
            f"autoattack: {result['images']} {result['what']} in {result['batches']} batches, radius "
            f"{result['eps']:.3g}; {result['standing']} robust; results that differ from the reference's: {differing}",
            highlight=False,
        )
