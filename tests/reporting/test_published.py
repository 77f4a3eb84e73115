"""The papers' figures: the file, and what is put beside ours."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.registry import DATASETS
from bench.reporting.leaderboard import leaderboards
from bench.reporting.published import ATTACKS, COLUMNS, find_published, read_published
from bench.reporting.published_comparison import compare_with_published
from bench.reporting.released_curves import read_curves
from bench.reporting.table import published_table, tables

from .conftest import protocol_of

HEAD = ",".join(COLUMNS)
LINE = "cifar10,preact_resnet18,linf-8,pgd_at,82.92,53.49,,84.93,45.59,,10,test,1,log,A paper"
FINALS = ["clean", {"name": "pgd", "steps": 10}, {"name": "autoattack"}]


@pytest.fixture
def write(tmp_path):
    def write(*lines: str, head: str = HEAD) -> Path:
        path = tmp_path / "published.csv"
        path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
        return path

    return write


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_shipped_file():
    found = read_published()
    assert len(found) == len(find_published().read_text(encoding="utf-8").splitlines()) - 1 > 40
    first = found[0]
    assert first.best == {"clean": 0.8292, "pgd": 0.5349}
    assert first.last == {"clean": 0.8493, "pgd": 0.4559}
    assert (first.pgd_steps, first.selection, first.seeds, first.status) == (10, "test", 1, "log")
    assert "last 5 epochs" in first.source


def test_the_shipped_figures_are_possible():
    """Each line once, with figures that only fall from clean to PGD to AutoAttack, and names that suites use."""
    lines, seen = read_published(), set()
    assert len(lines) > 300
    for line in lines:
        assert line.best or line.last, line
        for figures in (line.best, line.last):
            falling = [figures[attack] for attack in ATTACKS if attack in figures]
            assert falling == sorted(falling, reverse=True), line
            assert all(0 <= figure < 1 for figure in falling), line
            assert line.pgd_steps or "pgd" not in figures, line
        assert line.dataset in DATASETS.names() or line.dataset == "imagenet"
        assert re.fullmatch(r"linf-(4|8|7\.905)|l2-(128|127\.5)", line.threat)  # 0.031 and 0.5 in units of 1/255
        assert re.fullmatch(r"[a-z0-9_]+", line.architecture + line.method)
        assert line.status in {"log", "paper", "readme", "secondary"}
        key = replace(line, selection=None, status="", best=str(line.best), last=str(line.last))
        assert key not in seen, line
        seen.add(key)


def test_what_a_line_may_leave_out(write):
    (found,) = read_published(write('cifar10,preact_resnet18,linf-8,fomo,,,51.37,,,51.28,,,,secondary,"A, ""b"""'))
    assert found.best == {"autoattack": 0.5137}
    assert (found.pgd_steps, found.selection, found.seeds) == (None, None, None)
    assert found.source == 'A, "b"'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (LINE.replace("82.92", "high"), "line 3: 'clean_best' is 'high', not a percentage from 0 to 100"),
        (LINE.replace("82.92", "nan"), "line 3: 'clean_best' is 'nan'"),
        (LINE.replace("45.59", "145"), "line 3: 'pgd_last' is '145'"),
        (LINE.replace(",10,", ",0,"), "line 3: 'pgd_steps' is '0', not a whole number above 0"),
        (LINE.replace(",1,log", ",1.5,log"), "line 3: 'seeds' is '1.5'"),
        (LINE.replace("test", "tets"), "line 3: 'selection' is 'tets'; it must be one of validation, test, none"),
        (LINE.replace("pgd_at", " "), "line 3: 'method' is empty"),
        (LINE + ",more", "line 3: 16 fields, but 15 columns"),
        (LINE.rpartition(",")[0], "line 3: 14 fields, but 15 columns"),
        (LINE.replace("A paper", '"A" paper'), "line 3: "),
        (LINE.replace("A paper", '"A paper'), "line 3: unexpected end of data"),
    ],
)
def test_a_malformed_line_is_named(write, line, words):
    with pytest.raises(BenchError) as caught:
        read_published(write(LINE, line))
    assert words in str(caught.value)
    assert "published.csv" in str(caught.value)


def test_a_malformed_file(write, tmp_path):
    with pytest.raises(BenchError, match="line 1: the columns must be dataset, architecture,"):
        read_published(write(LINE, head=HEAD.replace("aa_best", "autoattack_best")))
    with pytest.raises(BenchError, match="cannot be read: .*No such file"):
        read_published(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"\n\xff")
    with pytest.raises(BenchError, match="is not UTF-8"):
        read_published(tmp_path / "latin.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(BenchError, match="line 1: the columns must be"):
        read_published(tmp_path / "empty.csv")


def test_a_line_after_a_source_of_two_lines_is_counted_right(write):
    with pytest.raises(BenchError, match="line 4: "):
        read_published(write(LINE.replace("A paper", '"A\npaper"'), LINE.replace("82.92", "x")))


# --- beside ours -----------------------------------------------------------------------------------------------------


@pytest.fixture
def compared(make_run, store, write):
    """Run one row, and put published lines beside it; return (the board, by attack)."""

    def compared(*lines: str, right=None, selection="validation", oracle=True, row=None, **protocol):
        settings = {"dataset": "cifar10", "model": "preact_resnet18", "evaluation": {"final": FINALS}} | protocol
        right = right or {"best": (160, 100, 90), "last": (170, 80, 70), "best_on_test": (164, 104, 94)}
        if not oracle:
            right.pop("best_on_test")
        store.ingest(make_run(right, protocol=protocol_of(**settings), **(row or {})))
        other = {"validation": "test", "test": "validation"}[selection]
        boards = [leaderboards(store, selection=chosen) if oracle else [] for chosen in (selection, other)]
        boards[0] = leaderboards(store, selection=selection)
        (board,) = compare_with_published(*boards, read_published(write(*lines)))
        return board, {line.attack: line for line in board.published}

    return compared


@pytest.mark.parametrize("selection", ["validation", "test"])
def test_a_paper_that_selected_on_the_test_images_meets_our_oracle(compared, selection):
    _, found = compared(LINE, selection=selection)
    assert set(found) == {"clean", "pgd"}, "the paper has no AutoAttack"
    pgd = found["pgd"]
    assert (pgd.label, pgd.title, pgd.reasons) == ("PGD_AT", "PGD-10", ())
    assert (pgd.best.paper, pgd.best.ours) == (0.5349, 0.52)
    assert pgd.best.difference == pytest.approx(0.52 - 0.5349)
    assert pgd.last.difference == pytest.approx(0.40 - 0.4559)
    assert found["clean"].best.difference == pytest.approx(0.82 - 0.8292)


def test_a_paper_that_held_out_images_meets_our_choice_on_those(compared):
    _, found = compared(LINE.replace("test", "validation").replace(",,", ",40.00,", 1))
    assert found["pgd"].best.difference == pytest.approx(0.50 - 0.5349)
    assert found["autoattack"].best.difference == pytest.approx(0.45 - 0.40)
    assert found["autoattack"].last.paper is found["autoattack"].last.difference is None


@pytest.mark.parametrize(
    ("line", "changes", "reason"),
    [
        (LINE, {"oracle": False}, "at best: selected on test images, ours has no such checkpoint"),
        (LINE.replace("test", ""), {}, "at best: which images selected it is not known"),
        (LINE.replace("test", "none"), {}, "at best: it selected none"),
    ],
)
def test_a_selection_that_does_not_match_leaves_last(compared, line, changes, reason):
    _, found = compared(line, **changes)
    assert found["pgd"].reasons == (reason,)
    assert found["pgd"].best.difference is None
    assert found["pgd"].last.difference == pytest.approx(0.40 - 0.4559)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "resnet18"}, "architecture preact_resnet18, ours resnet18"),
        ({"threat": {"norm": "l2", "eps": "128/255"}}, "threat linf-8, ours l2-128"),
        ({"threat": {"norm": "linf", "eps": 0.031}}, "threat linf-8, ours linf-7.905"),
        ({"dataset": {"name": "cifar10", "subset": {"train": "0-999"}}}, "ours is a part of the dataset"),
        ({"dataset": {"name": "cifar10", "resize": 16}}, "ours is resized to 16x16"),
        ({"row": {"custom": True}}, "ours has parameters of its own (custom)"),
        ({"right": dict.fromkeys(("best", "last", "best_on_test"), (1, 1, 1))}, "ours has no seed to average"),
    ],
)
def test_other_protocols_are_not_compared(compared, changes, reason):
    _, found = compared(LINE, **changes)
    for line in found.values():
        assert reason in line.reasons
        assert line.best.difference is line.last.difference is None


@pytest.mark.parametrize(
    ("finals", "line", "reason"),
    [
        (["clean", {"name": "pgd", "steps": 20}, "autoattack"], LINE, "PGD-10, ours PGD-20"),
        (FINALS, LINE.replace(",10,", ",,"), "its number of PGD steps is not known"),
        (["clean", "autoattack", "pgd"], LINE, "PGD-10, ours PGD-20"),
    ],
)
def test_another_pgd_is_not_compared(compared, finals, line, reason):
    _, found = compared(line, evaluation={"final": finals})
    assert found["pgd"].reasons == (reason,)
    assert found["pgd"].last.difference is None
    assert found["clean"].last.difference is not None


SINGLE = {"attack": {"name": "pgd", "steps": 1, "step_size": 0.03}}


@pytest.mark.parametrize(
    ("attack", "method", "found"),
    [
        (SINGLE, "fgsm_rs", True),
        (SINGLE, "pgd_at", False),
        (SINGLE, "fgsm_at", False),
        ({"attack": {"name": "pgd", "steps": 1, "random_start": False}}, "fgsm_at", True),
        ({}, "fgsm_rs", False),
        ({}, "pgd_at", True),
    ],
)
def test_pgd_at_with_a_single_step_is_fgsm(compared, attack, method, found):
    _, lines = compared(LINE.replace("pgd_at", method), training={"epochs": 2, **attack})
    assert bool(lines) == found
    if found:
        assert lines["pgd"].best.difference is not None


@pytest.mark.parametrize(
    ("method", "reasons"), [("dom_re", ("trained with several steps, ours with one",)), ("n_fgsm", ())]
)
def test_a_method_trained_with_several_steps_is_not_compared_with_a_single_step(compared, method, reasons):
    _, lines = compared(LINE.replace("pgd_at", method), row={"method": method}, training={"epochs": 2, **SINGLE})
    assert lines["pgd"].reasons == reasons


def test_l2_is_compared_with_l2(compared):
    lines = [LINE, LINE.replace("linf-8", "l2-128").replace("82.92", "88.67"), LINE.replace("preact_", "")]
    _, found = compared(*lines, threat={"norm": "l2", "eps": "128/255"})
    assert {line.published.threat for line in found.values()} == {"l2-128"}
    assert found["clean"].best.paper == 0.8867
    assert found["clean"].reasons == ()


def test_lines_of_another_setting_stand_aside(compared):
    board, _ = compared(LINE, LINE.replace("preact_resnet18", "resnet18"), LINE.replace("linf-8", "linf-4"))
    assert len(board.published) == 2  # clean and PGD-10 of the first
    assert {line.published.architecture for line in board.published} == {"preact_resnet18"}


def test_a_part_of_the_test_images_is_not_compared(compared):
    finals = ["clean", {"name": "pgd", "steps": 10, "images": 50}]
    right = {"best": (160, 30), "last": (170, 20), "best_on_test": (164, 31)}
    _, found = compared(LINE, evaluation={"final": finals}, right=right)
    assert found["pgd"].reasons == ("ours saw 50 of the test images",)


def test_an_attack_that_we_lack(compared):
    right = {"best": (160,), "last": (170,), "best_on_test": (164,)}
    _, found = compared(LINE, evaluation={"final": ["clean"]}, right=right)
    assert found["pgd"].reasons == ("ours has no PGD-10",)
    assert found["pgd"].best.ours is None


def test_the_right_one_of_several_pgd_attacks(compared):
    finals = [{"name": "pgd", "steps": 20}, {"name": "pgd", "steps": 10}]
    right = {"best": (100, 120), "last": (90, 110), "best_on_test": (101, 121)}
    _, found = compared(LINE, evaluation={"final": finals}, right=right)
    assert found["pgd"].best.ours == 0.605


def test_only_the_dataset_and_the_method_of_the_row(compared):
    others = [LINE.replace("cifar10", "cifar100"), LINE.replace("pgd_at", "awp")]
    board, found = compared(*others)
    assert board.published == ()
    assert found == {}
    assert published_table(board).notes == ("No paper's figure is known for these methods on this dataset.",)


def test_spellings_of_architectures_and_methods(compared):
    _, found = compared(LINE.replace("preact_resnet18", "wide_resnet34_10"), model="wide_resnet/34-10")
    assert found["clean"].reasons == ()


def test_a_method_named_with_its_parameter(compared):
    row = {"method": "sat", "params": {"activation": "smooth_relu"}, "custom": True}
    line = LINE.replace("pgd_at", "sat_smoothrelu")
    _, found = compared(line, line.replace("smoothrelu", "gelu"), row=row)
    assert [line.reasons for line in found.values()] == [(), ()]


def test_the_table(compared):
    board, _ = compared(LINE, LINE.replace("test", ""))
    shown = tables(board)[1]
    headings = [f"{column.group} {column.title}".strip() for column in shown.columns]
    rows = [dict(zip(headings, map(str, row), strict=True)) for row in shown.rows]
    assert rows[1] == {
        "Method": "PGD_AT", "Attack": "PGD-10",
        "best paper": "53.49", "best ours": "52.00", "best difference": "-1.49",
        "last paper": "45.59", "last ours": "40.00", "last difference": "-5.59",
        "Seeds": "1", "Selection": "test", "Status": "log", "Source": "A paper", "Not compared because": "–",
    }  # fmt: skip
    assert rows[2]["last difference"] == "+0.07"
    assert rows[2]["Selection"] == "–"
    assert rows[2]["Not compared because"] == "at best: which images selected it is not known"
    assert len(tables(replace(board, published=None))) == 1


# --- released curves -------------------------------------------------------------------------------------------------


def test_released_curves_end_at_the_published_figures():
    """The shipped points at best and at last are those of the line that they belong to."""
    points = read_curves()
    (line,) = [line for line in read_published() if points[0].belongs_to(line)]
    ours = {point.epoch: {"clean": point.clean, "pgd": point.pgd} for point in points}
    assert ours[106] == line.best
    assert ours[199] == line.last


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",19,69.5", ",200,69.5", "'epoch' counts from 0"),
        (",19,69.5", ",x,69.5", "'epoch' is 'x', not a whole number"),
        (",19,69.5", ",19,169.5", "'clean' is '169.5', not a percentage"),
        ("epochs,epoch", "epoch", "the columns must be"),
    ],
)
def test_a_released_curve_that_is_invalid(tmp_path, old, new, said):
    text = (find_published("curves") / "rice2020_cifar10.csv").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "curve.csv").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(BenchError, match=said):
        read_curves(tmp_path)
