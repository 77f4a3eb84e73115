"""The work of training up to an epoch, and until an accuracy was reached."""

import csv
import io
import json
from dataclasses import replace

import jsonschema
import pytest

from bench.reporting.formats.csv import render_csv
from bench.reporting.formats.json import render_json
from bench.reporting.frames import curves_frame, results_frame
from bench.reporting.leaderboard import leaderboards, sort_rows
from bench.reporting.notes import notes
from bench.reporting.plots.data import figures
from bench.reporting.plots.draw import SERIES
from bench.reporting.plots.render import draw
from bench.reporting.table import table
from bench.reporting.work import target

from ..storage.conftest import epoch_record
from .test_data_formats import schema


@pytest.fixture
def boards(take, store, monkeypatch):
    """AutoAttack on 100 images: pgd_at has 50 and 40, and 30 and 45 right at best and last; fomo has 20 and 10.

    Epochs take 1 and 2 PFLOP, and 4 PFLOP go to teachers of pgd_at.
    """
    monkeypatch.setattr(
        "tests.storage.conftest.epoch_record",
        lambda epoch, **settings: epoch_record(epoch, **settings) | {"train_pflop": 1.0 + epoch},
    )
    done = {"classes": 10}
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, done=done | {"train_pflop": 7.0})
    take({"best": (150, 100, 30), "last": (160, 90, 45)}, seed=1, done=done | {"train_pflop": 7.0})
    take({"best": (150, 100, 20), "last": (160, 90, 10)}, method="fomo", done=done | {"train_pflop": 3.0})
    monkeypatch.undo()
    take({"best": (150, 100, 90), "last": (160, 90, 90)}, method="trades")  # of an older version
    return leaderboards(store)


def at(store, boards, accuracy):
    return [replace(board, target=target(store, board, accuracy)) for board in boards]


def test_the_earlier_checkpoint_that_reaches_it_counts(store, boards):
    for accuracy, expected in (
        (0.5, {"PGD_AT": (5.0, (0,))}),  # best is after the first epoch
        (0.4, {"PGD_AT": (6.0, (0, 1))}),  # best of seed 0, last of seed 1: (5 + 7) / 2
        (0.15, {"PGD_AT": (5.0, (0, 1)), "FOMO": (1.0, (0,))}),
        (0.95, {}),
    ):
        (board,) = at(store, boards, accuracy)
        labels = {key: row.label for row in board.rows for key in board.target.reached if f'"{row.method}"' in key}
        reached = {labels[key]: (one.pflop, one.seeds) for key, one in board.target.reached.items()}
        assert reached == expected


def test_every_format_has_it(store, boards):
    (board,) = with_target = at(store, boards, 0.5)
    shown = table(board)
    column = [column.title for column in shown.columns].index("PFLOP to 50 %")
    texts = {row[2].text: row[column].text for row in shown.rows}
    assert texts == {"TRADES": "–", "PGD_AT": "5 (1 of 2 seeds)", "FOMO": "–"}
    assert any(note.startswith("PFLOP to 50 %: work of training") for note in notes(board))
    document = json.loads(render_json(with_target))
    jsonschema.validate(document, schema())
    assert document["boards"][0]["target"]["reached"] == [None, {"pflop": 5.0, "seeds": [0]}, None]
    lines = list(csv.DictReader(io.StringIO(render_csv(sort_rows(with_target, "method")))))
    assert [line["pflop_to_target"] for line in lines[::3]] == ["", "5.0", ""]
    assert {line["target"] for line in lines} == {"0.5"}
    assert "target" not in json.loads(render_json(boards))["boards"][0]
    assert "PFLOP to 50 %" not in [column.title for column in table(boards[0]).columns]


def test_frames_and_the_figure_have_cumulative_work(store, boards):
    results, curves = results_frame(store), curves_frame(store)
    ours = results[(results.label == "PGD_AT") & (results.attack == "AutoAttack") & (results.seed == 0)]
    assert dict(zip(ours.checkpoint, ours.checkpoint_pflop, strict=True)) == {"best": 5.0, "last": 7.0}
    assert curves[(curves.label == "FOMO")].work_pflop.to_list() == [1.0, 3.0]
    assert results[results.label == "TRADES"].checkpoint_pflop.isna().all()
    axes = draw(figures(store, boards[0]), "work").axes[0]
    lines = {line.get_color(): line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata()) == 2}
    assert lines == {SERIES[1]: [5.0, 7.0], SERIES[2]: [1.0, 3.0]}
