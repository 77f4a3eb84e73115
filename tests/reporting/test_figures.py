import dataclasses
import time

import numpy as np
import pytest
from sqlalchemy.orm import Session

from bench.attacks.outcome import pack
from bench.errors import BenchError
from bench.reporting.leaderboard import leaderboards
from bench.reporting.plots.data import Figures, Line, Mark, Value, figures
from bench.storage.schema import CheckpointRow, EpochRow, OutcomeRow, ProtocolRow, RunRow

from .conftest import CLASSES, protocol_of

GPU = {"device": "cuda", "gpu": "A GPU", "cpu": "A Processor"}


@pytest.fixture
def take(take, store):
    """Make a run folder and take it in; `curve`, if given, replaces its epochs in the store."""

    def taken(*args, curve=None, epochs=None, done=None, **kwargs):
        folder = take(*args, done=CLASSES | (done or {}), **kwargs)
        if curve is not None:
            name = folder.cell()["fingerprint"]
            with Session(store.engine) as session, session.begin():
                session.query(EpochRow).filter_by(run=name).delete()
                session.add_all(epoch(name, number, *values) for number, values in enumerate(curve))
                for checkpoint, at in (epochs or {}).items():
                    session.get(CheckpointRow, (name, checkpoint)).epoch = at
        return folder

    return taken


def epoch(run, number, train, validation, test, lr=0.1):
    return EpochRow(
        run=run, epoch=number, lr=lr, train_loss=1.0, train_robust=train, validation_clean=0.7,
        validation_robust=validation, test_clean=None if test is None else 0.7, test_robust=test,
        train_seconds=1.0, seconds=2.0,
    )  # fmt: skip


@pytest.fixture
def made(store):
    """Return the figures of the only leaderboard."""

    def made(**kwargs) -> Figures:
        (board,) = leaderboards(store, **kwargs)
        return figures(store, board)

    return made


def images(*right: int, count: int = 100) -> np.ndarray:
    """Return verdicts with just these images right."""
    return np.isin(np.arange(count), right)


def span(*bounds: int) -> np.ndarray:
    return images(*range(*bounds))


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_of_seeds_of_different_lengths(take, made):
    first = [(0.10, 0.20, 0.18), (0.30, 0.40, 0.38), (0.50, 0.36, 0.30)]
    second = [(0.20, 0.30, 0.26), (0.40, 0.44, 0.40)]
    take(seed=0, curve=first, epochs={"best": 1, "last": 2})
    take(seed=1, curve=second, epochs={"best": 1, "last": 1})
    (curve,) = made().curves.rows
    assert (curve.label, curve.method) == ("PGD_AT", "pgd_at")
    assert rounded(curve.train) == Line((1, 2, 3), (15, 35, 50), (10, 30, 50), (20, 40, 50), (2, 2, 1))
    assert rounded(curve.validation) == Line((1, 2, 3), (25, 42, 36), (20, 40, 36), (30, 44, 36), (2, 2, 1))
    assert rounded(curve.test) == Line((1, 2, 3), (22, 39, 30), (18, 38, 30), (26, 40, 30), (2, 2, 1))
    assert [rounded(mark) for mark in curve.best] == [Mark(0, 2, 40, 38), Mark(1, 2, 44, 40)]
    assert [rounded(mark) for mark in curve.last] == [Mark(0, 3, 36, 30), Mark(1, 2, 44, 40)]


def rounded(value):
    """Round what the fields of a dataclass hold."""

    def each(field):
        if isinstance(field, tuple):
            return tuple(each(one) for one in field)
        return round(field, 9) if isinstance(field, float) else field

    return type(value)(**{field.name: each(getattr(value, field.name)) for field in dataclasses.fields(value)})


def test_test_images_are_shown_only_if_every_seed_tracks_them(take, made):
    take(seed=0, curve=[(0.1, 0.2, 0.3)], epochs={"best": 0, "last": 0})
    take(seed=1, curve=[(0.1, 0.2, None)], epochs={"best": 0, "last": 0})
    (curve,) = made().curves.rows
    assert curve.test is None
    assert [mark.test for mark in curve.best] == [pytest.approx(30), None]


def test_a_run_without_epochs_has_an_empty_curve(take, made):
    take(curve=[])
    (curve,) = made().curves.rows
    assert curve.validation == Line((), (), (), (), ())
    assert [(mark.epochs, mark.validation) for mark in curve.last] == [(2, None)]


@pytest.mark.parametrize(
    ("rates", "drops"),
    [
        ((1, 1, 0.1, 0.1, 0.01, 0.01), (3, 5)),
        ((1, 0.5), (2,)),
        ((1, 1, 0.6, 0.6), ()),  # less than half is not a drop
        ((1, 0.75, 0.5, 0.25, 0.1), ()),  # falls all the time
        ((0.5, 1, 0.4), ()),
        ((1, 1, 0, 0, 0), (3,)),
        ((1,), ()),
    ],
)
def test_where_the_rate_drops(take, made, rates, drops):
    take(curve=[(0.1, 0.2, 0.3, rate) for rate in rates], epochs={"best": 0, "last": 0})
    assert made().curves.rows[0].drops == drops


def test_the_oracle_marks_its_own_best(take, made):
    right = {"best": (150, 100, 50), "best_on_test": (150, 100, 55), "last": (150, 90, 40)}
    curve = [(0.1, 0.1, 0.3), (0.1, 0.4, 0.1), (0.1, 0.3, 0.2)]
    take(right, curve=curve, epochs={"best": 1, "best_on_test": 0, "last": 2})
    assert [mark.epochs for mark in made().curves.rows[0].best] == [2]
    oracle = made(selection="test")
    assert [mark.epochs for mark in oracle.curves.rows[0].best] == [1]
    assert oracle.curves.chosen_on == "test"


# --- gap and cost ----------------------------------------------------------------------------------------------------


def test_gap_in_percent_best_row_first(take, made):
    take({"best": (150, 100, 40), "last": (160, 90, 30)}, method="low")
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, method="high", final_is_best=True)
    gap = made().gap
    assert gap.attacks[0] == "Clean"
    assert gap.ranked_by == 2
    assert [(row.label, row.by_construction) for row in gap.rows] == [("HIGH", True), ("LOW", False)]
    clean, _, autoattack = gap.rows[0].attacks
    assert (clean.best.mean, clean.last.mean, clean.gap.mean) == pytest.approx((75, 80, -5))
    assert (autoattack.best.low, autoattack.best.high) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert (autoattack.gap.low, autoattack.gap.high) == pytest.approx((10 - 5.87989, 10 + 5.87989), abs=1e-4)
    assert isinstance(clean.gap, Value)


def test_rows_without_an_averaged_seed_are_not_shown(take, made):
    take({"best": (150, 100, 40), "last": (160, 90, 30)}, method="a")
    take({"best": (150, 100, 5), "last": (150, 100, 5)}, method="collapsed")
    take({"best": (150, 100, 5), "last": (150, 100, 5)}, method="a", seed=3)  # nor is a collapsed seed of a row
    take({}, method="diverged", status="diverged")
    shown = made()
    assert shown.labels == ("A",)
    assert len(shown.curves.rows) == len(shown.gap.rows) == len(shown.cost.rows) == 1
    assert [mark.seed for mark in shown.curves.rows[0].best] == [0]
    assert shown.agreement.same == ((None,),)


def test_nothing_but_diverged_runs_gives_empty_figures(take, made):
    take({}, status="diverged")
    shown = made()
    assert shown.labels == shown.curves.rows == shown.gap.rows == shown.cost.rows == ()


def test_cost_is_work_where_every_row_counted_it(take, made):
    take(method="a", seed=0, done={"train_pflop": 2.0}, environment=GPU)
    take(method="a", seed=1, done={"train_pflop": 5.0})
    take({"best": (150, 100, 40), "last": (160, 90, 30)}, method="b", done={"train_pflop": 1.0})
    cost = made().cost
    assert (cost.unit, cost.device, cost.hardware, cost.left_out) == ("PFLOP", None, {}, ())
    assert [(point.label, point.cost) for point in cost.rows] == [("A", 3.5), ("B", 1.0)]
    assert cost.rows[1].robust.mean == pytest.approx(40)


def test_cost_in_hours_is_of_one_kind_of_device_only(take, made):
    take(method="a", seed=0, done={"train_seconds": 7200.0}, environment=GPU)
    take(method="a", seed=1, done={"train_seconds": 360000.0})
    take(method="b", done={"train_seconds": 1800.0, "train_pflop": None}, environment=GPU | {"gpu": "B GPU"})
    take(method="c", done={"train_seconds": 10.0})
    cost = made().cost
    assert (cost.unit, cost.device) == ("hours", "CPU")  # a and c; as many as have a GPU, so the first by name
    assert [(point.label, point.cost) for point in cost.rows] == [("A", 100.0), ("C", pytest.approx(10 / 3600))]
    assert (cost.hardware, cost.left_out) == ({"A Processor": 2}, ("B",))
    take(method="d", done={"train_seconds": 3600.0}, environment=GPU)
    cost = made().cost
    assert cost.device == "GPU"
    assert [(point.label, point.cost) for point in cost.rows] == [("A", 2.0), ("B", 0.5), ("D", 1.0)]
    assert (cost.hardware, cost.left_out) == ({"A GPU": 2, "B GPU": 1}, ("C",))


def test_cost_that_nobody_knows(take, made):
    take(done={"train_seconds": None, "train_pflop": None})
    cost = made().cost
    assert (cost.rows, cost.left_out) == ((), ("PGD_AT",))


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_over_all_pairs_of_seeds(take, made):
    # Of 100 images under the ranking attack: a's seeds have 0-49 and 0-59 right, b's only seed 40-79.
    take({"best": (150, 100, span(0, 50)), "last": (150, 100, 20)}, method="a", seed=0)
    take({"best": (150, 100, span(0, 60)), "last": (150, 100, 20)}, method="a", seed=1)
    take({"best": (150, 100, span(40, 80)), "last": (150, 100, 20)}, method="b")
    found = made().agreement
    assert (found.labels, found.methods, found.images) == (("A", "B"), ("a", "b"), 100)
    # a0, b: 40 only a, 30 only b; a1, b: 40 only a, 20 only b.
    assert found.only[0][1] == pytest.approx(40)
    assert found.only[1][0] == pytest.approx(25)
    assert found.same[0][1] == found.same[1][0] == pytest.approx(35)
    # a0, a1: none only a0, 10 only a1.
    assert (found.same[0][0], found.only[0][0]) == pytest.approx((90, 5))
    assert found.same[1][1] is found.only[1][1] is None
    assert (found.none_right, found.all_right) == (20, 10)


def test_agreement_of_three_seeds_of_one_row(take, made):
    for seed, right in enumerate((50, 60, 65)):
        take({"best": (150, 100, right), "last": (150, 100, 20)}, seed=seed)
    found = made().agreement
    # The pairs differ on 10, 15 and 5 images; in which order they are compared is all the same.
    assert (found.same[0][0], found.only[0][0]) == pytest.approx((90, 5))
    assert (found.none_right, found.all_right) == (35, 50)


def test_agreement_at_best_under_the_ranking_attack(take, made):
    take({"best": (10, 20, images(1, 2, *range(40, 90))), "last": (200, 200, span(0, 100))}, method="a")
    take({"best": (20, 10, images(2, 3, *range(40, 90))), "last": (200, 200, span(0, 100))}, method="b")
    found = made().agreement
    assert (found.only[0][1], found.only[1][0], found.same[0][1]) == pytest.approx((1, 1, 98))
    assert (found.none_right, found.all_right) == (47, 51)


def test_a_store_that_changed_meanwhile(take, store):
    folder = take()
    (board,) = leaderboards(store)
    with Session(store.engine) as session, session.begin():
        session.get(RunRow, folder.cell()["fingerprint"]).status = "interrupted"
    with pytest.raises(BenchError, match="has changed"):
        figures(store, board)


# --- size ------------------------------------------------------------------------------------------------------------


def test_a_thousand_runs_take_about_a_second(store):
    """200,000 epochs and 6,000 outcomes of 10,000 images; the limit leaves room for slow and busy machines."""
    protocol = protocol_of()
    finals = protocol.identity()["evaluation"]["final"]
    random = np.random.default_rng(0)
    verdicts = [pack(random.random(10_000) < 0.5) for _ in range(7)]
    with Session(store.engine) as session, session.begin():
        session.add(ProtocolRow(fingerprint=protocol.fingerprint, content=protocol.identity()))
        session.flush()
        runs, epochs, checkpoints, outcomes = [], [], [], []
        for number in range(1000):
            name = f"{number:064d}"
            runs.append(
                {
                    "fingerprint": name, "training_fingerprint": name, "protocol_fingerprint": protocol.fingerprint,
                    "suite": "big", "method": f"m{number % 20}", "version": 1, "label": f"M{number % 20}",
                    "params": {}, "custom": False, "final_is_best": False, "seed": number // 20,
                    "status": "finished", "environment": {}, "folder": name, "epochs": 200, "train_pflop": 1.0,
                }
            )  # fmt: skip
            epochs += [
                {
                    "run": name, "epoch": at, "lr": 0.1, "train_loss": 1.0, "train_robust": 0.5,
                    "validation_clean": 0.5, "validation_robust": 0.5, "test_clean": 0.5, "test_robust": 0.5,
                    "train_seconds": 1.0, "seconds": 1.0,
                }
                for at in range(200)
            ]  # fmt: skip
            for checkpoint in ("best", "last"):
                checkpoints.append({"run": name, "name": checkpoint, "epoch": 199, "sha256": "0" * 64, "file": "f"})
                outcomes += [
                    {
                        "run": name, "checkpoint": checkpoint, "key": f"{index}", "attack": final["name"],
                        "title": final["name"], "identity": final, "count": 10_000, "right": 5000, "accuracy": 0.5,
                        "correct": verdicts[(number + index) % 7], "seconds": 1.0, "detail": {},
                    }
                    for index, final in enumerate(finals)
                ]  # fmt: skip
        for table, rows in ((RunRow, runs), (EpochRow, epochs), (CheckpointRow, checkpoints), (OutcomeRow, outcomes)):
            session.execute(table.__table__.insert(), rows)
    (board,) = leaderboards(store)
    started = time.process_time()
    loaded = store.runs(protocol=board.fingerprint, bits=True)
    store.curves([run.fingerprint for run in loaded])
    loading = time.process_time() - started
    started = time.process_time()
    shown = figures(store, board)
    assert time.process_time() - started - loading < 2
    assert len(shown.labels) == 20
    assert shown.curves.rows[0].validation.seeds == (50,) * 200
