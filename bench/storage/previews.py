"""Previews of AutoAttack: outcomes of a shorter attack, kept only until AutoAttack's own outcome exists.

They lie in `partial/`, which the end of the final evaluation removes, so that nothing takes them for outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.errors import DamagedFile
from bench.storage.run_folder import RunFolder
from bench.storage.schema import CheckpointRow
from bench.utils.files import read_record


def preview_path(folder: RunFolder, weights: str, key: str) -> Path:
    """Return the file of the preview of `weights` (SHA-256) under AutoAttack (by key)."""
    return folder.partial / f"{weights[:16]}.{key}.preview.json"


def read_preview(path: Path) -> dict[str, Any] | None:
    """Return a preview, or None if there is none; a damaged one counts as none, and is computed again."""
    with suppress(FileNotFoundError, DamagedFile):
        return read_record(path)
    return None


def previews(folder: RunFolder, checkpoints: Mapping[str, CheckpointRow]) -> list[dict[str, Any]]:
    """Return the previews of `checkpoints` that lack AutoAttack's outcome, as plain data."""
    return [
        {
            "checkpoint": name,
            "attack": preview["of"],
            "images": preview["count"],
            "at_most": preview["right"] / preview["count"],
        }
        for name, row in checkpoints.items()
        for path in sorted(folder.partial.glob(preview_path(folder, row.sha256, "*").name))
        if path.name.split(".")[1] not in row.outcomes and (preview := read_preview(path))
    ]
