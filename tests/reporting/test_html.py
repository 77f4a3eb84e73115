import re
import time
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from bench.attacks.outcome import PackedBits
from bench.registry import METHODS
from bench.reporting.formats.html import render_html
from bench.reporting.leaderboard import leaderboards
from bench.reporting.table import tables
from bench.storage.schema import CheckpointRow, EpochRow, OutcomeRow, ProtocolRow, RunRow
from bench.utils.files import canonical_json

from .conftest import protocol_of
from .html_report import ARABIC, ENVIRONMENT, HOSTILE, boards, resolved, text, tree

__all__ = ["boards", "text", "tree"]


# --- structure -------------------------------------------------------------------------------------------------------


def test_the_structure(tree, boards):
    assert tree.open == []
    assert tree.all("html") == [{"lang": "en"}]
    for landmark in ("main", "footer", "h1"):
        assert len(tree.all(landmark)) == 1
    assert len(tree.all("h2")) == len(boards[1]) == 2
    ids = Counter(attributes["id"] for _, attributes in tree.tags if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {attributes["href"] for attributes in tree.all("a")}
    assert targets
    assert {target[1:] for target in targets} <= ids.keys()
    for attributes in tree.all("nav") + [found for found in tree.all("div") if found.get("role") == "region"]:
        assert attributes["aria-label"]
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_table_is_there_without_scripts(boards, tree):
    """Every cell and note that the other formats show, in their order; the papers' figures too."""
    _, (board, _), _ = boards
    flat = re.sub(r"\s+", " ", " ".join(data for _, data in tree.texts))
    position = flat.index(f"Protocol {board.fingerprint[:12]}")
    assert len(tables(board)) == 2
    for shown in tables(board):
        for cell in [str(cell) for row in shown.rows for cell in row]:
            position = flat.index(cell.replace("-", "−") if re.match(r"-\d", cell) else cell, position)
        for note in shown.notes:
            position = flat.index(note, position)


def test_the_papers_figures(tree, boards):
    """A difference, a reason why there is none, and a hostile source as text; nothing of it unless asked for."""
    store, found, _ = boards
    cells = tree.text("td")
    assert cells.count(HOSTILE) == sum(len(board.published) for board in found) == 6
    assert {"+0.50", "−5.00"} <= set(cells)
    assert "threat l2-127.5, ours linf-8; at best: selected on test images, ours has no such checkpoint" in cells
    assert tree.text("h3").count("Papers' figures and ours") == 2
    plain = render_html(store, leaderboards(store))
    assert 'class="papers"' not in plain
    assert "-papers" not in plain


def test_methods_and_their_sources(tree, boards):
    texts = " ".join(data for _, data in tree.texts)
    assert "Forgets part of the later layers" in texts
    assert "Ramkumar, Arani, Zonooz, ICLR 2024." in re.sub(r"\s+", " ", texts)
    assert "This method is not installed here" in texts
    assert "The runs used version 99 of this method; installed here, and described, is 1." in texts


def test_protocol_and_runs(tree, boards):
    details = tree.text("dd")
    for value in ("sgd, rate 0.1, momentum 0.9, weight decay 0.0005, nesterov no", "norm linf, radius 8/255"):
        assert value in details
    assert (
        "clean; pgd, steps 20, step size 2/255, random start yes; autoattack, images 100, version standard"
        in " ".join(details)
    )
    for board in boards[1]:
        assert canonical_json(board.protocol) in tree.text("pre")
    assert {"CPU: A & B <Processor>", "3.12.1", "2.6.0", "0123456789ab with changes", "tiny"} <= set(details)
    assert "secret-host" not in boards[2]


def test_the_figures(tree, boards):
    drawn = [attributes for attributes in tree.all("svg") if attributes.get("role") == "img"]
    assert len(drawn) == 5 * len(boards[1])
    series = [attributes for _, attributes in tree.tags if "series" in attributes.get("class", "").split()]
    rows = [int(attributes["data-row"]) for attributes in tree.all("tr") if "data-row" in attributes]
    assert {int(attributes["data-row"]) for attributes in series} <= set(rows)
    assert rows == [
        index for board in sorted(boards[1], key=lambda board: board.title) for index in range(len(board.rows))
    ]


def test_a_protocol_without_a_figure(make_run, store):
    store.ingest(make_run({}, status="diverged"))
    text = render_html(store, leaderboards(store))
    assert "nothing to draw" in text
    assert "<svg" not in text


# --- safety ----------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_nothing_hostile_is_code(tree, text):
    for tag, attributes in tree.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert value.startswith(("#", "data:,")) or tag == "a"
                assert not value.startswith("javascript:")
    style = tree.text("style")
    assert not re.search(r"url\((?!#)|@import", " ".join(style))
    assert len(tree.all("script")) == 1
    assert "alert(1)" not in " ".join(tree.text("script"))
    assert HOSTILE in tree.text("bdi")
    assert ARABIC in tree.text("bdi")
    assert "{{ 7 * 7 }}" in text


def test_the_policy_allows_these_scripts_and_no_others(tree):
    (policy,) = [found["content"] for found in tree.all("meta") if "http-equiv" in found]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert rules["script-src"].count("sha256-") == 1
    assert "unsafe" not in rules["script-src"]


def test_the_wheel_holds_the_assets(tmp_path):
    """What the report is made of has to be where the package is installed."""
    from hatchling.builders.wheel import WheelBuilder

    project = Path(__file__).parents[2]  # the sources, wherever the package that is tested is installed
    inside = {file.distribution_path for file in WheelBuilder(str(project)).recurse_included_files()}
    assets = (project / "bench").glob("reporting/*/assets/*")
    files = {str(path.relative_to(project)) for path in assets}
    assert len(files) >= 5
    assert files <= inside


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_runs_are_a_small_file(store):
    """Eight protocols, 25 rows of five seeds each, sixty epochs: every figure of a few protocols, of others none."""
    random = np.random.default_rng(0)
    names, epochs, images = METHODS.names(), 60, 200
    for radius in range(1, 9):
        protocol = protocol_of(threat={"norm": "linf", "eps": radius / 255}, training={"epochs": epochs})
        methods = [resolved(protocol, name) for name in names]
        rows = [methods[index % len(methods)] for index in range(25)]
        with Session(store._writing) as session, session.begin():
            session.add(ProtocolRow(fingerprint=protocol.fingerprint, content=protocol.identity()))
            session.flush()
            curve = []
            for (index, row), seed in product(enumerate(rows), range(5)):
                run = _run(f"{radius}-{index}-{seed}", row, protocol, seed, index, random, images)
                session.add(run)
                accuracies = random.random((epochs, 4)) / 10 + 0.3
                curve += [
                    {
                        "run": run.fingerprint, "epoch": epoch, "lr": 0.1, "train_loss": 1.0, "train_seconds": 1.0,
                        "seconds": 1.0, "train_robust": values[0], "validation_clean": values[1],
                        "validation_robust": values[1], "test_clean": values[2], "test_robust": values[3],
                    }
                    for epoch, values in enumerate(accuracies.tolist())
                ]  # fmt: skip
            session.flush()
            session.execute(insert(EpochRow), curve)
    boards = leaderboards(store)
    assert [len(board.rows) for board in boards] == [25] * 8
    started = time.process_time()
    text = render_html(store, boards)
    print(f"{len(text.encode()) / 1e6:.2f} MB in {time.process_time() - started:.1f} s")
    assert len(text.encode()) < 3e6
    assert 4 <= text.count('role="img"') < 4 * 8
    assert text.count("a report on this protocol alone holds them") == 8 - text.count('role="img"') // 5
    assert "Shown are 12 of 25 rows" in text


def _run(name, row, protocol, seed, index, random, images) -> RunRow:
    run = RunRow(
        fingerprint=name, training_fingerprint="", protocol_fingerprint=protocol.fingerprint, suite="tiny",
        method=row["method"], version=1, label=f"{row['label']} {index}", params={**row["params"], "n": index},
        custom=False, origin="paper", final_is_best=False, seed=seed, status="finished", classes=10,
        environment=ENVIRONMENT, folder=name, epochs=100, train_seconds=3600.0, track_seconds=1.0,
        evaluation_seconds=60.0, train_pflop=1.0 + random.random(),
    )  # fmt: skip
    for checkpoint in ("best", "last"):
        run.checkpoints[checkpoint] = CheckpointRow(name=checkpoint, epoch=50, sha256=name, file="x")
        for final in protocol.identity()["evaluation"]["final"]:
            bits = random.random(images) < 0.5
            run.checkpoints[checkpoint].outcomes[final["name"]] = OutcomeRow(
                key=final["name"], attack=final["name"], title=final["name"], identity=final, count=images,
                right=int(bits.sum()), accuracy=float(bits.mean()), correct=PackedBits.pack(bits).data,
                    seconds=1.0, detail={},
            )  # fmt: skip
    return run
