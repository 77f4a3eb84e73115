"""A leaderboard of which every cell was worked out by hand; how is said beside it."""

import pytest

from bench.reporting.leaderboard import leaderboards
from bench.reporting.table import table

GPU = {"device": "cuda", "gpu": "A GPU", "cpu": "A Processor"}
GIB = 2**30


@pytest.fixture
def board(make_run, store):
    """Four rows: three seeds; one seed; one seed and a collapsed one; one that diverged. 200 images, AutoAttack 100."""
    alpha = [
        {"best": (180, 170, 79), "last": (184, 140, 60)},
        {"best": (182, 170, 80), "last": (184, 142, 62)},
        {"best": (184, 170, 81), "last": (184, 144, 64)},
    ]
    for seed, (right, pflop, gib) in enumerate(zip(alpha, (1.0, 1.5, 2.0), (4, 6, 5), strict=True)):
        done = {
            "classes": 10,
            "train_pflop": pflop,
            "peak_memory_bytes": gib * GIB,
            "train_seconds": 3600.0 * (seed + 1),
        }
        store.ingest(make_run(right, method="a", label="Alpha", seed=seed, done=done, environment=GPU))
    done = {"classes": 10}
    store.ingest(make_run({"best": (190, 160, 77), "last": (190, 160, 77)}, method="b", label="Beta", done=done))
    right = {"best": (120, 100, 50), "last": (100, 90, 40)}
    store.ingest(make_run(right, method="c", label="Gamma", done=done | {"train_pflop": None}))
    store.ingest(make_run({"best": (20, 20, 10), "last": (20, 20, 10)}, method="c", label="Gamma", seed=1, done=done))
    store.ingest(make_run({}, method="d", label="Delta", status="diverged", done={"epoch": 1}))
    (found,) = leaderboards(store)
    return found


def test_every_cell(board):
    """Ranks: rows with one seed have nested verdicts, so McNemar's p for k images of difference is 2 / 2^k.

    Beta against Gamma, k = 27: told apart. Alpha against Beta, mean difference 0.03: Alpha's deviation is 0.01, its
    variance over seeds 0.0001 / 3, and as much as one seed has for Beta, 0.0001. The shares of seeds differ by 1 on the
    images 78 and 79, by 2/3 on 80, by 1/3 on 81: squares 2 + 4/9 + 1/9 = 2.556, less 100 * 0.03^2 = 0.09, over 99 *
    100 that is 0.000249. Left over of Alpha: on two images 2/3 each within seeds, 4/3, less 100 * 2 * 0.0001 = 0.02,
    over 2 * 99: 0.00663; E = 0.00663 / 300 + 0.00663 / 100 = 0.000088. Variance 0.000133 + 0.000249 - 0.000088 =
    0.000294, error 0.0171, t = 1.75 with 0.000294^2 / (0.000133^2 / 2) = 9.7 degrees: p = 11 %, one rank. Against
    Gamma the difference is ten times as large, its variance over images (29.556 - 9) / 9900 = 0.00208, error 0.046,
    t = 6.5: told apart.
    """
    found = table(board)
    headings = [f"{column.group} {column.title}".strip() for column in found.columns]
    assert [dict(zip(headings, map(str, row), strict=True)) for row in found.rows] == [
        {
            "Rank": "1=", "Rank, 95 %": "1–2", "Method": "Alpha",
            # 90, 91, 92 and three times 92: gaps -2, -1, 0
            "Clean best": "91.00 ± 1.00", "Clean last": "92.00 ± 0.00", "Clean gap": "-1.00 ± 1.00",
            # 85 and 70, 71, 72: gaps 15, 14, 13
            "PGD-20 best": "85.00 ± 0.00", "PGD-20 last": "71.00 ± 1.00", "PGD-20 gap": "14.00 ± 1.00",
            # 79, 80, 81 and 60, 62, 64: gaps 19, 18, 17
            "AutoAttack best": "80.00 ± 1.00", "AutoAttack last": "62.00 ± 2.00", "AutoAttack gap": "18.00 ± 1.00",
            # t(2) = 4.3027, times 1 / sqrt(3): 2.48
            "AutoAttack best, 95 %": "77.52–82.48",
            # 1, 2 and 3 hours; 1440 + 360 seconds; the mean of 1, 1.5 and 2; the most of 4, 6 and 5
            "Seeds": "3", "Parameters": "paper", "Time a seed": "2.00 h + 30.0 min on GPU",
            "PFLOP a seed": "1.5 on GPU", "Memory": "6.00 GiB on GPU",
        },
        {
            "Rank": "1=", "Rank, 95 %": "1–2", "Method": "Beta",
            "Clean best": "95.00", "Clean last": "95.00", "Clean gap": "0.00",
            "PGD-20 best": "80.00", "PGD-20 last": "80.00", "PGD-20 gap": "0.00",
            "AutoAttack best": "77.00", "AutoAttack last": "77.00", "AutoAttack gap": "0.00",
            # Wilson, z^2 = 3.8415: (77 + 1.9207 ± sqrt(3.8415 (77 * 23 / 100 + 0.9604))) / 103.8415
            "AutoAttack best, 95 %": "67.85–84.16",
            "Seeds": "1", "Parameters": "paper", "Time a seed": "1.00 h + 30.0 min on CPU",
            "PFLOP a seed": "1.5 on CPU", "Memory": "5.00 GiB on CPU",
        },
        {
            "Rank": "3", "Rank, 95 %": "3", "Method": "Gamma",
            "Clean best": "60.00", "Clean last": "50.00", "Clean gap": "10.00",
            "PGD-20 best": "50.00", "PGD-20 last": "45.00", "PGD-20 gap": "5.00",
            "AutoAttack best": "50.00", "AutoAttack last": "40.00", "AutoAttack gap": "10.00",
            # (50 + 1.9207 ± sqrt(3.8415 (25 + 0.9604))) / 103.8415
            "AutoAttack best, 95 %": "40.38–59.62",
            # the collapsed seed has 10 %, which is chance; it counts among the costs, and only it states its work
            "Seeds": "1 (1 collapsed)", "Parameters": "paper", "Time a seed": "1.00 h + 30.0 min on CPU",
            "PFLOP a seed": "1.5 on CPU", "Memory": "5.00 GiB on CPU",
        },
        dict.fromkeys(headings, "–")
        | {"Method": "Delta", "Seeds": "0 (1 diverged)", "Parameters": "paper"},
    ]  # fmt: skip


def test_figures_behind_the_cells(board):
    alpha = board.rows[0].figures[2]
    assert alpha.gap.values == pytest.approx((0.19, 0.18, 0.17))
    assert alpha.gap.interval == pytest.approx((0.18 - 4.302653 * 0.01 / 3**0.5, 0.18 + 4.302653 * 0.01 / 3**0.5))
    gamma = board.rows[2].figures[2]  # ten images of a hundred: (10 - 100 * 0.01) / 10,000 is 0.03^2
    assert gamma.gap.interval == pytest.approx((0.10 - 1.959964 * 0.03, 0.10 + 1.959964 * 0.03))
    assert [row.rank_interval for row in board.rows] == [(1, 2), (1, 2), (3, 3), None]
    assert board.hardware == {"A GPU": 3, "A Processor": 3}
