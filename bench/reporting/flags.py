"""Flags: signs that an attack may overestimate robustness. docs/attacks.md lists them, with sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.reporting.statistics import binomial_error
from bench.storage.schema import OutcomeRow

FAR_ABOVE = 0.10
"""By how much PGD accuracy may exceed AutoAttack's without a flag, as a share of the images; our choice.

Of the networks in results/published.csv with figures under both, those trained by plain PGD differ by 2.1 to 4.7 points
on CIFAR and by up to 9.8 on SVHN, and only some of DOM, ELLE and SSAT by more than 10. Croce and Hein, 2020, too say of
the defences that AutoAttack broke that it was "often by more than 10%".
"""

ENOUGH = 100  # images classified correctly, of which an attack should break some

UNCHECKED = frozenset({"clean", "joint", "corruptions"})
"""What is no attack of its own, and has no flags."""

ROUNDING = 1e-9  # of the difference of two shares


@dataclass(frozen=True)
class Flag:
    """Why an attack may overestimate the robustness of one checkpoint of one seed; see docs/attacks.md.

    `checkpoint`: best or last. `attack`: an index of the protocol's final attacks.
    """

    seed: int
    checkpoint: Literal["best", "last"]
    attack: int
    reason: str


def flags_of(seed: int, best: Sequence[OutcomeRow], last: Sequence[OutcomeRow], guessing: float) -> list[Flag]:
    """Return the flags of a seed: those stored with an outcome, and those that follow from several outcomes.

    These are PGD accuracy far above AutoAttack's, and accuracy under an attack that is not below clean accuracy,
    although this is above `guessing`.

    The one checkpoint of an external model, which counts as both, is reported as the last.
    """
    sides: Mapping[Literal["best", "last"], Sequence[OutcomeRow]] = {"best": best, "last": last}
    flags = []
    for checkpoint, outcomes in sides.items():
        for index, outcome in enumerate(outcomes):
            if checkpoint == "best" and outcome is last[index]:
                continue
            reasons = list(outcome.detail.get("doubts", ()))
            for other in outcomes:
                kinds = other.attack, outcome.attack
                if kinds == ("pgd", "autoattack") and same_ball(other, outcome) and far_above(other, outcome):
                    reasons.append(
                        f"gradients may be misleading: {other.title} accuracy {100 * other.accuracy:.1f} %, "
                        f"{outcome.title} {100 * outcome.accuracy:.1f} %"
                    )
                if other.attack == "clean" and guessing < other.accuracy and not_below(outcome, other):
                    reasons.append(
                        f"its accuracy of {100 * outcome.accuracy:.1f} % is not below the clean one of "
                        f"{100 * other.accuracy:.1f} %"
                    )
            flags += [Flag(seed, checkpoint, index, reason) for reason in reasons]
    return flags


def unchecked(outcomes: Sequence[OutcomeRow]) -> list[int]:
    """Return the indices of the attacks that older versions did not check for masked gradients."""
    return [index for index, one in enumerate(outcomes) if one.attack not in UNCHECKED and "doubts" not in one.detail]


def not_below(attacked: OutcomeRow, clean: OutcomeRow) -> bool:
    """Return whether an attack lowered accuracy on none of at least `ENOUGH` images, the same ones."""
    comparable = attacked.attack not in UNCHECKED and attacked.count == clean.count and clean.right >= ENOUGH
    return comparable and attacked.accuracy >= clean.accuracy


def same_ball(a: OutcomeRow, b: OutcomeRow) -> bool:
    """Return whether two attacks have the same norm and radius."""
    return all(a.identity.get(key) == b.identity.get(key) for key in ("norm", "eps"))


def far_above(pgd: OutcomeRow, autoattack: OutcomeRow) -> bool:
    """Return whether PGD accuracy exceeds AutoAttack's by more than `FAR_ABOVE` on the images that both saw.

    Subsets are nested (`bench.attacks.evaluate.balanced_subset`), so these are the images of the attack that saw fewer,
    m of n. The other's accuracy on them is not stored. Taken as a random draw, it is within two standard errors of the
    accuracy p on all, sqrt(p (1 - p) / m * (n - m) / (n - 1)), which are added to the threshold. They are zero if both
    saw the same images.
    """
    fewer, more = sorted((pgd.count, autoattack.count))
    share = max((pgd, autoattack), key=lambda outcome: outcome.count).accuracy
    luck = 2 * binomial_error(share, fewer) * math.sqrt((more - fewer) / max(1, more - 1))
    return pgd.accuracy - autoattack.accuracy > FAR_ABOVE + luck + ROUNDING
