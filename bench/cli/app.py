"""The commands of `bench`. Each imports what it needs when it runs, so that `--help` is fast."""

from __future__ import annotations

import typer

from bench.cli import (
    bundle,
    check,
    clean,
    compare,
    data,
    diff_protocol,
    doctor,
    evaluate,
    export,
    ingest,
    listing,
    plot,
    report,
    reproduce,
    run,
    site,
    speed,
    validate,
    watch,
)

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(version("robust-overfitting-bench"))
        raise typer.Exit


@app.callback()
def _global(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Benchmark methods against robust overfitting in adversarial training.

    Data go to stdout, messages to stderr. Exit codes: 0 success; 1 regression found; 2 invalid command, suite, file or
    environment; 3 some cells failed (the others are stored); 4 nothing measured or comparable; 5 the fast path
    computes something else; 70 internal error; 130 interrupted; 141 the reader of stdout ended.
    """


app.command("run")(run.run)
app.command("watch")(watch.watch)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("plot")(plot.plot)
app.command("site")(site.site)
app.command("compare")(compare.compare)
app.command("diff-protocol")(diff_protocol.diff_protocol)
app.command("check")(check.check)
app.command("speed")(speed.speed)
app.command("list")(listing.list_)
app.command("show")(listing.show)
app.command("validate")(validate.validate)
app.command("ingest")(ingest.ingest)
app.command("bundle")(bundle.bundle)
app.command("check-bundle")(bundle.check_bundle)
app.command("clean")(clean.clean)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")
