import time

import numpy as np
import pytest
from sqlalchemy.orm import Session

from bench.attacks.outcome import PackedBits
from bench.errors import BenchError
from bench.reporting.leaderboard import leaderboards
from bench.reporting.plots.data import FigureData, figures
from bench.reporting.plots.render import draw
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

    def made(**kwargs) -> FigureData:
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
    curves = made().curves
    assert set(zip(curves.row, curves.label, curves.method, strict=True)) == {(0, "PGD_AT", "pgd_at")}
    lines = curves[["seed", "epoch", "train", "validation", "test", "best", "last"]].round(9)
    assert list(lines.itertuples(index=False, name=None)) == [
        (0, 1, 10, 20, 18, False, False), (0, 2, 30, 40, 38, True, False), (0, 3, 50, 36, 30, False, True),
        (1, 1, 20, 30, 26, False, False), (1, 2, 40, 44, 40, True, True),
    ]  # fmt: skip


def test_test_accuracy_of_a_seed_that_does_not_track_it(take, made):
    take(seed=0, curve=[(0.1, 0.2, 0.3)], epochs={"best": 0, "last": 0})
    take(seed=1, curve=[(0.1, 0.2, None)], epochs={"best": 0, "last": 0})
    assert made().curves.test.tolist() == pytest.approx([30, np.nan], nan_ok=True)


def test_a_run_without_epochs_has_an_empty_curve(take, made):
    take(curve=[])
    shown = made()
    assert shown.curves.empty
    assert shown.labels == ("PGD_AT",)


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
    curves = made().curves
    assert tuple(curves.epoch[curves["drop"]]) == drops


def test_points_of_a_released_log_under_the_same_settings(take, made):
    """Rice's log is shown beside PGD-AT under his threat, epochs and attack, and beside nothing else."""
    cifar10 = {"dataset": "cifar10", "model": "preact_resnet18"}
    take(protocol=protocol_of(**cifar10, training={"epochs": 200}))
    take(protocol=protocol_of(**cifar10, training={"epochs": 200}), method="fomo")
    found = made(protocol=protocol_of(**cifar10, training={"epochs": 200}).fingerprint)
    (row,) = set(found.released.row)
    assert found.labels[row] == "PGD_AT"
    assert list(found.released.epoch) == [1, 5, 10, 20, 107, 200]
    assert list(found.released.test)[:2] == pytest.approx([26.6, 35.6])
    marks = [line for panel in draw(found, "curves").axes for line in panel.lines if line.get_marker() == "x"]
    assert sorted(len(mark.get_xdata()) for mark in marks) == [0, 6]
    other = protocol_of(**cifar10, training={"epochs": 2})
    take(protocol=other)
    assert made(protocol=other.fingerprint).released.empty


def test_the_oracle_marks_its_own_best(take, made):
    right = {"best": (150, 100, 50), "best_on_test": (150, 100, 55), "last": (150, 90, 40)}
    curve = [(0.1, 0.1, 0.3), (0.1, 0.4, 0.1), (0.1, 0.3, 0.2)]
    take(right, curve=curve, epochs={"best": 1, "best_on_test": 0, "last": 2})
    for selection, epoch in (("validation", 2), ("test", 1)):
        curves = made(selection=selection).curves
        assert curves.epoch[curves.best].tolist() == [epoch]


# --- gap and cost ----------------------------------------------------------------------------------------------------


def test_gap_in_percent_best_row_first(take, made):
    take({"best": (150, 100, 40), "last": (160, 90, 30)}, method="low")
    take({"best": (150, 100, 50), "last": (160, 90, 40)}, method="high", final_is_best=True)
    shown = made()
    assert shown.attacks[0] == "Clean"
    assert shown.ranked_by == 2
    assert list(shown.rows.label) == ["HIGH", "LOW"]
    assert shown.rows.by_construction.tolist() == [True, False]
    results = shown.results.set_index(["row", "attack", "checkpoint"])
    assert results.sort_index()["mean"][0, "Clean"].to_dict() == pytest.approx({"best": 75, "last": 80, "gap": -5})
    best, gap = (results.loc[0, shown.ranking, checkpoint] for checkpoint in ("best", "gap"))
    assert (best.low, best.high) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert (gap.low, gap.high) == pytest.approx((10 - 5.87989, 10 + 5.87989), abs=1e-4)


def test_rows_without_an_averaged_seed_are_not_shown(take, made):
    take({"best": (150, 100, 40), "last": (160, 90, 30)}, method="a")
    take({"best": (150, 100, 5), "last": (150, 100, 5)}, method="collapsed")
    take({"best": (150, 100, 5), "last": (150, 100, 5)}, method="a", seed=3)  # nor is a collapsed seed of a row
    take({}, method="diverged", status="diverged")
    shown = made()
    assert shown.labels == ("A",)
    assert set(shown.curves.seed) == {0}
    assert set(shown.results.label) == {"A"}
    assert np.isnan(shown.same).tolist() == [[True]]


def test_nothing_but_diverged_runs_gives_empty_figures(take, made):
    take({}, status="diverged")
    shown = made()
    assert shown.labels == ()
    assert shown.curves.empty
    assert shown.results.empty


def costs(shown: FigureData) -> list[tuple[str, float]]:
    rows = shown.rows.dropna(subset="cost")
    return list(zip(rows.label, rows.cost, strict=True))


def test_cost_is_work_where_every_row_counted_it(take, made):
    take(method="a", seed=0, done={"train_pflop": 2.0}, environment=GPU)
    take(method="a", seed=1, done={"train_pflop": 5.0})
    take({"best": (150, 100, 40), "last": (160, 90, 30)}, method="b", done={"train_pflop": 1.0})
    shown = made()
    assert (shown.unit, shown.device, shown.hardware, shown.without_cost) == ("PFLOP", None, {}, ())
    assert costs(shown) == [("A", 3.5), ("B", 1.0)]
    assert shown.rows["mean"][1] == pytest.approx(40)


def test_cost_in_hours_is_of_one_kind_of_device_only(take, made):
    take(method="a", seed=0, done={"train_seconds": 7200.0}, environment=GPU)
    take(method="a", seed=1, done={"train_seconds": 360000.0})
    take(method="b", done={"train_seconds": 1800.0, "train_pflop": None}, environment=GPU | {"gpu": "B GPU"})
    take(method="c", done={"train_seconds": 10.0})
    shown = made()
    assert (shown.unit, shown.device) == ("hours", "CPU")  # a and c; as many as have a GPU, so the first by name
    assert costs(shown) == [("A", 100.0), ("C", pytest.approx(10 / 3600))]
    assert (shown.hardware, shown.without_cost) == ({"A Processor": 2}, ("B",))
    take(method="d", done={"train_seconds": 3600.0}, environment=GPU)
    shown = made()
    assert shown.device == "GPU"
    assert costs(shown) == [("A", 2.0), ("B", 0.5), ("D", 1.0)]
    assert (shown.hardware, shown.without_cost) == ({"A GPU": 2, "B GPU": 1}, ("C",))


def test_cost_that_nobody_knows(take, made):
    take(done={"train_seconds": None, "train_pflop": None})
    shown = made()
    assert (costs(shown), shown.without_cost) == ([], ("PGD_AT",))


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_over_all_pairs_of_seeds(take, made):
    # Of 100 images under the ranking attack: a's seeds have 0-49 and 0-59 right, b's only seed 40-79.
    take({"best": (150, 100, span(0, 50)), "last": (150, 100, 20)}, method="a", seed=0)
    take({"best": (150, 100, span(0, 60)), "last": (150, 100, 20)}, method="a", seed=1)
    take({"best": (150, 100, span(40, 80)), "last": (150, 100, 20)}, method="b")
    found = made()
    assert (found.labels, found.images) == (("A", "B"), 100)
    # a0, b: 40 only a, 30 only b; a1, b: 40 only a, 20 only b.
    assert found.only[0][1] == pytest.approx(40)
    assert found.only[1][0] == pytest.approx(25)
    assert found.same[0][1] == found.same[1][0] == pytest.approx(35)
    # a0, a1: none only a0, 10 only a1.
    assert (found.same[0][0], found.only[0][0]) == pytest.approx((90, 5))
    assert np.isnan([found.same[1][1], found.only[1][1]]).all()
    assert (found.none_right, found.all_right) == (20, 10)


def test_results_on_different_images_are_not_paired(take, made):
    take(method="a")
    take(method="b", environment={"data": {"test": "0" * 64}})
    found = made()
    assert np.isnan(found.only).all()
    assert np.isnan(found.same).all()


def test_agreement_of_three_seeds_of_one_row(take, made):
    for seed, right in enumerate((50, 60, 65)):
        take({"best": (150, 100, right), "last": (150, 100, 20)}, seed=seed)
    found = made()
    # The pairs differ on 10, 15 and 5 images; in which order they are compared is all the same.
    assert (found.same[0][0], found.only[0][0]) == pytest.approx((90, 5))
    assert (found.none_right, found.all_right) == (35, 50)


def test_agreement_at_best_under_the_ranking_attack(take, made):
    take({"best": (10, 20, images(1, 2, *range(40, 90))), "last": (200, 200, span(0, 100))}, method="a")
    take({"best": (20, 10, images(2, 3, *range(40, 90))), "last": (200, 200, span(0, 100))}, method="b")
    found = made()
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


@pytest.mark.slow
def test_a_thousand_runs_take_about_a_second(store):
    """200,000 epochs and 6,000 outcomes of 10,000 images; the limit leaves room for slow and busy machines."""
    protocol = protocol_of()
    finals = protocol.identity()["evaluation"]["final"]
    random = np.random.default_rng(0)
    verdicts = [PackedBits.pack(random.random(10_000) < 0.5).data for _ in range(7)]
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
    assert len(shown.curves) == 200_000
