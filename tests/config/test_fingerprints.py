"""Fingerprints decide whether a run is reused: those of the shipped suites never change."""

import json
from pathlib import Path

from bench.config.suite import load_suite, shipped_suites

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_fingerprints.json"


def fingerprints(suite: str) -> dict:
    loaded = load_suite(suite)
    cells = {f"{cell} {cell.method.label}" if cell.network else str(cell): cell for cell in loaded.cells}
    assert len(cells) == len(loaded.cells)
    return {
        "protocol": loaded.suite.protocol.fingerprint,
        "cells": {name: [cell.fingerprint, cell.training_fingerprint] for name, cell in cells.items()},
    }


def test_shipped_suites_keep_their_fingerprints():
    """A new suite is added to the file; an entry of the file stays as it is."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {suite: fingerprints(suite) for suite in shipped_suites()} == golden
