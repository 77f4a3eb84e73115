"""Every check over every registered method; `BENCH_METHODS=a,b` chooses some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bench.registry import METHODS
from bench.testing import CHECKS
from bench.testing.conformance import Check

CHOSEN = [name for name in os.environ.get("BENCH_METHODS", "").split(",") if name] or METHODS.names()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks run fastest on one thread, and the last bits of a sum depend on their number."""
    torch.set_num_threads(1)


@pytest.mark.parametrize("method", CHOSEN)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Check, method: str, tmp_path: Path) -> None:
    """The method passes the check."""
    check(method, tmp_path)
