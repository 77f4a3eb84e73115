import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from bench.config.hyperparameters import MethodParams
from bench.reporting.formats.markdown import escape, render_markdown
from bench.reporting.formats.terminal import render_terminal
from bench.reporting.leaderboard import leaderboards
from bench.reporting.table import table

GPU = {"device": "cuda", "gpu": "A GPU", "cpu": "A Processor"}


@pytest.fixture
def board(make_run, store):
    """Return a board with a bit of everything."""
    for seed in range(3):
        right = {"best": (150 + seed, 100, 50 + seed), "last": (160, 90, 40 - seed)}
        store.ingest(make_run(right, seed=seed, done={"classes": 10}, environment=GPU))
    stop = {"method": "early_stopping", "label": "Early | stop", "final_is_best": True, "origin": "declared"}
    store.ingest(make_run({"best": (150, 100, 30), "last": (150, 100, 30)}, done={"classes": 10}, **stop))
    for seed, (best, last) in enumerate(((33, 0), (5, 4))):
        right = {"best": (150, 100, best), "last": (150, 100, last)}
        store.ingest(make_run(right, method="fomo", custom=True, seed=seed, done={"classes": 10}, package="2.0"))
    store.ingest(make_run({}, method="mart", status="diverged", done={"epoch": 3}, origin=None))
    store.ingest(make_run({}, method="mart", status="diverged", seed=1, origin=None))
    store.ingest(make_run({}, method="mart", status=None, seed=2, origin=None))
    (board,) = leaderboards(store)
    return board


def shown(board) -> dict[str, dict[str, str]]:
    """Return the cells by the row's label and the column's heading."""
    found = table(board)
    headings = [f"{column.group} {column.title}".strip() for column in found.columns]
    return {str(row[2]): dict(zip(headings, map(str, row), strict=True)) for row in found.rows}


def test_cells(board):
    rows = shown(board)
    assert list(rows) == ["PGD_AT", "FOMO", "Early | stop", "MART"]
    assert rows["PGD_AT"] == {
        "Rank": "1", "Rank, 95 %": "1", "Method": "PGD_AT",
        "Clean best": "75.50 ± 0.50", "Clean last": "80.00 ± 0.00", "Clean gap": "-4.50 ± 0.50",
        "PGD-20 best": "50.00 ± 0.00", "PGD-20 last": "45.00 ± 0.00", "PGD-20 gap": "5.00 ± 0.00",
        "AutoAttack best": "51.00 ± 1.00", "AutoAttack last": "39.00 ± 1.00", "AutoAttack gap": "12.00 ± 2.00",
        "AutoAttack best, 95 %": "48.52–53.48",
        "Seeds": "3", "Flags": "0", "Parameters": "paper", "Time a seed": "1.00 h + 30.0 min on GPU",
        "PFLOP a seed": "1.5 on GPU", "Memory": "5.00 GiB on GPU",
    }  # fmt: skip
    assert rows["FOMO"] | {"Rank": "2=", "Rank, 95 %": "2–3"} == rows["FOMO"]
    assert rows["FOMO"]["AutoAttack best"] == "33.00"
    assert rows["FOMO"]["AutoAttack last"] == "0.00 §"
    assert rows["FOMO"]["PGD-20 last"] == "50.00"
    assert rows["FOMO"]["Flags"] == "3"  # of the collapsed seed too
    assert rows["FOMO"]["Seeds"] == "1 (1 collapsed)"
    assert rows["FOMO"]["Parameters"] == "paper, custom"
    assert rows["Early | stop"]["Rank"] == "2="
    assert rows["Early | stop"]["AutoAttack gap"] == rows["Early | stop"]["Clean gap"] == "0.00 ‡"
    assert rows["Early | stop"]["Parameters"] == "declared †"
    assert rows["MART"]["Seeds"] == "0 (2 diverged, 1 unfinished)"
    assert {rows["MART"][name] for name in ("Rank", "Rank, 95 %", "AutoAttack best", "Flags", "Memory")} == {"–"}
    assert rows["MART"]["Parameters"] == "–"


def test_a_note_names_rows_that_train_in_a_larger_ball(board):
    first, second, *others = board.rows
    params = {"noise": 2.0, "step": 1.5}
    rows = (
        replace(first, method="n_fgsm", params=params),
        replace(second, method="n_fgsm", params={"noise": 0.5, "step": 0.5}),
        *others,
    )
    (note,) = [note for note in table(replace(board, rows=rows)).notes if "larger ball" in note]
    assert note == (
        f"Trained in a larger ball than the protocol's, evaluated in the protocol's: {first.label} (3.5 eps)."
    )


def test_a_note_names_rows_that_kept_training_images(board, monkeypatch):
    monkeypatch.setattr(MethodParams, "held_out", 1000)
    (note,) = [note for note in table(replace(board, rows=board.rows[:1])).notes if note.startswith("Kept")]
    assert note == (f"Kept some of the training images for a use other than training: {board.rows[0].label} (1000).")


def test_notes(board):
    assert list(table(board).notes) == [
        "best: the checkpoint with the highest PGD-10 accuracy on the 100 training images held out for validation; "
        "last: the final epoch; gap: best minus last.",
        "Figures are percentages of the test images: Clean 200, PGD-20 200, AutoAttack 100 (a class-balanced subset; "
        "binomial standard error of a seed up to 5.00 points).",
        "± is the sample standard deviation over the seeds that the column Seeds counts; "
        "95 % is Student's t-interval of their mean, for these test images.",
        "For a row with one seed, the 95 % interval covers the choice of test images only, not that of the seed.",
        "Rank: by AutoAttack at best. A row shares a rank (=) if a paired test at the 5 % level does not separate it "
        "from the first row of that rank: Student's t over images and seeds, or for two rows with one seed each "
        "McNemar's exact test, which covers images only. Rank, 95 %: the ranks that a row may have, from the same "
        "tests against all other rows, adjusted by Holm's procedure.",
        "† Some parameters are this benchmark's choice because no readable source states them; the command bench "
        "show method lists them.",
        "‡ The gap is zero by construction: the method's last model is its best one by definition.",
        "custom: some parameters differ from the method's canonical ones.",
        "FOMO: collapsed and not averaged; AutoAttack accuracy at best is no better than guessing or at most 1 %: "
        "seed 1, best 5.00, last 4.00.",
        "§ FOMO: averaged, although AutoAttack accuracy at last is no better than guessing or at most 1 %: "
        "seed 0, best 33.00, last 0.00.",
        "MART: diverged, the loss was no longer a number: seed 0 in epoch 3, seed 1.",
        "MART: not finished and not averaged: seed 2.",
        "Flags, figures in doubt: AutoAttack may overestimate FOMO: "
        "seed 0 at last, gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 0.0 %; "
        "seed 1 at best, gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 5.0 %; "
        "seed 1 at last, gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 4.0 %.",
        "Flags, figures in doubt: AutoAttack may overestimate Early | stop: "
        "seed 0 at best, gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 30.0 %; "
        "seed 0 at last, gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 30.0 %.",
        "PGD-20 differs between runs, compare with care: package=1.0; package=2.0.",
        "AutoAttack differs between runs, compare with care: package=1.0; package=2.0.",
        "Time a seed: wall-clock time of training + evaluation, which includes tracking after every epoch. PFLOP a "
        "seed: work of training; a multiply-add counts as two. Memory: peak memory of a seed, of the GPU, or on a CPU "
        "of the process. Hardware: A Processor (3 runs), A GPU (3 runs).",
    ]


def test_a_plain_board_has_no_notes_on_what_it_has_not(make_run, store):
    right = {"best": (150, 100, 50), "last": (160, 90, 40), "best_on_test": (150, 100, 55)}
    for seed in range(2):
        store.ingest(make_run(right, seed=seed))
    (board,) = leaderboards(store, selection="test")
    notes = table(board).notes
    assert len(notes) == 5
    assert "accuracy on the test images themselves, an oracle, optimistic for every method; last" in notes[0]
    assert not any(mark in note for note in notes for mark in "†‡§")


def test_a_board_of_diverged_runs_only(make_run, store):
    store.ingest(make_run({}, status="diverged"))
    (board,) = leaderboards(store)
    assert "± " not in " ".join(table(board).notes)
    assert table(board).notes[-1].endswith("of the process.")


def test_very_small_figures(make_run, store):
    done = {"train_seconds": 3.6, "track_seconds": 0.0, "evaluation_seconds": 90.0}
    store.ingest(make_run({"best": (150, 100, 45), "last": (150, 100, 46)}, done=done, environment=GPU))
    store.ingest(make_run({"best": (150, 100, 47), "last": (150, 100, 46)}, done=done, seed=1))
    (board,) = leaderboards(store)
    (row,) = shown(board).values()
    assert row["Time a seed"] == "3.6 s + 1.5 min on CPU; 3.6 s + 1.5 min on GPU"
    assert board.rows[0].figures[2].gap.mean < 0  # by rounding
    assert row["AutoAttack gap"] == "0.00 ± 1.41"


# --- markdown --------------------------------------------------------------------------------------------------------


def test_markdown(board):
    lines = render_markdown(board).split("\n")
    assert lines[0] == f"### {board.title}"
    header, rule, *rows = [line for line in lines if line.startswith("|")]
    assert header.startswith("| Rank | Rank, 95 % | Method | Clean best | Clean last | Clean gap | PGD-20 best |")
    assert rule.startswith("| ---: | ---: | :--- | ---: |")
    assert rows[2].startswith("| 2= | 2–3 | Early \\| stop | 75.00 | 75.00 | 0.00 ‡ |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in (header, rule, *rows)} == {20}
    notes = [line for line in lines if line.startswith("- ")]
    assert len(notes) == len(table(board).notes)
    assert notes[6].startswith("- ‡ The gap is zero by construction")


def test_hostile_labels_stay_text(make_run, store):
    label = "a|b\n# c `d` <img src=x onerror=y> [e](http://f) *g* _h_ i_j ~~k~~ $l$ \\| &amp; \x1b[31m"
    store.ingest(make_run(label=label, done={"classes": 10}, status="diverged"))
    (board,) = leaderboards(store)
    text = render_markdown(board)
    (line,) = [line for line in text.split("\n") if "onerror" in line and line.startswith("|")]
    assert line.split(" | ")[2] == (
        r"a\|b # c \`d\` &lt;img src=x onerror=y&gt; \[e\](http://f) \*g\* \_h\_ i_j \~\~k\~\~ \$l\$ \\\| &amp;amp;  "
        r"\[31m"
    )
    console = Console(file=io.StringIO(), width=400, force_terminal=True, color_system=None)
    render_terminal(board, console)
    assert console.file.getvalue().count("[e](http://f)") == 2  # in the table and in a note
    assert "\x1b[31m" not in console.file.getvalue() + text


def test_escape():
    assert escape("a_b") == "a_b"
    assert escape("_a b_") == r"\_a b\_"
    assert escape("1 < 2 & 3 > 2") == "1 &lt; 2 &amp; 3 &gt; 2"


# --- terminal --------------------------------------------------------------------------------------------------------


def render(board, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    render_terminal(board, console)
    return console.file.getvalue()


def test_a_wide_terminal_gets_one_table(board):
    text = render(board, 320)
    assert text.startswith(board.title)
    assert text.count("Method") == 1
    assert re.search(
        r"2= +2–3 +Early \| stop +75\.00 +75\.00 +0\.00 ‡ .* 1\.00 h \+ 30\.0 min on CPU +1\.5 on CPU", text
    )


def test_wide_columns_beside_the_attacks_get_further_tables(board, monkeypatch):
    monkeypatch.setattr("bench.reporting.formats.terminal.NARROWEST", 60)
    tables = render(board, 60).split("best: ")[0]
    assert max(map(len, tables.splitlines())) <= 60
    for cell in (cell for row in shown(board).values() for cell in row.values()):
        assert cell in tables


def test_a_narrow_terminal_gets_a_table_for_each_attack(board):
    text = render(board, 100)
    assert text.count("Method") == 5
    assert max(map(len, text.split("\n  ")[0].splitlines())) <= 100
    for cell in (cell for row in shown(board).values() for cell in row.values()):
        assert cell in text


def test_all_formats_say_the_same(board):
    wide, markdown = render(board, 320), render_markdown(board).replace("\\|", "|")
    for piece in (*(str(cell) for row in table(board).rows for cell in row), *table(board).notes):
        assert piece in wide
        assert piece in markdown


def test_values_that_cells_are_sorted_by(board):
    rows = {str(row[2]): row for row in table(board).rows}
    headings = [f"{column.group} {column.title}".strip() for column in table(board).columns]
    stop = dict(zip(headings, rows["Early | stop"], strict=True))
    gap = stop["AutoAttack gap"]
    assert (gap.text, gap.value, gap.spread, gap.marks) == ("0.00", 0.0, "", "‡")
    assert [stop[name].value for name in ("Rank", "Rank, 95 %", "Seeds")] == [2, 2, 1]
    assert stop["Time a seed"].value == 1.5
    assert stop["Memory"].value == 5 * 2**30
    assert dict(zip(headings, rows["PGD_AT"], strict=True))["Clean gap"].spread == "± 0.50"
    assert {cell.value for cell in rows["MART"]} == {None, 0}
