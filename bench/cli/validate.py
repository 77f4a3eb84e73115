"""`bench validate`: check suite files, or print their JSON Schema."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.options import Json, complete_suite
from bench.cli.output import print_json
from bench.utils.formatting import counted


def validate(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suite files or names of shipped suites.", autocompletion=complete_suite)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of suite files.")] = False,
    json: Json = False,
) -> None:
    """Check suite files without running them.

    With --schema, print their JSON Schema for an editor.
    """
    from bench.config.suite import Suite, load_suite

    if schema:
        print_json(Suite.model_json_schema())
        return
    if not suites:
        raise typer.BadParameter("name at least one suite, or pass --schema")
    loaded_suites = [load_suite(name) for name in suites]
    if json:
        print_json(
            [
                {
                    "name": loaded.suite.name,
                    "protocol": loaded.suite.protocol.fingerprint,
                    "cells": [{"label": str(cell), "fingerprint": cell.fingerprint} for cell in loaded.cells],
                }
                for loaded in loaded_suites
            ]
        )
        return
    for loaded in loaded_suites:
        suite = loaded.suite
        print(
            f"{suite.name}: {counted(len(suite.methods), 'method')} x {counted(len(suite.seeds), 'seed')} = "
            f"{counted(len(loaded.cells), 'cell')}, "
            f"protocol {suite.protocol.fingerprint[:12]}"
        )
