"""Rows of networks that were trained elsewhere: one checkpoint, no gap, no cost, no curve."""

import csv
import io
import json

import jsonschema
import pytest

from bench.config.cell import EVALUATED
from bench.config.suite import load_suite
from bench.reporting.comparison import compared
from bench.reporting.formats.csv import render_csv
from bench.reporting.formats.html import render_html
from bench.reporting.formats.json import render_json
from bench.reporting.leaderboard import leaderboards, sort_rows
from bench.reporting.plots.data import figures
from bench.reporting.plots.render import NAMES, render
from bench.reporting.reproduction import reproduction
from bench.reporting.table import NONE, table

from .test_data_formats import schema

DIGEST = "0123456789abcdef" * 4
NETWORK = {"model": "resnet18", "mean": [0.5], "std": [0.25], "weights_sha256": DIGEST}
UNKNOWN = {"train_seconds": None, "track_seconds": None, "train_pflop": None}


@pytest.fixture
def judge(take):
    """Take in a network trained elsewhere, right as often as told under each attack."""

    def judge(label="ours", right=(170, 120, 70), params=NETWORK, **done):
        fields = {"method": EVALUATED, "label": label, "params": params, "origin": None}
        return take({"last": right}, done={"classes": 10, **UNKNOWN, **done}, **fields)

    return judge


@pytest.fixture
def board(store, take, judge):
    """A leaderboard of a network from elsewhere and a method with two seeds."""
    judge()
    for seed in range(2):
        take({"best": (150, 100, 50), "last": (160, 90, 40)}, seed=seed)
    (found,) = leaderboards(store)
    return found


def test_it_ranks_among_the_others(board):
    first, second = board.rows
    assert (first.label, first.rank, second.rank) == ("ours", 1, 2)
    assert first.evaluated_only
    assert not second.evaluated_only
    assert first.costs == ()
    for figure in first.figures:
        assert figure.best == figure.last
        assert figure.gap is None


def test_the_choice_of_images_changes_nothing_of_it(store, judge):
    judge()
    boards = [leaderboards(store, selection=selection)[0] for selection in ("validation", "test")]
    assert boards[0].rows == boards[1].rows


def test_however_bad_it_is_it_has_not_collapsed(store, judge):
    """What was promised of it is not known, and there is nothing that it would be averaged with."""
    judge(right=(190, 3, 0))
    (found,) = leaderboards(store)
    assert found.rows[0].collapsed == ()
    assert found.rows[0].figures[2].best.mean == 0


def test_its_cells(board):
    shown = table(board)
    headings = [f"{column.group} {column.title}".strip() for column in shown.columns]
    cells = dict(zip(headings, map(str, shown.rows[0]), strict=True))
    assert {cells[f"{attack.title} gap"] for attack in board.attacks} == {NONE}
    assert cells["Clean best"] == cells["Clean last"] == "85.00"
    assert cells["Parameters"] == "evaluated only"
    assert (cells["Time a seed"], cells["PFLOP a seed"], cells["Memory"]) == (NONE, NONE, NONE)
    (note,) = (note for note in shown.notes if note.startswith("evaluated only"))
    assert f"ours: resnet18, normalised by mean 0.5 and standard deviation 0.25, weights SHA-256 {DIGEST}." in note


def test_a_network_that_takes_images_as_they_are(store, judge):
    judge(params={"model": "net.py:build", "code_sha256": DIGEST[::-1], "weights_sha256": DIGEST})
    notes = " ".join(table(leaderboards(store)[0]).notes)
    assert f"ours: net.py:build, no normalisation, weights SHA-256 {DIGEST}, code SHA-256 {DIGEST[::-1]}." in notes


def test_two_networks_of_one_name_are_told_apart_by_the_beginning_of_their_digest(store, judge):
    judge()
    judge(params={**NETWORK, "weights_sha256": "f" * 64})
    (found,) = leaderboards(store)
    assert {row.label for row in found.rows} == {
        "ours (weights_sha256=0123456789ab)",
        "ours (weights_sha256=ffffffffffff)",
    }


def test_data_formats(board):
    document = json.loads(render_json([board]))
    jsonschema.validate(document, schema())
    ours, other = document["boards"][0]["rows"]
    assert (ours["evaluated_only"], other["evaluated_only"]) == (True, False)
    assert [figure["gap"] for figure in ours["figures"]] == [None] * 3
    lines = list(csv.DictReader(io.StringIO(render_csv([board]), newline="")))
    assert [line["evaluated_only"] for line in lines] == ["true"] * 3 + ["false"] * 3
    assert [line["gap_mean"] for line in lines[:3]] == [""] * 3
    assert json.loads(lines[0]["params"]) == NETWORK


def test_it_is_last_where_rows_are_sorted_by_their_gap(board):
    (found,) = sort_rows([board], "gap")
    assert [row.label for row in found.rows] == ["PGD_AT", "ours"]


def test_figures(store, board):
    data = figures(store, board)
    assert data.labels == ("ours", "PGD_AT")
    assert set(data.results.checkpoint[data.results.row == 0]) == {"best", "last"}
    assert not data.curves[data.curves.row == 0][["best", "last"]].any(axis=None)
    assert data.unit == "PFLOP"  # its missing cost does not drive the others to hours
    assert data.without_cost == ("ours",)
    for name in NAMES:
        assert render(data, name, "svg")


def test_without_a_row_that_was_trained_there_are_figures_all_the_same(store, judge):
    judge()
    data = figures(store, leaderboards(store)[0])
    for name in NAMES:
        assert render(data, name, "svg")


def test_it_is_compared_without_a_gap(store, board):
    found = compared(store, "ours", "pgd_at")
    assert {figure.checkpoint for figure in found.figures} == {"best", "last"}
    assert found.a.evaluated_only
    assert not found.b.evaluated_only


def test_how_to_judge_it_again(board, tmp_path):
    again = reproduction(board)
    ours, other = again.commands
    assert ours == (
        f"bench evaluate WEIGHTS --suite {again.file} --name ours --model resnet18 --normalisation 0.5/0.25"
    )
    assert other.startswith("bench run ")
    (tmp_path / again.file).write_text(again.suite)
    loaded = load_suite(str(tmp_path / again.file))
    assert [method.name for method in loaded.methods] == ["pgd_at"]
    assert loaded.suite.protocol.fingerprint == board.fingerprint


@pytest.mark.parametrize(
    ("params", "source"),
    [
        ({"model": "net.py:build", "code_sha256": DIGEST, "weights_sha256": DIGEST}, "net.py:build"),
        ({"model": "robustbench:Linf/Wong2020Fast", "weights_sha256": DIGEST}, "robustbench:Linf/Wong2020Fast"),
    ],
)
def test_how_to_judge_again_what_is_no_weights_file(store, judge, params, source, tmp_path):
    judge(params=params, label="two words")
    again = reproduction(leaderboards(store)[0])
    assert again.commands == (f"bench evaluate {source} --suite {again.file} --name 'two words'",)
    (tmp_path / again.file).write_text(again.suite)
    load_suite(str(tmp_path / again.file))


def test_html(store, board):
    text = render_html(store, [board])
    assert "evaluated only" in text
    assert DIGEST in text
    assert "how it was trained is not known" in text
