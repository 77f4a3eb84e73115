import dataclasses
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy.orm import Session

from bench.attacks.outcome import PackedBits
from bench.config.cell import EVALUATED
from bench.errors import BenchError, NothingMeasured
from bench.reporting import rows
from bench.reporting.labels import differences, disambiguate
from bench.reporting.leaderboard import leaderboards
from bench.reporting.notes import notes
from bench.reporting.table import table
from bench.storage.schema import CheckpointRow, OutcomeRow, ProtocolRow, RunRow

from ..storage.conftest import CODE, DATA
from .conftest import CLASSES, protocol_of


@pytest.fixture
def board(store):
    """Return the only leaderboard."""

    def board(**kwargs):
        (found,) = leaderboards(store, **kwargs)
        return found

    return board


def share(right: int, count: int = 100) -> np.ndarray:
    return np.arange(count) < right


# --- figures ---------------------------------------------------------------------------------------------------------


def test_means_deviations_and_gaps(take, board):
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, seed=0)
    take({"best": (152, 102, 53), "last": (164, 90, 40)}, seed=5)
    take({"best": (154, 104, 59), "last": (168, 93, 46)}, seed=2)
    (row,) = board().rows
    clean, pgd, autoattack = row.figures
    assert row.seeds == (0, 2, 5)
    assert clean.best.values == (0.75, 0.77, 0.76)
    assert clean.best.mean == pytest.approx(0.76)
    assert clean.best.sd == pytest.approx(0.01)
    assert clean.gap.values == pytest.approx((-0.05, -0.07, -0.06))
    assert pgd.last.mean == pytest.approx(0.455)
    assert pgd.last.sd == pytest.approx(math.sqrt(0.005**2 + 0.01**2 + 0.005**2) / math.sqrt(2))
    assert autoattack.best.mean == pytest.approx(0.54)
    assert autoattack.gap.values == pytest.approx((0.10, 0.13, 0.13))
    assert autoattack.gap.mean == pytest.approx(0.12)
    assert autoattack.gap.sd == pytest.approx(math.sqrt(0.02**2 + 0.01**2 + 0.01**2) / math.sqrt(2))
    half = 4.302653 * autoattack.best.sd / math.sqrt(3)
    assert autoattack.best.interval == pytest.approx((0.54 - half, 0.54 + half))
    assert (row.rank, row.label, row.method, row.version, row.params) == (1, "PGD_AT", "pgd_at", 1, {})


def test_one_seed_has_an_interval_over_images(take, board):
    take({"best": (150, 100, 50), "last": (160, 90, 40)})
    autoattack = board().rows[0].figures[2]
    assert (autoattack.best.sd, autoattack.best.covers) == (None, "images")
    assert autoattack.best.interval == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert autoattack.gap.interval == pytest.approx((0.1 - 1.959964 * 0.03, 0.1 + 1.959964 * 0.03), abs=1e-6)


def test_the_protocol_and_its_attacks(take, board):
    take()
    found = board()
    assert found.title == f"digits, small_cnn, Linf 8/255, 2 epochs, protocol {found.fingerprint[:12]}"
    assert [(attack.title, attack.images, attack.balanced_subset) for attack in found.attacks] == [
        ("Clean", 200, False), ("PGD-20", 200, False), ("AutoAttack", 100, True),
    ]  # fmt: skip
    assert found.ranked_by == 2
    assert found.selection == "validation"
    assert json.loads(json.dumps(dataclasses.asdict(found)))["rows"][0]["seeds"] == [0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threat": {"norm": "l2", "eps": "128/255"}, "training": {"epochs": 1}}, "L2 128/255, 1 epoch,"),
        ({"threat": {"norm": "linf", "eps": 0.15}}, "Linf 0.15, 2 epochs"),
        ({"threat": {"norm": "l2", "eps": 1}}, "L2 1, 2 epochs"),
    ],
)
def test_titles(take, board, changes, words):
    take(protocol=protocol_of(**changes))
    assert words in board().title


def test_without_autoattack_the_last_attack_ranks(take, board):
    final = [{"name": "pgd", "steps": 7}, "clean"]
    protocol = protocol_of(evaluation={"final": final})
    take({"best": (120, 100), "last": (120, 190)}, protocol=protocol, method="mart")
    take({"best": (20, 190), "last": (120, 100)}, protocol=protocol)
    found = board()
    assert found.attacks[found.ranked_by].title == "Clean"
    assert [row.method for row in found.rows] == ["pgd_at", "mart"]


def test_autoattack_ranks_wherever_it_stands(take, board):
    protocol = protocol_of(evaluation={"final": [{"name": "autoattack", "images": 100}, "clean"]})
    take({"best": (50, 100), "last": (50, 100)}, protocol=protocol)
    assert board().ranked_by == 0


def test_attacks_of_the_same_kind_are_kept_apart(take, board):
    final = [{"name": "pgd", "step_size": 0.01}, {"name": "pgd", "step_size": 0.02}, {"name": "pgd", "images": 50}]
    protocol = protocol_of(evaluation={"final": final})
    take({"best": (100, 120, 30), "last": (90, 80, 20)}, protocol=protocol)
    found = board()
    assert [attack.title for attack in found.attacks] == [
        "PGD-20 (step_size=0.01)", "PGD-20 (step_size=0.02)", "PGD-20 (images=50, step_size=0.007843)",
    ]  # fmt: skip
    assert [figures.best.mean for figures in found.rows[0].figures] == [0.5, 0.6, 0.6]
    # A subset and the whole test set, otherwise the same: the settings of one are part of the other's.
    protocol = protocol_of(evaluation={"final": [{"name": "pgd", "images": 50}, "pgd"]})
    take({"best": (30, 100), "last": (20, 90)}, protocol=protocol, suite="other")
    found = board(protocol=protocol.fingerprint)
    assert [(attack.images, attack.balanced_subset) for attack in found.attacks] == [(50, True), (200, False)]
    assert [figures.best.mean for figures in found.rows[0].figures] == [0.6, 0.5]


def test_selection_by_the_test_images(take, board):
    right = {"best": (150, 100, 50), "last": (160, 90, 40), "best_on_test": (151, 104, 55)}
    take(right, final_is_best=True)
    (row,) = board().rows
    assert row.gap_by_construction
    (oracle,) = board(selection="test").rows
    assert oracle.figures[2].best.mean == 0.55
    assert oracle.figures[2].gap.mean == pytest.approx(0.15)
    assert not oracle.gap_by_construction  # the oracle may well do better than the method's own choice


def test_a_protocol_without_held_out_images_is_marked(take, board):
    protocol = protocol_of(dataset={"name": "digits", "validation": "none"})
    right = {"best": (150, 100, 50), "last": (160, 90, 40), "best_on_test": (150, 100, 50)}
    take(right, protocol=protocol, final_is_best=True)
    found = board()
    assert (found.selection, found.rows[0].figures[2].best.mean) == ("test", 0.5)
    assert found.rows[0].gap_by_construction
    assert ", best selected on test images, protocol" in found.title
    assert "PGD-10 accuracy on the test images themselves, as this protocol says" in notes(found)[0]


def test_an_attack_that_changed_under_the_same_protocol(take, board):
    take(seed=0)
    assert [attack.variants for attack in board().attacks] == [(), (), ()]
    take(seed=1, package="2.0")
    assert [attack.variants for attack in board().attacks] == [(), *[("package=1.0", "package=2.0")] * 2]


# --- which runs make a row -------------------------------------------------------------------------------------------


def test_rows_are_methods_with_their_version_and_parameters(take, board):
    for seed in (0, 1):
        take(method="fomo", params={"fraction": 0.05, "other": 1}, seed=seed)
    take(method="fomo", params={"fraction": 0.1, "other": 1}, custom=True, origin="declared")
    take(method="fomo", params={"fraction": 0.05, "other": 1}, version=2)
    take(method="trades", label="TRADES")
    rows = {row.label: row for row in board().rows}
    twins = {"FOMO (fraction=0.05, version=1)", "FOMO (fraction=0.1, version=1)", "FOMO (fraction=0.05, version=2)"}
    assert set(rows) == {"TRADES", *twins}
    assert rows["FOMO (fraction=0.05, version=1)"].seeds == (0, 1)
    assert rows["FOMO (fraction=0.1, version=1)"].custom
    assert rows["FOMO (fraction=0.1, version=1)"].origin == "declared"
    assert not rows["TRADES"].custom


def test_a_label_makes_no_row_of_its_own(take, board):
    take(seed=0, label="old", suite="a")
    take(seed=1, label="new", suite="b")
    take(seed=2, label="new", suite="b", origin="secondary")
    (row,) = board().rows
    assert (row.label, row.seeds, row.origin) == ("new", (0, 1, 2), "secondary")


def test_no_origin(take, board):
    take(origin=None)
    assert board().rows[0].origin is None


def test_protocols_are_never_mixed(take, store):
    folders = [take(protocol=protocol_of(training={"epochs": epochs})) for epochs in (30, 7)]
    boards = leaderboards(store)
    assert [len(board.rows) for board in boards] == [1, 1]
    assert [board.title.split(", ")[3] for board in boards] == ["30 epochs", "7 epochs"]
    wanted = folders[1].cell()["protocol_fingerprint"]
    for prefix in (wanted, wanted[:12]):
        (only,) = leaderboards(store, protocol=prefix)
        assert only.fingerprint == wanted


def test_only_some_methods(take, store, board):
    take()
    take(method="fomo", label="FOMO, s=5%")
    assert [row.method for row in board(methods=["fomo"]).rows] == ["fomo"]
    assert [row.method for row in board(methods=["FOMO, s=5%"]).rows] == ["fomo"]
    assert len(board(methods=["pgd_at", "fomo"]).rows) == 2
    with pytest.raises(BenchError, match="no run of a method 'fommo'; did you mean 'fomo'") as caught:
        leaderboards(store, methods=["pgd_at", "fommo"])
    assert caught.value.exit_code == 2


# --- seeds that are not averaged -------------------------------------------------------------------------------------


def test_diverged_and_unfinished_seeds_are_counted(take, board):
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, seed=0)
    take({"best": (10, 10, 10)}, seed=1, status="diverged", done={"epoch": 7})
    take({}, seed=2, status="diverged")
    take({"best": (10, 10, 10), "last": (10, 10, 10)}, seed=3, status="failed")
    take({}, seed=4, status=None)
    (row,) = board().rows
    assert row.seeds == (0,)
    assert row.diverged == {1: 7, 2: None}
    assert row.unfinished == (3, 4)
    assert row.collapsed == row.collapsed_at_last == ()


def test_a_run_without_all_outcomes_is_not_averaged(make_run, store, board):
    folder = make_run(seed=5)
    folder.outcome_path("last", "pgd-1").unlink()
    store.ingest(folder)
    store.ingest(make_run(seed=6))
    (row,) = board().rows
    assert (row.seeds, row.unfinished) == ((6,), (5,))


@pytest.mark.parametrize(
    ("right", "classes", "collapsed"),
    [
        (10, 10, True),  # guessing
        (16, 10, True),  # 2 sqrt(0.1 0.9 / 100) = 0.06 above
        (17, 10, False),
        (1, None, True),  # next to nothing, whatever the number of classes
        (2, None, False),
        (1, 1000, True),
        (2, 1000, False),
    ],
)
def test_what_a_collapse_is(take, board, right, classes, collapsed):
    take({"best": (150, 100, 50), "last": (150, 100, 40)}, done={"classes": classes}, seed=0)
    take({"best": (150, 100, right), "last": (150, 100, 40)}, done={"classes": classes}, seed=1)
    (row,) = board().rows
    assert row.seeds == ((0,) if collapsed else (0, 1))
    assert [seed.seed for seed in row.collapsed] == ([1] if collapsed else [])
    assert row.figures[2].best.mean == pytest.approx(0.5 if collapsed else (0.5 + right / 100) / 2)


def test_a_collapsed_seed_is_shown(take, board):
    for seed, right in enumerate((48, 46, 3)):
        take({"best": (150, 100, right), "last": (150, 100, right - 1)}, seed=seed)
    (row,) = board().rows
    assert row.figures[2].best.mean == pytest.approx(0.47)
    (seed,) = row.collapsed
    assert (seed.seed, seed.best, seed.last) == (2, 0.03, 0.02)
    assert row.collapsed_at_last == ()


def test_a_seed_that_fell_is_averaged_and_shown(take, board):
    take({"best": (150, 100, 45), "last": (150, 100, 0)}, seed=0)
    take({"best": (150, 100, 45), "last": (150, 100, 40)}, seed=1)
    (row,) = board().rows
    assert row.figures[2].last.mean == pytest.approx(0.2)
    assert [(seed.seed, seed.best, seed.last) for seed in row.collapsed_at_last] == [(0, 0.45, 0)]
    assert row.collapsed == ()


def test_a_row_without_a_seed_to_average_comes_last_without_rank(take, board):
    take({"best": (150, 100, 5), "last": (150, 100, 5)}, method="a", seed=0)
    take({}, method="b", status="diverged")
    take({"best": (150, 100, 30), "last": (150, 100, 30)}, method="c")
    found = board()
    assert [(row.method, row.rank, row.seeds, row.figures) for row in found.rows[1:]] == [
        ("a", None, (), ()), ("b", None, (), ()),
    ]  # fmt: skip
    assert (found.rows[0].method, found.rows[0].rank) == ("c", 1)


def test_diverged_runs_alone_are_a_result(take, board):
    take({}, status="diverged", done={"epoch": 1})
    found = board()
    assert [row.diverged for row in found.rows] == [{0: 1}]
    assert [(attack.title, attack.images) for attack in found.attacks] == [("clean", 0), ("pgd", 0), ("autoattack", 0)]
    assert found.hardware == {}


# --- cost and hardware -----------------------------------------------------------------------------------------------


def test_rows_of_different_or_unknown_code_are_named(take, board):
    older, unknown = {"code": "0" * 64}, {"code": None, "data": None}
    take(method="a")
    assert not any("code" in note for note in table(board()).notes)
    take(method="b", seed=0)
    take(method="b", seed=1, environment=older)
    take(method="c", environment=unknown)
    found = board()
    assert {row.label: {"code": row.recorded["code"]} for row in found.rows} == {
        "A": {"code": {0: CODE}}, "B": {"code": {0: CODE, 1: "0" * 64}}, "C": {"code": {0: None}}
    }  # fmt: skip
    notes = "\n".join(table(found).notes)
    assert (
        f"Rows were measured with different code, compare with care: {CODE[:12]}: A, B (seed 0); "
        f"{'0' * 12}: B (seed 1)."
    ) in notes
    assert "Older versions did not record the code, the training images or the test images: unknown, and" in notes
    assert "may differ, for C." in notes


def test_rows_that_were_compiled_for_training_are_named(take, board):
    take(method="a")
    take(method=EVALUATED, label="Theirs", environment={"data": {"test": DATA["test"]}})
    assert not any("kernels" in note for note in table(board()).notes)
    take(method="b", environment={"kernels": "compiled"})
    assert (
        "Rows were measured with different kernels in training, compare with care: eager: A; compiled: B."
    ) in table(board()).notes


def test_rows_of_different_plugins_are_named(take, board):
    mine, other = ({"plugins": {"method mine": digest * 64}} for digest in "ab")
    take(method="a")
    take(method="mine", seed=0, environment=mine)
    assert not any("plug-in" in note for note in table(board()).notes)
    take(method="mine", seed=1, environment=other)
    notes = "\n".join(table(board()).notes)
    assert "different sources of the plug-in for the method mine, compare with care: " in notes
    assert "aaaaaaaaaaaa: MINE (seed 0); bbbbbbbbbbbb: MINE (seed 1)." in notes
    assert "Older versions" not in notes


def test_rows_of_different_images_are_named_and_have_no_rank(take, board):
    other = {"data": {"training": "0" * 64, "test": "1" * 64}}
    take({"best": (150, 100, 60), "last": (160, 90, 40)}, method="a")
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, method="b")
    take(method=EVALUATED, label="Theirs", environment={"data": {"test": DATA["test"]}})
    found = board()
    assert [row.rank for row in found.rows if row.label in {"A", "B"}] == [1, 2]
    assert "images" not in "".join(note for note in table(found).notes if "Rows were measured" in note)
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, method="b", seed=1, environment=other)
    found = board()
    assert [(row.rank, row.rank_interval) for row in found.rows] == [(None, None)] * 3
    assert [row.label for row in found.rows][:2] == ["A", "B"]
    notes = "\n".join(table(found).notes)
    own = DATA["training"][:12]
    assert f"Rows were measured with different training images, so no row has a rank: {own}: A, B (seed 0);" in notes
    assert f"different test images, so no row has a rank: {DATA['test'][:12]}: A, B (seed 0), Theirs; 1111" in notes
    assert "Older versions" not in notes


def test_costs_by_device(take, board):
    gpu = {"device": "cuda", "gpu": "A GPU", "cpu": "A Processor"}
    take(seed=0, done=CLASSES | {"train_seconds": 7200.0}, environment=gpu)
    take(seed=1, environment=gpu)
    take(seed=2, done=CLASSES | {"track_seconds": None})
    take(seed=3, done=CLASSES | {"train_seconds": None})
    take(seed=4, status="failed", done={"train_seconds": 1e9})
    found = board()
    costs = [(cost.device, cost.training, cost.evaluation) for cost in found.rows[0].costs]
    assert costs == [("CPU", 1.0, 0.4), ("GPU", 1.5, 0.5)]
    assert found.hardware == {"A GPU": 2, "A Processor": 2}
    assert [(cost.hardware, cost.pflop, cost.memory) for cost in found.rows[0].costs] == [
        ("A Processor", 1.5, 5 * 2**30), ("A GPU", 1.5, 5 * 2**30),
    ]  # fmt: skip


def test_costs_on_two_devices_of_a_kind_are_kept_apart(take, board):
    """A mean over two kinds of GPU says nothing; runs of older versions state neither work nor memory."""
    for seed, (gpu, done) in enumerate(
        (
            ("B GPU", {"train_seconds": 7200.0, "train_pflop": 3.0, "peak_memory_bytes": 300 * 2**20}),
            ("A GPU", {"train_pflop": None, "peak_memory_bytes": None}),
            ("B GPU", {"train_pflop": None, "peak_memory_bytes": 200 * 2**20}),
        )
    ):
        take(seed=seed, done=CLASSES | done, environment={"device": "cuda", "gpu": gpu})
    found = board()
    assert [(cost.hardware, cost.training, cost.pflop, cost.memory) for cost in found.rows[0].costs] == [
        ("A GPU", 1.0, None, None), ("B GPU", 1.5, 3.0, 300 * 2**20),
    ]  # fmt: skip
    assert tuple(map(str, table(found).rows[0][-3:])) == (
        "1.00 h + 30.0 min on A GPU; 1.50 h + 30.0 min on B GPU", "3 on B GPU", "300 MiB on B GPU",
    )  # fmt: skip


def test_unknown_hardware(take, board):
    take(environment={"device": "cuda", "gpu": None})
    assert board().hardware == {"unknown GPU": 1}


# --- ranks -----------------------------------------------------------------------------------------------------------


def ranks(board) -> list[tuple[str, int]]:
    return [(row.method, row.rank) for row in board().rows]


def test_rows_that_cannot_be_told_apart_share_a_rank(take, board):
    for method, right in (("a", 80), ("b", 78), ("c", 60), ("d", 57), ("e", 30)):
        take({"best": (150, 100, right), "last": (150, 100, 40)}, method=method)
    # One seed each, nested verdicts: McNemar finds 6 or more images of difference, 2 / 2^6 < 5 %.
    assert ranks(board) == [("a", 1), ("b", 1), ("c", 3), ("d", 3), ("e", 5)]


@pytest.mark.parametrize(("right", "rank"), [(75, 1), (74, 2)])
def test_the_edge_of_a_rank(take, board, right, rank):
    take({"best": (150, 100, 80), "last": (150, 100, 40)}, method="a")
    take({"best": (150, 100, right), "last": (150, 100, 40)}, method="b")
    assert ranks(board) == [("a", 1), ("b", rank)]  # 5 images of difference: 2 / 2^5 = 6 %; 6: 3 %


def test_a_rank_interval_holds_the_rank(take, board):
    """By itself it would not: c shares the rank of a, whose seeds scatter, but is worse than b, whose do not."""
    for method, rights in (("a", (90, 81, 72)), ("b", (80, 80, 80)), ("c", (72, 72, 72))):
        for seed, right in enumerate(rights):
            take({"best": (150, 100, right), "last": (150, 100, 40)}, method=method, seed=seed)
    assert [(row.method, row.rank, row.rank_interval) for row in board().rows] == [
        ("a", 1, (1, 3)), ("b", 1, (1, 2)), ("c", 1, (1, 3)),
    ]  # fmt: skip


def test_a_rank_is_shared_with_its_first_row_only(take, board):
    for method, right in (("a", 80), ("b", 76), ("c", 72)):  # c is like b, but not like a
        take({"best": (150, 100, right), "last": (150, 100, 40)}, method=method)
    assert ranks(board) == [("a", 1), ("b", 1), ("c", 3)]


def test_ranks_go_by_best_and_not_by_last(take, board):
    take({"best": (150, 100, 80), "last": (150, 100, 20)}, method="a")
    take({"best": (190, 190, 40), "last": (190, 190, 40)}, method="b")
    assert ranks(board) == [("a", 1), ("b", 2)]


def test_equal_rows_stand_in_the_order_of_their_labels(take, board):
    for method, label in (("a", "Y"), ("b", "Z"), ("c", "X")):
        take(method=method, label=label)
    assert ranks(board) == [("c", 1), ("a", 1), ("b", 1)]


def test_several_seeds_are_compared_over_seeds_and_images(take, board):
    """The same means: with seeds that agree the rows differ, with seeds that scatter they do not."""
    for method, rights in (("a", (80, 81, 82)), ("b", (60, 61, 62))):
        for seed, right in enumerate(rights):
            take({"best": (150, 100, right), "last": (150, 100, 40)}, method=method, seed=seed)
    assert ranks(board) == [("a", 1), ("b", 2)]
    for method, rights in (("c", (97, 81, 65)), ("d", (77, 61, 45))):
        for seed, right in enumerate(rights):
            protocol = protocol_of(training={"epochs": 9})
            take({"best": (150, 100, right), "last": (9, 9, 9)}, method=method, seed=seed, protocol=protocol)
    assert [(row.method, row.rank) for row in board(protocol=protocol.fingerprint, methods=["c", "d"]).rows] == [
        ("c", 1), ("d", 1),
    ]  # fmt: skip


def test_verdicts_are_paired_by_image(take, board):
    """The same accuracies: told apart if the images are the same ones, not if they are others."""
    take({"best": (150, 100, share(60)), "last": (9, 9, 9)}, method="a")
    take({"best": (150, 100, share(50)), "last": (9, 9, 9)}, method="b")
    assert ranks(board) == [("a", 1), ("b", 2)]
    protocol = protocol_of(training={"epochs": 9})
    take({"best": (150, 100, share(60)), "last": (9, 9, 9)}, method="a", protocol=protocol)
    take({"best": (150, 100, ~share(50)), "last": (9, 9, 9)}, method="b", protocol=protocol)
    assert [row.rank for row in board(protocol=protocol.fingerprint).rows] == [1, 1]


def test_different_test_images_are_not_compared(take, store):
    take({"best": (150, 100, share(50)), "last": (150, 100, share(40))}, seed=0)
    take({"best": (150, 100, share(50, 99)), "last": (150, 100, share(40))}, seed=1)
    with pytest.raises(BenchError, match="have the same protocol, but different numbers of test images"):
        leaderboards(store)


# --- nothing to show -------------------------------------------------------------------------------------------------


def nothing(store, **kwargs) -> str:
    with pytest.raises(NothingMeasured) as caught:
        leaderboards(store, **kwargs)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_nothing_measured(take, store):
    assert nothing(store) == "the database holds no run; `bench run SUITE` adds them when they end"
    assert nothing(store, methods=["typo"]) == "the database holds no run; `bench run SUITE` adds them when they end"
    take({}, status=None, seed=1)
    take({}, status="failed", seed=2)
    take({}, status="failed", seed=3)
    assert nothing(store) == (
        "no run has finished (2 failed, 1 interrupted); "
        "`bench run SUITE` continues them, with `--rerun failed` those that failed too"
    )
    other = nothing(store, protocol="0123456789abcdef")
    assert other == "the database holds no run of protocol 0123456789ab; `bench run SUITE` adds them when they end"
    take(seed=4)
    assert "has a checkpoint 'best_on_test'" in nothing(store, selection="test")


# --- large -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_runs_of_ten_thousand_images_take_less_than_two_seconds(store):
    random, images = np.random.default_rng(0), 10_000
    protocol = protocol_of(evaluation={"final": ["clean", "pgd", "autoattack"]})
    finals = protocol.identity()["evaluation"]["final"]

    def run(number: int) -> RunRow:
        name = f"{number:064x}"
        row = RunRow(
            fingerprint=name, training_fingerprint=name, protocol_fingerprint=protocol.fingerprint, suite="large",
            method=f"m{number // 3}", version=1, label=f"M{number // 3}", params={}, custom=False, origin="paper",
            final_is_best=False, seed=number % 3, status="finished", environment={}, folder=f"runs/{number}", epochs=9,
        )  # fmt: skip
        for checkpoint in ("best", "best_on_test", "last"):
            row.checkpoints[checkpoint] = CheckpointRow(name=checkpoint, epoch=1, sha256=name, file="x")
            for final in finals:
                bits = random.random(images) < 0.5
                row.checkpoints[checkpoint].outcomes[final["name"]] = OutcomeRow(
                    key=final["name"], attack=final["name"], title=final["name"], identity=final, count=images,
                    right=int(bits.sum()), accuracy=float(bits.mean()), correct=PackedBits.pack(bits).data,
                    seconds=1.0, detail={},
                )  # fmt: skip
        return row

    with Session(store._writing) as session, session.begin():
        session.add(ProtocolRow(fingerprint=protocol.fingerprint, content=protocol.identity()))
        session.flush()
        session.add_all([run(number) for number in range(300)])
    started = time.process_time()
    (board,) = leaderboards(store)
    assert time.process_time() - started < 2
    assert len(board.rows) == 100
    # All rows guess, so that few can be told from the best one.
    assert sum(row.rank == 1 for row in board.rows) > 90


# --- names -----------------------------------------------------------------------------------------------------------


def test_distinct():
    assert disambiguate(["a", "b"], [{"x": 1}, {"x": 2}]) == ["a", "b"]
    assert disambiguate(["a", "b", "a"], [{"x": 1}, {}, {"x": 2, "y": 1}]) == ["a (x=1)", "b", "a (x=2, y=1)"]
    assert disambiguate(["a", "a"], [{"x": 1}, {"x": 1}]) == ["a", "a"]


def test_differences():
    assert differences([{"x": 1, "y": [1]}, {"x": 1, "y": [2]}]) == ["y=[1]", "y=[2]"]
    assert differences([{"x": 1 / 3}, {}]) == ["x=0.3333", ""]


def test_natural_training_does_not_collapse():
    """It promises no robustness: its figures are shown, however low."""
    outcome = SimpleNamespace(accuracy=0.0, count=500)
    for attack, counts in (("none", False), ("pgd", True)):
        content = {"training": {"attack": {"name": attack}}}
        run = SimpleNamespace(method="pgd_at", classes=10, protocol=SimpleNamespace(content=content))
        assert rows.collapsed(outcome, run) is counts
