"""Outcomes: for one checkpoint and one attack, per image, whether the prediction is correct."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the store opens without torch
    from torch import Tensor

Correct: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
"""bool, [n]: is the prediction correct for each image?"""


@dataclass(frozen=True)
class PackedBits:
    """A bool array [count] in `data`, eight to a byte, the first in the highest bit, as it is stored."""

    data: bytes
    count: int

    @classmethod
    def pack(cls, bits: Correct) -> PackedBits:
        return cls(np.packbits(bits).tobytes(), len(bits))

    @classmethod
    def from_text(cls, text: str, count: int) -> PackedBits:
        """Undo `text`. Raises ValueError if it is not base64 of `count` bits."""
        data = base64.b64decode(text, validate=True)
        if len(data) != -(-count // 8):
            raise ValueError(f"{len(data)} bytes do not hold {count} bits")
        return cls(data, count)

    @property
    def text(self) -> str:
        """The bytes in base64."""
        return base64.b64encode(self.data).decode()

    def unpack(self) -> Correct:
        """Return the array, bool, [count]."""
        return np.unpackbits(np.frombuffer(self.data, np.uint8), count=self.count).astype(bool)

    def per_image(self, versions: int = 1) -> NDArray[Any]:
        """Return the array, bool, or of images with several versions one after another the shares that are set, float.

        Its length is `count / versions`.
        """
        bits = self.unpack()
        return bits if versions == 1 else bits.reshape(-1, versions).mean(1)

    def total(self) -> int:
        """Return how many bits are set."""
        return int(self.unpack().sum())


@dataclass(frozen=True)
class Outcome:
    """Per image, whether the prediction of one checkpoint is correct under one attack.

    `correct`: bool, [n], of the whole test set or of the balanced subset that `attack` names. `detail`: what else the
    attack reports, such as AutoAttack's accuracy after each of its parts and its flags.
    """

    attack: dict[str, Any]
    title: str
    weights_sha256: str
    correct: Correct
    seconds: float
    detail: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def to_record(self) -> dict[str, Any]:
        """Return JSON data, `correct` as the text of `PackedBits`."""
        return {
            "attack": self.attack,
            "title": self.title,
            "weights_sha256": self.weights_sha256,
            "count": len(self.correct),
            "right": int(self.correct.sum()),
            "correct": PackedBits.pack(self.correct).text,
            "seconds": self.seconds,
            "detail": self.detail,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Outcome:
        """Undo `to_record`."""
        correct = PackedBits.from_text(record["correct"], record["count"]).unpack()
        fields = ("attack", "title", "weights_sha256", "seconds", "detail")
        return cls(correct=correct, **{name: record[name] for name in fields})


def per_class(correct: Correct, labels: Tensor, all_labels: Tensor) -> list[list[int]]:
    """Return for each class how many images are correct, and how many were attacked.

    Args:
        correct: bool, [n].
        labels: int64, [n].
        all_labels: int64, of the whole test set: a small subset may lack a class.
    """
    own, classes = labels.cpu().numpy(), int(all_labels.max()) + 1
    counts = [np.bincount(part, minlength=classes).tolist() for part in (own[correct], own)]
    return [list(pair) for pair in zip(*counts, strict=True)]
