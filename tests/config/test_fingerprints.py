"""Fingerprints decide whether a run is reused: those of the shipped suites never change."""

import json
from functools import cache
from pathlib import Path

import pytest

from bench.config.suite import load_suite, shipped_suites
from bench.errors import BenchError
from bench.reporting.published import read_published
from bench.reporting.published_rows import published_rows

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_fingerprints.json"

loaded = cache(load_suite)


def fingerprints(suite: str) -> dict:
    cells = {f"{cell} {cell.method.label}" if cell.network else str(cell): cell for cell in loaded(suite).cells}
    assert len(cells) == len(loaded(suite).cells)
    return {
        "protocol": loaded(suite).suite.protocol.fingerprint,
        "cells": {name: [cell.fingerprint, cell.training_fingerprint] for name, cell in cells.items()},
    }


def test_shipped_suites_keep_their_fingerprints():
    """A new suite is added to the file; an entry of the file stays as it is."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {suite: fingerprints(suite) for suite in shipped_suites()} == golden


# --- the published figures that suites name ---------------------------------------------------------------------------

PAPERS = [name for name in shipped_suites() if name.startswith("papers/")]


def test_every_suite_of_a_paper_names_lines_of_its_own():
    lines = [line for name in PAPERS for _, line in published_rows(loaded(name), read_published())]
    assert len(set(map(id, PAPERS))) == len(PAPERS) > 0
    assert len({repr(line) for line in lines}) == len(lines)


def test_each_paper_suite_is_found_by_its_file_and_says_where_its_settings_were_read():
    for name in PAPERS:
        assert loaded(name).suite.name == name.removeprefix("papers/")
        head = shipped_suites()[name].read_text(encoding="utf-8").split("\nname: ")[0]
        assert "# Should meet: " in head
        assert f"bench run {name}\n" in head
        assert any(f"\n# {mark}" in head for mark in ("code", "log", "paper", "report", "README", "secondary"))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("", r"^suite 'tiny' names no published figures; add the key 'published'$"),
        ("{source: x, row: pgd}", r"^published\.0: name one row of the suite in 'row' \(PGD-AT\)"),
        (
            "{source: Rice}",
            r"^published\.0: no line of the papers' figures for digits, small_cnn, linf-38.25 has the method 'pgd_at' ",
        ),
    ],
)
def test_an_entry_that_fits_nothing(load, entry, sentence):
    suite = load({"name: tiny": f"published: [{entry}]\nname: tiny"})
    with pytest.raises(BenchError, match=sentence):
        published_rows(suite, read_published())


def test_an_entry_that_fits_several_lines():
    name = "papers/rice2020_cifar10"
    (entry,) = loaded(name).suite.published
    both = [line for line in read_published() if entry.source in line.source] * 2
    with pytest.raises(BenchError, match=r"^published\.0: 2 lines of the papers' figures .* have the method 'pgd_at' "):
        published_rows(loaded(name), both)


def test_the_published_figures_are_no_part_of_the_identity(load):
    named = load({"name: tiny": "published: [{source: x}]\nname: tiny"})
    assert [cell.fingerprint for cell in named.cells] == [cell.fingerprint for cell in load().cells]
