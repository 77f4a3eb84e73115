"""Compare the papers' figures with ours: the difference if the protocols agree, otherwise the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bench.config.attacks import TrainingAttack
from bench.config.protocol import DatasetSettings
from bench.errors import NothingMeasured
from bench.reporting.leaderboard import Leaderboard, leaderboards
from bench.reporting.published import ATTACKS, CheckpointComparison, Published, PublishedComparison, read_published
from bench.reporting.rows import Row, Selection, row_key
from bench.storage.store import Store

SINGLE_STEP = {"fgsm_at", "fgsm_rs", "n_fgsm", "grad_align", "free_at"}
"""Methods of the file that take one step by definition, whatever the protocol's attack is, or FGSM itself."""


def with_published(
    store: Store, boards: Sequence[Leaderboard], protocol: str | None, selection: Selection
) -> list[Leaderboard]:
    """Return `boards` with the papers' figures, which need our figures under the other selection too.

    `protocol` and `selection`: those that `boards` were made with.
    """
    try:
        others = leaderboards(store, protocol=protocol, selection="test" if selection == "validation" else "validation")
    except NothingMeasured:
        others = []
    return compare_with_published(boards, others, read_published())


def compare_with_published(
    boards: Sequence[Leaderboard], others: Sequence[Leaderboard], published: Sequence[Published]
) -> list[Leaderboard]:
    """Return `boards` with the papers' figures for the methods of their rows on their datasets.

    Args:
        boards: leaderboards under one selection.
        others: those under the other selection, as far as they exist: a paper that chose its checkpoint on the test
            images is compared with our oracle, one that held out validation images with our choice on those.
        published: what papers report.
    """
    second = {board.fingerprint: board for board in others}
    return [
        replace(board, published=tuple(_of_board(board, second.get(board.fingerprint), published))) for board in boards
    ]


def _of_board(
    board: Leaderboard, other: Leaderboard | None, published: Sequence[Published]
) -> Iterator[PublishedComparison]:
    by_selection = {side.selection: _rows(side) for side in (board, other) if side}
    for row in board.rows:
        names = _names(board, row)
        lines = [line for line in published if line.dataset == board.dataset.name and plain(line.method) in names]
        rows = {selection: found.get(row_key(row)) for selection, found in by_selection.items()}
        # Lines of another architecture or threat only where there is nothing closer.
        for line in [line for line in lines if not _other_setting(board, line)] or lines:
            yield from _compare(board, row, rows, line)


def _rows(board: Leaderboard) -> dict[str, Row]:
    return {row_key(row): row for row in board.rows}


def plain(name: str) -> str:
    """Return a name without what spellings differ in: `wide_resnet34_10` and `wide_resnet/34-10` are the same."""
    return "".join(letter for letter in name if letter.isalnum())


def _names(board: Leaderboard, row: Row) -> set[str]:
    """Return what a paper may call a row's method: its name, or that with a parameter's value, such as `sat_silu`.

    PGD-AT with a single step is FGSM, with a random start or without.
    """
    if row.method == "pgd_at" and _single_step(board):
        return {plain("fgsm_rs" if board.protocol["training"]["attack"]["random_start"] else "fgsm_at")}
    values = [value for value in row.params.values() if isinstance(value, str)]
    return {plain(row.method), *(plain(row.method + value) for value in values)}


def _single_step(board: Leaderboard) -> bool:
    return TrainingAttack.model_validate(board.protocol["training"]["attack"]).regime == "single_step"


def _compare(
    board: Leaderboard, row: Row, rows: Mapping[Selection, Row | None], line: Published
) -> Iterator[PublishedComparison]:
    general = _why_not(board, row, line)
    chosen = rows.get(line.selection) if line.selection in ("validation", "test") else None
    for attack in ATTACKS:
        papers = [side.get(attack) for side in (line.best, line.last)]
        if papers == [None, None]:
            continue
        index, reasons = column_of(board, attack, line)
        reasons = [*general, *reasons]
        figures = [
            found.figures[index] if found and found.figures and index is not None else None for found in (chosen, row)
        ]
        at_best = figures[0].best.mean if figures[0] else None
        at_last = figures[1].last.mean if figures[1] else None
        because = [*reasons, *(why_no_best(line, chosen) if papers[0] is not None else [])]
        yield PublishedComparison(
            label=row.label,
            published=line,
            attack=attack,
            title=attack_title(attack, line),
            best=_checkpoint(papers[0], at_best, comparable=not because),
            last=_checkpoint(papers[1], at_last, comparable=not reasons),
            reasons=tuple(because),
        )


def _checkpoint(paper: float | None, ours: float | None, *, comparable: bool) -> CheckpointComparison:
    return CheckpointComparison(
        paper, ours, ours - paper if comparable and paper is not None and ours is not None else None
    )


def attack_title(attack: str, line: Published) -> str:
    """Return the name of an attack of `line`, with its number of steps where that is known."""
    if attack == "pgd":
        return f"PGD-{line.pgd_steps}" if line.pgd_steps else "PGD"
    return {"clean": "Clean", "autoattack": "AutoAttack"}[attack]


def _why_not(board: Leaderboard, row: Row, line: Published) -> list[str]:
    """Return in what the protocols differ, whatever the attack."""
    reasons = [*_other_setting(board, line), *other_images(board.dataset)]
    if _single_step(board) and line.method not in SINGLE_STEP:
        reasons.append("trained with several steps, ours with one")
    if row.custom and plain(line.method) == plain(row.method):
        reasons.append("ours has parameters of its own (custom)")
    if not row.figures:
        reasons.append("ours has no seed to average")
    return reasons


def threat_text(norm: str, eps: float) -> str:
    """Return a threat as the file writes it: norm and radius in units of 1/255."""
    return f"{norm}-{eps * 255:.4g}"


def threat_of(board: Leaderboard) -> str:
    """Return the threat of a leaderboard as the file writes it."""
    return threat_text(board.protocol["threat"]["norm"], board.protocol["threat"]["eps"])


def other_images(dataset: DatasetSettings) -> list[str]:
    """Return in what ours differs from the whole dataset as it is."""
    reasons = ["ours is a part of the dataset"] if dataset.subset or dataset.digest or dataset.files else []
    return reasons + ([f"ours is resized to {dataset.resize}x{dataset.resize}"] if dataset.resize else [])


def _other_setting(board: Leaderboard, line: Published) -> list[str]:
    """Return whether architecture and threat differ."""
    ours, reasons = threat_of(board), []
    if plain(line.architecture) != plain(board.protocol["model"]):
        reasons.append(f"architecture {line.architecture}, ours {board.protocol['model']}")
    if line.threat != ours:
        reasons.append(f"threat {line.threat}, ours {ours}")
    return reasons


def column_of(
    board: Leaderboard, attack: str, line: Published, *, same_images: bool = False
) -> tuple[int | None, list[str]]:
    """Return which of the board's attacks is the one of `line`, or the nearest, and why it is not the same.

    `same_images`: the line's figures are of the images that the board's attacks see, whichever these are.
    """
    attacks = board.protocol["evaluation"]["final"]
    found = [index for index, final in enumerate(attacks) if final["name"] == attack and "threat" not in final]
    if not found:
        return None, [f"ours has no {attack_title(attack, line)}"]
    whole = [index for index in found if same_images or not board.attacks[index].balanced_subset]
    same = [index for index in whole if attack != "pgd" or attacks[index]["steps"] == line.pgd_steps]
    if same:
        return same[0], []
    index = (whole or found)[0]
    reasons = [] if whole else [f"ours saw {board.attacks[index].images:,} of the test images"]
    if attack == "pgd" and line.pgd_steps is None:
        reasons.append("its number of PGD steps is not known")
    elif attack == "pgd" and attacks[index]["steps"] != line.pgd_steps:
        reasons.append(f"{attack_title(attack, line)}, ours {board.attacks[index].title}")
    return index, reasons


def why_no_best(line: Published, chosen: Row | None) -> list[str]:
    """Return why there is no checkpoint `best` of ours that was selected as the line's was."""
    if line.selection is None:
        return ["at best: which images selected it is not known"]
    if line.selection == "none":
        return ["at best: it selected none"]
    if chosen is None or not chosen.figures:
        return [f"at best: selected on {line.selection} images, ours has no such checkpoint"]
    return []
