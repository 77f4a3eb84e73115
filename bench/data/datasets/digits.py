"""The 1,797 handwritten digits that scikit-learn ships: 8x8 pixels, 17 grey levels, no download."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.config.protocol import DatasetSettings
from bench.data.dataset import Dataset, ImageSet, Located, arrays
from bench.errors import BenchError

TRAIN_IMAGES = 1297


def load() -> tuple[ImageSet, ImageSet]:
    """Return the first 1,297 digits for training and the last 500 for testing, in the order of the file.

    The file lists its writers one after the other, so the test digits are largely in other people's hands: harder, and
    closer to use, than a random split. Grey levels 0..16 become 0..255.

    Raises:
        BenchError: scikit-learn is not installed, or its file cannot be read.
    """
    package = find_spec("sklearn")  # not imported, which would take a second
    if package is None or package.origin is None:
        raise BenchError("scikit-learn, which ships the digits, is not installed")
    try:
        table = _table(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz")
    except OSError as error:
        raise BenchError(f"the digits of scikit-learn cannot be read: {error}") from error
    pixels = torch.from_numpy(table[:, :-1]).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(table[:, -1]).long()
    return (
        ImageSet(pixels[:TRAIN_IMAGES], labels[:TRAIN_IMAGES]),
        ImageSet(pixels[TRAIN_IMAGES:], labels[TRAIN_IMAGES:]),
    )


@cache  # reading the text takes longer than a step of training on the digits
def _table(path: Path) -> NDArray[np.float64]:
    return np.loadtxt(path, delimiter=",")


def find(_root: Path | None, _settings: DatasetSettings) -> Located:
    """Return the digits, which are there wherever scikit-learn is."""
    return arrays(*load())


digits = Dataset(
    name="digits",
    title="Optical recognition of handwritten digits (scikit-learn)",
    classes=10,
    shape=(1, 8, 8),
    mean=(0.3059,),  # of the 1,297 training images; tests/data/test_digits.py recomputes both
    std=(0.3754,),
    train_images=TRAIN_IMAGES,
    test_images=500,
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998",
    find=find,
)
