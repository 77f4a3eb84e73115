"""The images that a protocol trains on beside those of its dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bench.config.protocol import Protocol
from bench.data.dataset import LARGE_PIXELS, Dataset, ImageSet, Splits
from bench.data.datasets.npz import labelled, open_npz
from bench.data.folder import below
from bench.errors import BenchError, NotFound
from bench.utils.files import file_sha256


def load_splits(protocol: Protocol, dataset: Dataset, root: Path | None) -> Splits:
    """Return the images of a protocol; raises as `Dataset.splits` and `extra_images` do."""
    return replace(dataset.splits(root), extra=extra_images(protocol, dataset, root))


def extra_images(protocol: Protocol, dataset: Dataset, root: Path | None) -> ImageSet | None:
    """Return the protocol's extra images, verified, or None if it has none.

    Raises:
        NotFound: there is no such file.
        BenchError: the file is not the one that the protocol states, or its images do not fit the dataset.
    """
    settings = protocol.training.extra_data
    if settings is None:
        return None
    if root is None or not (path := below(root, settings.file)).is_file():
        where = f"{root / settings.file} does not exist" if root else "no data root is given; set --data or BENCH_DATA"
        raise NotFound(f"extra_data: {where}")
    if (digest := file_sha256(path)) != settings.digest:
        raise BenchError(f"extra_data: {path} has the SHA-256 {digest}, not the stated {settings.digest}")
    _, height, width = dataset.shape
    if height * width > LARGE_PIXELS:
        raise BenchError(f"extra_data needs images that fit into memory, not {height}x{width} pixels")
    with open_npz(path) as arrays:
        images, labels = labelled(path, arrays, ("image", "label"), dataset.shape, dataset.classes)
    return ImageSet(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels))
