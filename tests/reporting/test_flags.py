"""Why an attack may flatter a network: what counts as a flag, and how every format shows it."""

import csv
import io
import json
import re
from types import SimpleNamespace

import jsonschema
import pytest
from rich.console import Console

from bench.config.cell import EVALUATED
from bench.reporting.flags import FAR_ABOVE, Flag, far_above
from bench.reporting.formats.csv import render_csv
from bench.reporting.formats.html import render_html
from bench.reporting.formats.json import render_json
from bench.reporting.formats.latex import render_latex
from bench.reporting.formats.markdown import render_markdown
from bench.reporting.formats.terminal import render_terminal, render_text
from bench.reporting.leaderboard import leaderboards
from bench.reporting.published import read_published
from bench.reporting.table import table

from .conftest import protocol_of
from .test_data_formats import schema

SQUARE = "square broke 1.0 % after the white-box attacks"


@pytest.fixture
def board(store):
    def board():
        (found,) = leaderboards(store)
        return found

    return board


# --- what is one -----------------------------------------------------------------------------------------------------


def outcome(right: int, count: int):
    return SimpleNamespace(count=count, accuracy=right / count)


@pytest.mark.parametrize(
    ("pgd", "autoattack", "doubtful"),
    [
        ((600, 1000), (500, 1000), False),  # ten points
        ((601, 1000), (500, 1000), True),
        ((80, 100), (70, 100), False),  # 0.8 - 0.7 is a little more than 0.1
        # 2 sqrt(0.5 0.5 / 100 * 100 / 199) = 0.0709 for the luck of the subset
        ((100, 200), (33, 100), False),
        ((100, 200), (32, 100), True),
        # AutoAttack on all: 2 sqrt(0.3 0.7 / 100 * 100 / 199) = 0.0650
        ((46, 100), (60, 200), False),
        ((47, 100), (60, 200), True),
        ((1, 1), (1, 1), False),
        ((30, 100), (60, 100), False),  # PGD may break more, where AutoAttack is cut down to one part
    ],
)
def test_far_above(pgd, autoattack, doubtful):
    assert far_above(outcome(*pgd), outcome(*autoattack)) is doubtful


def test_the_constant_tells_published_networks_apart():
    gaps: dict[str, list[float]] = {}
    for line in read_published():
        for side in (line.best, line.last):
            if "pgd" in side and "autoattack" in side:
                gaps.setdefault(line.method, []).append(side["pgd"] - side["autoattack"])
    assert 0.09 < max(gaps["pgd_at"]) < FAR_ABOVE
    above = {method for method, values in gaps.items() if max(values) > FAR_ABOVE}
    assert above == {"dom_re", "dom_augmix", "dom_randaugment", "elle", "ssat"}


def test_every_seed_and_checkpoint_is_looked_at(take, board):
    take({"best": (150, 100, 50), "last": (160, 90, 20)}, seed=0)
    take({"best": (150, 100, 52), "last": (160, 90, 40)}, seed=1, doubts={"best": [SQUARE, "no gradient at 3 images"]})
    take({"best": (150, 100, 5), "last": (160, 10, 4)}, seed=2, doubts={"last": [SQUARE]})  # has collapsed
    take(method="sound")
    doubtful, sound = board().rows
    assert doubtful.seeds == (0, 1)
    assert sound.flags == ()
    assert doubtful.flags == (
        Flag(0, "last", 2, "gradients may be misleading: PGD-20 accuracy 45.0 %, AutoAttack 20.0 %"),
        Flag(1, "best", 2, SQUARE),
        Flag(1, "best", 2, "no gradient at 3 images"),
        Flag(2, "best", 2, "gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 5.0 %"),
        Flag(2, "last", 2, SQUARE),
    )


def test_the_one_checkpoint_of_a_network_from_elsewhere_is_in_doubt_once(take, board):
    take({"last": (150, 100, 20)}, method=EVALUATED, label="ours", doubts={"last": [SQUARE]})
    (row,) = board().rows
    assert [(flag.checkpoint, flag.reason) for flag in row.flags] == [
        ("last", SQUARE), ("last", "gradients may be misleading: PGD-20 accuracy 50.0 %, AutoAttack 20.0 %"),
    ]  # fmt: skip


PGD_ALONE = protocol_of(evaluation={"final": ["clean", {"name": "pgd", "steps": 20}]})
MASKED = "128 of 128 robust images checked have no gradient where it starts"


def test_pgd_is_far_above_autoattack_alone(take, board):
    final = ["clean", {"name": "pgd", "steps": 20}, {"name": "cw", "steps": 20}]
    take({"best": (150, 100, 20), "last": (150, 100, 20)}, protocol=protocol_of(evaluation={"final": final}))
    assert board().rows[0].flags == ()


def test_every_attack_may_be_flagged(take, board):
    take({"best": (150, 140), "last": (150, 140)}, protocol=PGD_ALONE, pgd_doubts=[MASKED])
    assert board().rows[0].flags == (Flag(0, "best", 1, MASKED), Flag(0, "last", 1, MASKED))
    assert f"Flags, figures in doubt: PGD-20 may overestimate PGD_AT: seed 0 at best, {MASKED}" in render_text(
        [board()]
    )


@pytest.mark.parametrize(
    ("right", "flagged"),
    [
        ((150, 149), False),
        ((150, 150), True),
        ((150, 151), True),
        ((99, 99), False),  # too few to expect that some are broken
        ((20, 20), False),  # 10 % is guessing: one class for all images, which no attack changes
    ],
)
def test_accuracy_under_attack_should_be_below_the_clean_one(take, board, right, flagged):
    take({"last": right}, protocol=PGD_ALONE, method=EVALUATED, label="ours")
    shares = [f"{100 * count / 200:.1f} %" for count in right]
    reason = f"its accuracy of {shares[1]} is not below the clean one of {shares[0]}"
    assert [flag.reason for flag in board().rows[0].flags] == [reason] * flagged


def test_runs_of_older_versions_were_not_checked(take, board):
    take({"best": (150, 140), "last": (150, 140)}, protocol=PGD_ALONE, pgd_doubts=None)
    assert "Older versions did not check PGD-20 for masked gradients: all rows." in render_text([board()])
    take({"best": (150, 120), "last": (150, 120)}, protocol=PGD_ALONE, method="fomo")
    assert [(row.label, row.unchecked) for row in board().rows] == [("PGD_AT", (1,)), ("FOMO", ())]
    assert "Older versions did not check PGD-20 for masked gradients: PGD_AT." in render_text([board()])
    lines = csv.DictReader(io.StringIO(render_csv([board()]), newline=""))
    assert [line["doubts"] for line in lines] == ["[]", "", "[]", "[]"]
    jsonschema.validate(json.loads(render_json([board()])), schema())


BOUND = "is an upper bound of robust accuracy: it counts what this attack did not find."


@pytest.mark.parametrize(
    ("final", "note"),
    [
        (["clean", {"name": "pgd", "steps": 20}], f"Accuracy under PGD-20 {BOUND}"),
        (["clean", {"name": "autoattack", "attacks": ["apgd-ce"]}], f"Accuracy under AutoAttack (apgd-ce) {BOUND}"),
        (["clean"], "Ranked by clean accuracy, without an attack: the ranks say nothing about robustness."),
        (["clean", "autoattack"], None),
    ],
)
def test_a_board_says_what_its_ranking_is_worth(take, store, board, final, note):
    figures = (150, 100)[: len(final)]
    take({"best": figures, "last": figures}, protocol=protocol_of(evaluation={"final": final}))
    notes = [line for line in table(board()).notes if "upper bound" in line or "Ranked by" in line]
    assert [line.startswith(note) for line in notes] == ([True] if note else [])
    texts = [render_text([board()]), render_markdown(board()), render_latex([board()])]
    if final == ["clean"]:  # the fewest figures to draw
        texts.append(render_html(store, [board()]))
    for text in texts:
        assert ("upper bound" in text or "say nothing about robustness" in text) == bool(note)


# --- how it is shown -------------------------------------------------------------------------------------------------


@pytest.fixture
def doubted(take, board):
    take({"best": (150, 100, 60), "last": (160, 90, 40)}, doubts={"best": [SQUARE], "last": []})
    take(method="fomo")
    take({}, method="mart", status="diverged", done={"epoch": 3})
    return board()


NOTE = f"Flags, figures in doubt: AutoAttack may overestimate PGD_AT: seed 0 at best, {SQUARE}."


def test_a_column_only_where_there_are_doubts(doubted, take, store):
    shown = table(doubted)
    (index,) = [place for place, column in enumerate(shown.columns) if column.title == "Flags"]
    assert [str(row[index]) for row in shown.rows] == ["1", "0", "–"]
    assert shown.notes.count(NOTE) == 1
    take(protocol=protocol_of(training={"epochs": 9}), doubts={"best": [], "last": []})
    (plain,) = [board for board in leaderboards(store) if "9 epochs" in board.title]
    assert all(column.title != "Flags" for column in table(plain).columns)
    assert not any("Flags" in note for note in table(plain).notes)


def test_formats_for_people(doubted, store):
    assert NOTE in render_text([doubted])
    narrow = Console(file=io.StringIO(), width=80)
    render_terminal(doubted, narrow)
    lines = narrow.file.getvalue().splitlines()
    (heading,) = [line for line in lines if "Flags" in line and "overestimate" not in line]
    assert heading.split()[-3:] == ["Seeds", "Flags", "Parameters"]
    markdown = render_markdown(doubted)
    assert "| AutoAttack best, 95 % | Seeds | Flags | Parameters |" in markdown
    assert f"- {NOTE}" in markdown
    latex = render_latex([doubted])
    assert "& Seeds & Flags & Parameters &" in latex
    assert NOTE.replace("%", r"\%").replace("PGD_AT", r"PGD\_AT") in latex
    html = render_html(store, [doubted])
    assert re.search(r'data-column="[^>]*>Flags</th>', html)
    assert re.search(r'(<td class="text" data-value="1">1</td>\s*){2}', html)  # seeds, doubts
    assert f"<li>{NOTE}</li>" in html


def test_formats_for_programs(doubted):
    document = json.loads(render_json([doubted]))
    jsonschema.validate(document, schema())
    first, second, _ = document["boards"][0]["rows"]
    assert first["doubts"] == [{"seed": 0, "checkpoint": "best", "attack": 2, "reason": SQUARE}]
    assert second["doubts"] == []
    lines = list(csv.DictReader(io.StringIO(render_csv([doubted]), newline="")))
    in_doubt = [(line["label"], line["attack"], json.loads(line["doubts"])) for line in lines if line["doubts"] != "[]"]
    assert in_doubt == [("PGD_AT", "autoattack", [{"seed": 0, "checkpoint": "best", "reason": SQUARE}])]


# --- attacks that are nearly the same --------------------------------------------------------------------------------


def test_an_attack_is_not_taken_for_one_with_more_settings(take, board):
    """Their outcomes lie in the order of their names; each must be found by the settings that it lacks, too."""
    final = [
        {"name": "pgd", "steps": 20, "restarts": 5},
        {"name": "pgd", "steps": 20, "iterate": "worst"},
        {"name": "pgd", "steps": 20},
        {"name": "autoattack", "attacks": ["apgd-ce"]},
        {"name": "autoattack"},
    ]
    rights = (90, 80, 110, 70, 60)
    take({"best": rights, "last": rights}, protocol=protocol_of(evaluation={"final": final}))
    (row,) = (found := board()).rows
    assert [figures.best.mean for figures in row.figures] == [right / 200 for right in rights]
    titles = ["PGD-20x5", "PGD-20 (worst)", "PGD-20", "AutoAttack (apgd-ce)", "AutoAttack"]
    assert [attack.title for attack in found.attacks] == titles


def test_a_smaller_batch_for_want_of_memory_is_a_variant(take, board):
    take(seed=0, reduced=125)
    found = board()
    assert [attack.variants for attack in found.attacks] == [(), (), ("reduced_batch_size=125",)]
    assert (
        "AutoAttack deviates from the protocol because memory was short: reduced_batch_size=125." in table(found).notes
    )
    take(seed=1)
    found = board()
    assert found.attacks[2].variants == ("as the protocol has it", "reduced_batch_size=125")
    assert (
        "AutoAttack differs between runs, compare with care: as the protocol has it; reduced_batch_size=125."
        in table(found).notes
    )
