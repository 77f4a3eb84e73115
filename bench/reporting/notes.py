"""The notes below a leaderboard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from bench.config.corruptions import Corruptions
from bench.reporting.leaderboard import Leaderboard
from bench.reporting.method_card import params_of_row
from bench.reporting.rows import NEAR_ZERO, RECORDED, Row, SeedResult
from bench.reporting.statistics import CONFIDENCE, binomial_error
from bench.utils.formatting import counted

DECLARED, BY_CONSTRUCTION, COLLAPSED_AT_LAST = "†", "‡", "§"
LEVEL = f"{100 * CONFIDENCE:.0f} %"
TEST_LEVEL = f"{100 * (1 - CONFIDENCE):.0f} %"


def percent(share: float) -> str:
    """Return a share in percent, with two digits after the point."""
    text = f"{100 * share:.2f}"
    return "0.00" if text == "-0.00" else text


def notes(board: Leaderboard) -> list[str]:
    """Return the notes below the table of a leaderboard: what its figures and marks mean, and what to beware of."""
    return [
        _on_selection(board),
        _on_images(board),
        *_on_spread(board),
        _on_ranks(board),
        *_on_bound(board),
        *_on_marks(board),
        *_on_seeds(board),
        *_on_flags(board),
        *_on_variants(board),
        *_on_records(board),
        *_on_target(board),
        *_on_bundles(board),
        *_on_previews(board),
        "Time a seed: wall-clock time of training + evaluation, which includes tracking after every epoch. PFLOP a "
        "seed: work of training; a multiply-add counts as two. Memory: peak memory of a seed, of the GPU, or on a CPU "
        "of the process." + (f" Hardware: {_counted(board.hardware)}." if board.hardware else ""),
    ]


def _on_selection(board: Leaderboard) -> str:
    track = board.protocol["evaluation"]["track"]
    some = f", among epochs tracked every {track['every']}, around drops and at the end" if "every" in track else ""
    if not board.dataset.held_out:
        chosen = "test images themselves, as this protocol says (validation: none): optimistic for every method"
    elif board.selection == "validation":
        chosen = f"{board.dataset.held_out:,} training images held out for validation"
    else:
        chosen = "test images themselves, an oracle, optimistic for every method"
    return (
        f"best: the checkpoint with the highest PGD-{track['attack']['steps']} accuracy on the {chosen}{some}; "
        "last: the final epoch; gap: best minus last."
    )


def _on_images(board: Leaderboard) -> str:
    parts = []
    settings = board.protocol["evaluation"]["final"]
    for index, (attack, setting) in enumerate(zip(board.attacks, settings, strict=True)):
        part = f"{attack.title} {attack.images:,}"
        if setting["name"] == "corruptions":
            part += f" (the mean over {len(Corruptions.model_validate(setting).versions)} versions of each image)"
        means = [row.figures[index].best.mean for row in board.rows if row.figures]
        if attack.balanced_subset and means:
            error = max(binomial_error(mean, attack.images) for mean in means)
            part += f" (a class-balanced subset; binomial standard error of a seed up to {percent(error)} points)"
        parts.append(part)
    return f"Figures are percentages of the test images: {', '.join(parts)}."


def _on_spread(board: Leaderboard) -> list[str]:
    estimates = [row.figures[board.ranked_by].best for row in board.rows if row.figures]
    notes = []
    if any(figure.covers == "seeds" for figure in estimates):
        notes.append(
            f"± is the sample standard deviation over the seeds that the column Seeds counts; {LEVEL} is Student's "
            "t-interval of their mean, for these test images."
        )
    if any(figure.covers == "images" for figure in estimates):
        notes.append(
            f"For a row with one seed, the {LEVEL} interval covers the choice of test images only, not that of the "
            "seed."
        )
    return notes


def _on_ranks(board: Leaderboard) -> str:
    return (
        f"Rank: by {board.attacks[board.ranked_by].title} at best. A row shares a rank (=) if a paired test at the "
        f"{TEST_LEVEL} level does not separate it from the first row of that rank: Student's t over images and seeds, "
        "or for two rows with one seed each McNemar's exact test, which covers images only. "
        f"Rank, {LEVEL}: the ranks that a row may have, from the same tests against all other rows, adjusted by Holm's "
        "procedure."
    )


def _on_bound(board: Leaderboard) -> list[str]:
    """Return what a ranking says that is not by the whole of AutoAttack."""
    settings = board.protocol["evaluation"]["final"][board.ranked_by]
    if settings["name"] == "clean":
        return ["Ranked by clean accuracy, without an attack: the ranks say nothing about robustness."]
    if settings["name"] == "autoattack" and not settings.get("attacks"):
        return []
    return [
        f"Accuracy under {board.attacks[board.ranked_by].title} is an upper bound of robust accuracy: it counts what "
        "this attack did not find. AutoAttack finds more, and most where gradients are masked."
    ]


def _on_marks(board: Leaderboard) -> list[str]:
    notes = []
    if any(row.origin == "declared" for row in board.rows):
        notes.append(
            f"{DECLARED} Some parameters are this benchmark's choice because no readable source states them; the "
            "command bench show method lists them."
        )
    if any(row.gap_by_construction for row in board.rows):
        notes.append(
            f"{BY_CONSTRUCTION} The gap is zero by construction: the method's last model is its best one by definition."
        )
    params = [(row.label, params_of_row(row)) for row in board.rows]
    larger = [f"{label} ({stated.training_radius:g} eps)" for label, stated in params if stated.training_radius > 1]
    if larger:
        notes.append(f"Trained in a larger ball than the protocol's, evaluated in the protocol's: {', '.join(larger)}.")
    keeping = [f"{label} ({stated.held_out})" for label, stated in params if stated.held_out]
    if keeping:
        notes.append(f"Kept some of the training images for a use other than training: {', '.join(keeping)}.")
    if any(row.custom for row in board.rows):
        notes.append("custom: some parameters differ from the method's canonical ones.")
    evaluated = [row for row in board.rows if row.evaluated_only]
    if evaluated:
        notes.append(
            "evaluated only: an external model, trained elsewhere with an unknown recipe. Its one checkpoint counts as "
            f"best and as last, so it has no gap. {'; '.join(map(_network, evaluated))}."
        )
    return notes


def _network(row: Row) -> str:
    """Return the architecture, normalisation and weights of an external model."""
    how = row.params
    normalised = "no normalisation"
    if "mean" in how:
        mean, std = (", ".join(f"{value:g}" for value in how[key]) for key in ("mean", "std"))
        normalised = f"normalised by mean {mean} and standard deviation {std}"
    parts = [str(how.get("model", "unknown")), normalised, f"weights SHA-256 {how.get('weights_sha256', 'unknown')}"]
    if "activation" in how:
        parts.append(f"activation {how['activation']}")
    if "prefix" in how:
        parts.append(f"names that begin with '{how['prefix']}'")
    if "code_sha256" in how:
        parts.append(f"code SHA-256 {how['code_sha256']}")
    return f"{row.label}: {', '.join(parts)}"


def _on_seeds(board: Leaderboard) -> list[str]:
    """Return for each row which seeds were not averaged and why, or should be inspected."""
    attack = board.attacks[board.ranked_by].title
    notes = []
    for row in board.rows:
        if row.collapsed:
            notes.append(
                f"{row.label}: collapsed and not averaged; {attack} accuracy at best is no better than guessing or at "
                f"most {100 * NEAR_ZERO:.0f} %: {_listed(row.collapsed)}."
            )
        if row.collapsed_at_last:
            notes.append(
                f"{COLLAPSED_AT_LAST} {row.label}: averaged, although {attack} accuracy at last is no better than "
                f"guessing or at most {100 * NEAR_ZERO:.0f} %: {_listed(row.collapsed_at_last)}."
            )
        if row.diverged:
            epochs = ", ".join(
                f"seed {seed}" + ("" if epoch is None else f" in epoch {epoch}") for seed, epoch in row.diverged.items()
            )
            notes.append(f"{row.label}: diverged, the loss was no longer a number: {epochs}.")
        if row.unfinished:
            notes.append(f"{row.label}: not finished and not averaged: seed {', '.join(map(str, row.unfinished))}.")
    return notes


def _on_flags(board: Leaderboard) -> list[str]:
    """Return the flags of each row, and which rows were not checked for them."""
    notes = []
    for index, attack in enumerate(board.attacks):
        for row in board.rows:
            flags = [flag for flag in row.flags if flag.attack == index]
            listed = "; ".join(f"seed {flag.seed} at {flag.checkpoint}, {flag.reason}" for flag in flags)
            notes += (
                [f"Flags, figures in doubt: {attack.title} may overestimate {row.label}: {listed}."] if flags else []
            )
        rows = [row.label for row in board.rows if index in row.unchecked]
        which = "all rows" if len(rows) == len(board.rows) else ", ".join(rows)
        notes += [f"Older versions did not check {attack.title} for masked gradients: {which}."] if rows else []
    return notes


def _on_variants(board: Leaderboard) -> list[str]:
    """Return which attacks differ between runs, or from the protocol."""
    return [
        f"{attack.title} differs between runs, compare with care: {'; '.join(attack.variants)}."
        if len(attack.variants) > 1
        else f"{attack.title} deviates from the protocol because memory was short: {attack.variants[0]}."
        for attack in board.attacks
        if attack.variants
    ]


def _on_target(board: Leaderboard) -> list[str]:
    if board.target is None:
        return []
    return [
        f"PFLOP to {100 * board.target.accuracy:g} %: work of training up to the earlier of best and last whose "
        f"accuracy under {board.attacks[board.ranked_by].title} is at least that, an upper bound; mean over the seeds "
        "that reach it."
    ]


def _on_records(board: Leaderboard) -> list[str]:
    """Return which rows differ in what should be equal for all, such as the code, or do not say."""
    notes, unknown = [], defaultdict[str, list[str]](list)
    plugins = {key: key for row in board.rows for key in row.recorded if key not in RECORDED}
    for key, name in (RECORDED | plugins).items():
        groups: dict[str | None, list[str]] = {}
        for row in board.rows:
            values = row.recorded.get(key, {})
            for value in dict.fromkeys(values.values()):
                seeds = ", ".join(str(seed) for seed, other in values.items() if other == value)
                part = f" (seed {seeds})" if len(set(values.values())) > 1 else ""
                groups.setdefault(value, []).append(row.label + part)
        listed = [f"{value[:12]}: {', '.join(rows)}" for value, rows in groups.items() if value]
        if len(listed) > 1:
            so = "so no row has a rank" if key.startswith("data.") else "compare with care"
            notes.append(f"Rows were measured with different {name}, {so}: {'; '.join(listed)}.")
        if None in groups:
            unknown[", ".join(groups[None]) if listed else "all rows"].append(f"the {name}")
    for rows, names in unknown.items():
        what = " or ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])
        notes.append(f"Older versions did not record {what}: unknown, and may differ, for {rows}.")
    return notes


def _on_previews(board: Leaderboard) -> list[str]:
    """Return the upper bounds of runs whose AutoAttack has not finished."""
    bounds = "; ".join(
        f"{bound.label} seed {bound.seed} at {bound.checkpoint}, at most {percent(bound.at_most)} % of "
        f"{bound.images:,} images ({bound.attack})"
        for bound in board.previews
    )
    what = "Previews, upper bounds until AutoAttack has finished, not ranked and not averaged"
    return [f"{what}: {bounds}."] if bounds else []


def _on_bundles(board: Leaderboard) -> list[str]:
    """Return which runs were not measured in this results folder, and where they come from."""
    notes = []
    for bundle in board.bundles:
        origin = f", origin: {bundle.origin}" if bundle.origin else ""
        seeds: defaultdict[str, list[str]] = defaultdict(list)
        for label, seed in bundle.runs:
            seeds[label].append(str(seed))
        runs = "; ".join(f"{label} seed {', '.join(numbers)}" for label, numbers in seeds.items())
        notes.append(f"Measured elsewhere and ingested from bundle {bundle.sha256[:12]}{origin}: {runs}.")
    return notes


def _listed(seeds: Sequence[SeedResult]) -> str:
    return "; ".join(f"seed {seed.seed}, best {percent(seed.best)}, last {percent(seed.last)}" for seed in seeds)


def _counted(hardware: dict[str, int]) -> str:
    return ", ".join(f"{name} ({counted(count, 'run')})" for name, count in hardware.items())
