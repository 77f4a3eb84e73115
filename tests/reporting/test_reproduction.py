import dataclasses
import shlex

import pytest
import yaml

from bench.config.suite import load_suite, select_cells, shipped_suites
from bench.reporting.leaderboard import leaderboards
from bench.reporting.reproduction import reproduction, seeds_of

from .conftest import protocol_of
from .html_report import ARABIC, HOSTILE, boards, resolved

__all__ = ["boards"]


def rerun(board, tmp_path):
    """Return the fingerprints of the cells that each row's command selects from the suite."""
    again = reproduction(board, 2)
    (tmp_path / again.file).write_text(again.suite, encoding="utf-8")
    loaded = load_suite(str(tmp_path / again.file))
    assert again.exact
    assert loaded.suite.protocol.fingerprint == board.fingerprint
    selected = []
    for command in again.commands:
        run, verb, file, methods, names, seeds, numbers = shlex.split(command)
        assert (run, verb, file, methods, seeds) == ("bench", "run", again.file, "--methods", "--seeds")
        cells = select_cells(loaded.cells, names.split(","), map(int, numbers.split(",")))
        selected.append({cell.fingerprint for cell in cells})
    return loaded, selected


def test_a_row_is_run_again_as_it_was(boards, tmp_path):
    store, (board, _), _ = boards
    known = [row for row in board.rows if row.label not in (HOSTILE, ARABIC)]
    assert len(known) == 5
    runs = store.runs(protocol=board.fingerprint)
    stored = [
        {
            run.fingerprint
            for run in runs
            if (run.method, run.params, run.version) == (row.method, row.params, row.version)
        }
        for row in known
    ]
    loaded, selected = rerun(dataclasses.replace(board, rows=tuple(known)), tmp_path)
    assert selected == stored
    assert loaded.suite.execution.threads == 2
    assert [seeds_of(row) for row in known if row.method == "mart"] == [[0, 1]]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in shipped_suites() if "/" not in name),
        *("papers/zhang2019_cifar10", "papers/rice2020_cifar10_l2_penalty_5e_4"),
    ],
)
def test_shipped_suites_come_back(name, make_run, store, tmp_path):
    cells = load_suite(name).cells
    for cell in cells:
        method = cell.method.model_dump(exclude={"name"})
        options = {"method": cell.method.name, "protocol": cell.protocol, "seed": cell.seed, **method}
        store.ingest(make_run({}, status="diverged", **options))
    (board,) = leaderboards(store)
    _, selected = rerun(board, tmp_path)
    assert set().union(*selected) == {cell.fingerprint for cell in cells}
    assert sum(map(len, selected)) == len(cells)


def test_labels_that_a_suite_or_a_command_cannot_hold(make_run, store, tmp_path):
    """Two rows of one method have to be told apart by label; others by the method's name."""
    protocol = protocol_of()
    for number, label in enumerate(["a, b", "sat", "x" * 81, "\u202e\x07bell", "$(x) 'q'", "fomo"]):
        row = resolved(protocol, "fomo", params={"fraction": 0.01 + number / 100})
        store.ingest(make_run(**{**row, "label": label}, seed=number))
    store.ingest(make_run(**resolved(protocol, "sat"), seed=9))
    (board,) = leaderboards(store)
    _, selected = rerun(board, tmp_path)
    assert [len(cells) for cells in selected] == [1] * 7
    assert set().union(*selected) == {run.fingerprint for run in store.runs()}


def test_a_protocol_that_this_package_reads_differently(boards):
    _, (board, _), _ = boards
    assert not reproduction(dataclasses.replace(board, protocol={**board.protocol, "later": 1})).exact
    shorter = {key: value for key, value in board.protocol.items() if key != "evaluation"}
    shorter["evaluation"] = {"track": board.protocol["evaluation"]["track"]}
    again = reproduction(dataclasses.replace(board, protocol=shorter))
    assert not again.exact
    assert yaml.safe_load(again.suite)["evaluation"] == shorter["evaluation"]
