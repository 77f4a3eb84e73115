"""The tables of a site as files: CSV, JSON and Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pandas as pd

from bench.reporting.formats.csv import COLUMNS, defuse, lines, render_csv
from bench.reporting.formats.json import render_json
from bench.reporting.frames import curves_frame, results_frame
from bench.reporting.leaderboard import Leaderboard
from bench.storage.store import Store
from bench.utils.files import canonical_json

WITHOUT_PARQUET = "no Parquet files were written; pip install 'robust-overfitting-bench[parquet]' adds them"


def parquet_available() -> bool:
    """Return whether pyarrow, which writes Parquet, is installed."""
    return find_spec("pyarrow") is not None


def downloads(store: Store, boards: Sequence[Leaderboard]) -> dict[str, bytes]:
    """Return the files by name: the leaderboards, and all results and curves of `store`; equal ones at every call.

    Parquet only if pyarrow is installed.
    """
    files = {
        "leaderboards.csv": render_csv(boards).encode(),
        "leaderboards.json": (render_json(boards) + "\n").encode(),
    }
    tables = {"results": results_frame(store), "curves": curves_frame(store)}
    for name, table in tables.items():
        texts = table.apply(lambda column: column.map(defuse) if column.dtype == "string" else column)
        files[f"{name}.csv"] = texts.to_csv(index=False).encode()
        files[f"{name}.json"] = (table.to_json(orient="records", double_precision=15) + "\n").encode()
    if parquet_available():
        for name, table in {"leaderboards": _leaderboards(boards), **tables}.items():
            buffer = io.BytesIO()
            table.to_parquet(buffer, engine="pyarrow", index=False)
            files[f"{name}.parquet"] = buffer.getvalue()
    return files


def _leaderboards(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """Return the lines of the CSV file with typed columns; what is nested, or differs in type, is JSON as there."""
    rows = [line for board in boards for line in lines(board)]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).convert_dtypes()
    return table.apply(lambda column: column.map(_text) if column.dtype == object else column)


def _text(value: Any) -> str | None:
    if isinstance(value, dict | list):
        return canonical_json(value)
    return None if pd.isna(value) else value if isinstance(value, str) else canonical_json(value)
