"""Leaderboards as JSON, in full precision. docs/report-format.md has the schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.reporting.leaderboard import IngestedBundle, Leaderboard, Target
from bench.reporting.published import PublishedComparison
from bench.reporting.rows import Cost, Row, row_key
from bench.reporting.statistics import CONFIDENCE

VERSION = 1
"""Of the schema. A field more leaves it as it is; a field less, or one with another meaning, raises it."""

KEYS = {"collapsed_at_last": "fallen", "flags": "doubts"}
"""Keys of the schema that differ from the attributes of a row."""


def render_json(boards: Sequence[Leaderboard]) -> str:
    """Return one JSON object with all boards, without a newline at the end."""
    report = {
        "format": "bench-report",
        "version": VERSION,
        "confidence": CONFIDENCE,
        "boards": list(map(_board, boards)),
    }
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)


def _board(board: Leaderboard) -> dict[str, Any]:
    settings = board.protocol["evaluation"]["final"]
    return {
        "protocol": {"fingerprint": board.fingerprint, "identity": board.protocol},
        "title": board.title,
        "selection": board.selection,
        "attacks": [
            {"name": setting["name"], **asdict(attack)} for setting, attack in zip(settings, board.attacks, strict=True)
        ],
        "ranked_by": board.ranked_by,
        "rows": list(map(_row, board.rows)),
        "hardware": board.hardware,
        "published": None if board.published is None else list(map(_paper, board.published)),
        **({"bundles": list(map(_bundle, board.bundles))} if board.bundles else {}),
        **({"previews": list(map(asdict, board.previews))} if board.previews else {}),
        **({"target": _target(board, board.target)} if board.target else {}),
    }


def _bundle(bundle: IngestedBundle) -> dict[str, Any]:
    runs = [{"label": label, "seed": seed} for label, seed in bundle.runs]
    return {"sha256": bundle.sha256, "origin": bundle.origin, "runs": runs}


def _target(board: Leaderboard, target: Target) -> dict[str, Any]:
    reached = [target.reached.get(row_key(row)) for row in board.rows]
    return {"accuracy": target.accuracy, "reached": [one and asdict(one) for one in reached]}


def _row(row: Row) -> dict[str, Any]:
    fields = {KEYS.get(name, name): value for name, value in asdict(row).items()}
    return {
        **fields,
        "evaluated_only": row.evaluated_only,
        "costs": list(map(_cost, row.costs)),
        "diverged": [{"seed": seed, "epoch": epoch} for seed, epoch in row.diverged.items()],
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "device": cost.device,
        "hardware": cost.hardware,
        "training_hours": cost.training,
        "evaluation_hours": cost.evaluation,
        "train_pflop": cost.pflop,
        "peak_memory_bytes": cost.memory,
    }


def _paper(line: PublishedComparison) -> dict[str, Any]:
    fields = asdict(line)
    source = fields.pop("published")
    about = {name: source[name] for name in ("method", "architecture", "threat", "pgd_steps", "selection", "seeds")}
    return {**fields, **about, "status": source["status"], "source": source["source"]}
