"""What identifies the outcome of a final attack of a cell, and names its file."""

from __future__ import annotations

from typing import Any

from bench.attacks.evaluate import attack_identity
from bench.config.attacks import Attack, FinalAttack, Joint
from bench.config.cell import Cell
from bench.config.corruptions import Corruptions
from bench.data.corruptions import SEED
from bench.utils.files import fingerprint

RESULTS = {"reduced_batch_size", "images_sha256"}
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
    if isinstance(attack, Corruptions):
        return corruptions_identity(attack)
    return attack_identity(attack, cell.protocol.threat)


def corruptions_identity(settings: Corruptions) -> dict[str, Any]:
    """Return what the outcome depends on, besides weights and images; `versions`: the number for each image."""
    stated = settings.model_dump(mode="json", exclude_none=True)
    seed = {} if settings.path else {"seed": SEED}
    return {**stated, **seed, "precision": "fp32", "versions": len(settings.versions)}


def joined_attacks(cell: Cell) -> list[Attack]:
    """Return the attacks that `joint` combines."""
    return [attack for attack in cell.protocol.evaluation.final if isinstance(attack, Attack)]
