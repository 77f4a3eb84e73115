import pytest

from bench.errors import BenchError
from bench.reporting.leaderboard import leaderboards, sort_rows

from .conftest import protocol_of


@pytest.fixture
def boards(make_run, store):
    for method, label, best, last, seconds, pflop in (
        ("a", "Zeta", (100, 150, 60), (90, 90, 20), 7200.0, 3.0),
        ("b", "alpha", (120, 140, 50), (90, 90, 30), 3600.0, None),
        ("c", "Mid", (110, 160, 55), (90, 90, 10), 1800.0, 1.0),
    ):
        done = {"train_seconds": seconds, "train_pflop": pflop, "peak_memory_bytes": int(seconds) * 2**20}
        store.ingest(make_run({"best": best, "last": last}, method=method, label=label, done=done))
    store.ingest(make_run({}, method="d", label="Broken", status="diverged"))
    protocol = protocol_of(evaluation={"final": ["clean"]})
    for method, right in (("a", 100), ("b", 120)):
        store.ingest(make_run({"best": (right,), "last": (90,)}, method=method, protocol=protocol))
    return sorted(leaderboards(store), key=lambda board: len(board.attacks), reverse=True)


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("rank", "acbd"),
        ("autoattack", "acbd"),
        ("clean", "bcad"),
        ("pgd", "cabd"),
        ("last", "bacd"),
        ("gap", "bacd"),
        ("cost", "cbad"),
        ("pflop", "cabd"),
        ("memory", "cbad"),
        ("method", "bdca"),
    ],
)
def test_order(boards, key, order):
    first, _ = sort_rows(boards, key)
    assert [row.method for row in first.rows] == list(order)
    before = {row.method: row for row in boards[0].rows}
    assert all(row == before[row.method] for row in first.rows), "ranks stay what they are"


def test_a_board_without_the_attack_stays_as_it_is(boards):
    assert [[row.method for row in board.rows] for board in sort_rows(boards, "pgd")][1] == ["b", "a"]


def test_unknown_keys(boards):
    with pytest.raises(BenchError, match="sorted by 'autoatack'; did you mean 'autoattack'"):
        sort_rows(boards, "autoatack")
    with pytest.raises(BenchError, match="known: clean, cost, gap, last, memory, method, pflop, rank"):
        sort_rows(boards[1:], "autoattack")
