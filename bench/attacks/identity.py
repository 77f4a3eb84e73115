"""What identifies the outcome of a final attack of a cell, and names its file."""

from __future__ import annotations

from typing import Any

from bench.attacks.evaluate import AttackOnImages, attack_identity
from bench.config.attacks import FinalAttack, Joint
from bench.config.cell import Cell
from bench.utils.files import fingerprint

RESULTS = {"reduced_batch_size"}
"""Keys of an outcome's identity that the evaluation adds."""


def attack_key(attack: FinalAttack, cell: Cell) -> str:
    """Return the short name of an attack in file names: its kind and the beginning of its identity's digest."""
    return key_of(outcome_identity(attack, cell))


def key_of(identity: dict[str, Any]) -> str:
    """Return the key of the attack with an identity, also with what is known only after it (`RESULTS`)."""
    planned = {name: value for name, value in identity.items() if name not in RESULTS}
    return f"{identity['name']}-{fingerprint(planned)[:8]}"


def outcome_identity(attack: FinalAttack, cell: Cell) -> dict[str, Any]:
    """Return what the outcome of an attack depends on, besides weights and images."""
    if isinstance(attack, Joint):
        return {"name": attack.name, "of": sorted(attack_key(other, cell) for other in joined_attacks(cell))}
    return attack_identity(attack, cell.protocol.threat)


def joined_attacks(cell: Cell) -> list[AttackOnImages]:
    """Return the attacks that `joint` combines."""
    return [attack for attack in cell.protocol.evaluation.final if not isinstance(attack, Joint)]
