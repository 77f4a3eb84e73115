"""CSV and JSON: every digit, documented columns and schema, names that come back as they were."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from bench.reporting.formats.csv import COLUMNS, defuse, render_csv, restore
from bench.reporting.formats.json import VERSION, render_json
from bench.reporting.leaderboard import leaderboards
from bench.reporting.notes import notes
from bench.reporting.published import Published
from bench.reporting.published_comparison import compare_with_published
from bench.storage.run_folder import ORIGIN
from bench.utils.files import write_record

from .conftest import NAMES, protocol_of

PAGE = Path(__file__).parents[2] / "docs" / "report-format.md"
GPU = {"device": "cuda", "gpu": "A GPU"}


@pytest.fixture
def boards(make_run, store):
    """Two protocols; the first with a bit of everything, and the papers' figures."""
    for seed in range(3):
        right = {"best": (150 + seed, 100, 50 + seed), "last": (160, 90, 40 - seed)}
        store.ingest(make_run(right, seed=seed, done={"classes": 10}, environment=GPU if seed else {"device": "cpu"}))
    right = {"best": (150, 100, 33), "last": (150, 100, 0)}
    store.ingest(make_run(right, method="fomo", custom=True, params={"a": 0.1}, done={"train_pflop": None}))
    store.ingest(
        make_run({"best": (9, 9, 1), "last": (9, 9, 1)}, method="fomo", custom=True, params={"a": 0.1}, seed=1)
    )
    store.ingest(make_run({}, method="mart", status="diverged", done={"epoch": 3}, origin=None))
    store.ingest(make_run({}, method="mart", status=None, seed=2, origin=None))
    store.ingest(make_run({"best": (100,), "last": (90,)}, protocol=protocol_of(evaluation={"final": ["clean"]})))
    found = sorted(leaderboards(store), key=lambda board: -len(board.attacks))
    paper = Published(
        "digits",
        "small_cnn",
        "linf-8",
        "pgd_at",
        {"clean": 0.8},
        {"clean": 0.7},
        10,
        "validation",
        3,
        "log",
        "=A paper",
    )
    (first,) = compare_with_published(
        found[:1], [], [paper, replace(paper, selection=None, seeds=None, pgd_steps=None)]
    )
    return [first, *found[1:]]


# --- JSON ------------------------------------------------------------------------------------------------------------


def schema():
    (text,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return json.loads(text)


def test_json_is_as_documented(boards):
    document, described = json.loads(render_json(boards)), schema()
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.validate(document, described)
    assert (document["format"], document["version"], VERSION) == ("bench-report", 1, 1)
    assert [board["published"] is None for board in document["boards"]] == [False, True]


def test_json_and_notes_name_the_bundles_of_ingested_runs(make_run, store):
    for seed in range(3):
        folder = make_run(seed=seed, done={"classes": 10})
        if seed:
            write_record(
                folder.path / ORIGIN, {"bundle": f"b{seed - 1}" * 32, "origin": "A lab" if seed == 1 else None}
            )
        store.ingest(folder)
    (board,) = leaderboards(store)
    document = json.loads(render_json([board]))
    jsonschema.validate(document, schema())
    assert document["boards"][0]["bundles"] == [
        {"sha256": "b0" * 32, "origin": "A lab", "runs": [{"label": "PGD_AT", "seed": 1}]},
        {"sha256": "b1" * 32, "origin": None, "runs": [{"label": "PGD_AT", "seed": 2}]},
    ]
    assert "Measured elsewhere and ingested from bundle b0b0b0b0b0b0, origin: A lab: PGD_AT seed 1." in notes(board)


def test_the_schema_can_refuse(boards):
    document = json.loads(render_json(boards))
    document["boards"][0]["rows"][0]["more"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_json_holds_all_that_the_board_holds(boards):
    board, (found, _) = boards[0], json.loads(render_json(boards))["boards"]
    assert found["protocol"] == {"fingerprint": board.fingerprint, "identity": board.protocol}
    assert found["hardware"] == board.hardware
    first, second, third = found["rows"]
    estimate = board.rows[0].figures[2].best
    assert first["figures"][2]["best"] == {
        "values": list(estimate.values), "mean": estimate.mean, "sd": estimate.sd, "interval": list(estimate.interval),
        "covers": "seeds",
    }  # fmt: skip
    assert first["rank_interval"] == list(board.rows[0].rank_interval)
    assert [cost["device"] for cost in first["costs"]] == ["CPU", "GPU"]
    assert second["params"] == {"a": 0.1}
    assert [seed["seed"] for seed in second["collapsed"]] == [1]
    assert [seed["seed"] for seed in second["fallen"]] == [0]
    assert (third["diverged"], third["unfinished"]) == ([{"seed": 0, "epoch": 3}], [2])
    assert (third["rank"], third["rank_interval"], third["figures"]) == (None, None, [])
    assert found["published"][0]["best"]["difference"] == pytest.approx(0.755 - 0.8)


# --- CSV -------------------------------------------------------------------------------------------------------------


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_a_line_for_each_row_and_attack(boards):
    lines = read(render_csv(boards))
    assert list(lines[0]) == list(COLUMNS)
    ours = [(line["label"], line["attack"]) for line in lines if line["record"] == "row"]
    assert ours == [
        *((label, attack) for label in ("PGD_AT", "FOMO", "MART") for attack in ("clean", "pgd", "autoattack")),
        ("PGD_AT", "clean"),
    ]
    assert [line["attack"] for line in lines if line["ranks"] == "true"] == ["autoattack"] * 3 + ["clean"]


def test_csv_has_every_digit(boards):
    _, _, autoattack, fomo, *_ = read(render_csv(boards))
    row = boards[0].rows[0]
    gap = row.figures[2].gap
    assert (float(autoattack["gap_mean"]), float(autoattack["gap_sd"])) == (gap.mean, gap.sd)
    assert (float(autoattack["gap_low"]), float(autoattack["gap_high"])) == gap.interval
    assert json.loads(autoattack["gap_values"]) == list(gap.values)
    assert json.loads(autoattack["training_hours"]) == [cost.training for cost in row.costs]
    assert json.loads(autoattack["device"]) == ["CPU", "GPU"]
    assert (autoattack["rank"], autoattack["rank_low"], autoattack["custom"]) == ("1", "1", "false")
    assert (fomo["device"], fomo["best_sd"], fomo["train_pflop"]) == ("CPU", "", "1.5")
    assert json.loads(fomo["params"]) == {"a": 0.1}


def test_csv_of_a_row_without_figures_and_of_papers(boards):
    lines = read(render_csv(boards))
    (mart, *_) = [line for line in lines if line["label"] == "MART"]
    assert (mart["rank"], mart["best_mean"], mart["device"], mart["diverged"]) == ("", "", "", "[0]")
    first, second = [line for line in lines if line["record"] == "published"]
    assert (first["best_mean"], first["status"], first["source"]) == ("0.8", "log", "'=A paper")
    assert float(first["best_difference"]) == pytest.approx(0.755 - 0.8)
    assert (second["best_difference"], second["selection"]) == ("", "")
    assert second["not_compared"] == "at best: which images selected it is not known"


def test_csv_columns_are_as_documented():
    section = PAGE.read_text(encoding="utf-8").split("## CSV")[1].split("## JSON")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    parts = [name.removeprefix("gap_") for name in COLUMNS if name.startswith("gap_") and name != "gap_by_construction"]
    likewise = {f"{side}_{part}" for side in ("last", "gap") for part in parts}
    assert named == [name for name in COLUMNS if name not in likewise]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'x", "''=x", "x", "", "x=1", *NAMES])
def test_formulas_are_defused_and_come_back(text):
    assert restore(defuse(text)) == text
    assert defuse(text)[:1] not in tuple("=+-@\t\r\n")


@pytest.mark.parametrize("name", [*NAMES, "=cmd|' /C calc'!A0", "-1"])
def test_names_come_back(make_run, store, name):
    store.ingest(make_run(label=name))
    boards = leaderboards(store)
    assert json.loads(render_json(boards))["boards"][0]["rows"][0]["label"] == name
    assert {restore(line["label"]) for line in read(render_csv(boards))} == {name}
