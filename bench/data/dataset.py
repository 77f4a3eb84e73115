"""The contract of a dataset: what it states about itself, and how its images are loaded and split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.seeding import generator


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    `pixels`: uint8, [n, channels, height, width]. `labels`: int64, [n], from 0 to classes - 1.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> ImageSet:
        """Return the images at `index` (int64, [k]), in that order."""
        return ImageSet(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> ImageSet:
        """Return the same images on `device`."""
        return ImageSet(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a dataset: trained on, selected on, reported on."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def to(self, device: torch.device) -> Splits:
        """Return the same parts on `device`."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


@dataclass(frozen=True)
class Dataset:
    """What a dataset states about itself; an entry of the group `bench.datasets` is one of these.

    `mean` and `std` are per channel in units of [0, 1]; `load` returns the official train and test images, from the
    given root folder where the dataset lives in files.
    """

    name: str
    title: str
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: int
    test_images: int
    licence: str
    citation: str
    load: Callable[[Path | None], tuple[ImageSet, ImageSet]]

    def check_split(self, validation: int) -> None:
        """Raise BenchError unless `validation` images can be held out and some are left to train on."""
        if validation >= self.train_images:
            raise BenchError(
                f"{validation} validation images leave none to train on: {self.name} has {self.train_images} in all"
            )

    def splits(self, root: Path | None, validation: int, split_seed: int) -> Splits:
        """Load the images and hold out `validation` of the training images, chosen by a fixed permutation."""
        self.check_split(validation)
        train, test = self.load(root)
        order = torch.randperm(len(train), generator=generator(split_seed, "split"))
        return Splits(train.take(order[validation:]), train.take(order[:validation]), test)
