"""Outcomes: for one checkpoint and one attack, per image, whether the prediction stays right."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Verdicts: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
"""bool, [n]: is the network (still) right about each image?"""


@dataclass(frozen=True)
class Outcome:
    """For one checkpoint and one attack: per image, does the prediction stay right?

    `correct`: bool, [n], of the whole test set or of the balanced subset that `attack` names. `detail` holds what the
    attack has to say beyond the verdicts: AutoAttack's accuracy after each of its parts, and its doubts.
    """

    attack: dict[str, Any]
    title: str
    weights_sha256: str
    correct: Verdicts
    seconds: float
    detail: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def to_record(self) -> dict[str, Any]:
        """Return JSON data; the verdicts are packed eight to a byte, in base64."""
        return {
            "attack": self.attack,
            "title": self.title,
            "weights_sha256": self.weights_sha256,
            "count": len(self.correct),
            "right": int(self.correct.sum()),
            "correct": base64.b64encode(pack(self.correct)).decode(),
            "seconds": self.seconds,
            "detail": self.detail,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Outcome:
        """Undo `to_record`."""
        correct = unpack(base64.b64decode(record["correct"]), record["count"])
        fields = ("attack", "title", "weights_sha256", "seconds", "detail")
        return cls(correct=correct, **{name: record[name] for name in fields})


def pack(correct: Verdicts) -> bytes:
    """Pack verdicts eight to a byte, first image in the highest bit."""
    return np.packbits(correct).tobytes()


def unpack(bits: bytes, count: int) -> Verdicts:
    """Undo `pack`, given the number of images."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)
