"""`bench site`: leaderboards as a static site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Data, Json, SelectedBy, Selection, StoreURL
from bench.cli.output import print_json, progress_bar


def site(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the site: a new one, or a site to replace.")
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="Folder of the run folders; repeatable. Default: results.", show_default=False),
    ] = None,
    store: StoreURL = None,
    data: Data = None,
    images: Annotated[
        int,
        typer.Option("--images", min=0, max=100, help="Number of adversarial examples for each run that has weights."),
    ] = 8,
    selection: SelectedBy = Selection.VALIDATION,
    published: Annotated[bool, typer.Option("--published", help="Add the papers' figures, where known.")] = False,
    json: Json = False,
) -> None:
    """Write leaderboards as a static site.

    One page for each leaderboard, method and run.
    """
    from bench.errors import BenchError
    from bench.reporting.leaderboard import leaderboards
    from bench.reporting.published_comparison import with_published
    from bench.reporting.site.downloads import WITHOUT_PARQUET, parquet_available
    from bench.reporting.site.folder import check_output, write_site
    from bench.reporting.site.pages import Site
    from bench.storage.store import Store

    check_output(output)
    folders = results or [Path("results")]
    if store is not None and len(folders) > 1:
        raise BenchError("--store is the database of one results folder; name only one with --results")
    opened = Store.of(folders[0], store, create=False) if len(folders) == 1 else Store.of_folders(folders)
    with opened, progress_bar("pages") as progress:
        boards = leaderboards(opened, selection=selection.value)
        if published:
            boards = with_published(opened, boards, None, selection.value)
        files = Site(opened, boards).files(folders, data, images, progress)
        write_site(output, files)
    if not parquet_available():
        print(f"bench: {WITHOUT_PARQUET}", file=sys.stderr)
    if json:
        print_json({"output": str(output), "leaderboards": len(boards), "files": sorted(files)})
    else:
        print(output / "index.html")
