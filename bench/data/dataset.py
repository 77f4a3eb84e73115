"""The contract of a dataset: what it states about itself, where its images are found, and how they are split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import registry
from bench.config.base import ranges
from bench.config.protocol import Augmentation, DatasetSettings, Subset
from bench.data.readers import ArraySource, Averaged, Source
from bench.data.streaming import ImageStream
from bench.errors import BenchError, NotFound
from bench.utils.rng import generator

LARGE_PIXELS = 128 * 128
"""Images of more pixels than this are streamed from files instead of living on the device."""

ABSENT = -1
"""The label of an official index whose image is not among the files found."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images that live on a device.

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

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of one batch after the other, given each batch's positions (int64, [k])."""
        for index in batches:
            yield self.pixels[index]


Images = ImageSet | ImageStream
"""Labelled images: on the device, or streamed to it. Both have `labels`, `take`, `to` and `read`."""


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a dataset: trained on, selected on, reported on."""

    train: Images
    validation: Images
    test: Images

    def to(self, device: torch.device) -> Splits:
        """Return the same parts on `device`."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


@dataclass(frozen=True)
class Part:
    """The official training or test images as found: pixels by official index, and labels (int64, [n]).

    An image that is not there has the label `ABSENT`.
    """

    source: Source
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Some of a part's images, by official index (int64, [k])."""

    part: Part
    index: Tensor


@dataclass(frozen=True)
class Found:
    """A dataset's files: where they lie, their parts, and their digest.

    `test` is None for files without test images. `digest` returns the SHA-256 of the files' names and sizes.
    """

    where: Path | None
    train: Part
    test: Part | None
    digest: Callable[[], str] | None = None


@dataclass(frozen=True)
class Dataset:
    """What a dataset states about itself; an entry of the group `bench.datasets` is one of these.

    `mean` and `std` are per channel in units of [0, 1]; `augmentation` is what a suite that names none gets;
    `train_images` and `test_images` are None where only the files know. `obtain` says in one sentence where the files
    come from, empty for images that ship with a package; `download` fetches and verifies them into a data root.

    `find(root, settings)` returns the files below the data root, and reads no more of them than it must. It raises
    NotFound where there are none, and BenchError for files that are not what they should be: the sentence names them.
    """

    name: str
    title: str
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: int | None
    test_images: int | None
    licence: str
    citation: str
    find: Callable[[Path | None, DatasetSettings], Found]
    augmentation: tuple[Augmentation, ...] = ()
    obtain: str = ""
    download: Callable[[Path], None] | None = None
    own_files: bool = False
    """The suite describes the files, by its setting `files`."""
    settings: DatasetSettings | None = None
    """What a suite asks of it; see `configured`."""

    def configured(self, settings: DatasetSettings) -> Dataset:
        """Return this dataset as a suite uses it: its shape, counts and classes after `settings`.

        Raises:
            BenchError: the settings do not fit the dataset.
        """
        if (settings.files is None) == self.own_files:
            needs = "needs" if self.own_files else "knows its images and takes no"
            raise BenchError(f"dataset '{self.name}' {needs} 'files'")
        configured = replace(self, settings=settings)
        if files := settings.files:
            half = (0.5,) * files.shape[0]
            configured = replace(
                configured, classes=files.classes, shape=files.shape, mean=files.mean or half, std=files.std or half
            )
        if side := settings.resize:
            channels, height, width = configured.shape
            if height != width or height % side:
                raise BenchError(f"resize: {side} does not divide the side of {height}x{width} pixels")
            configured = replace(configured, shape=(channels, side, side))
        if settings.digest is not None:  # whatever part of the dataset that is
            return replace(configured, train_images=None, test_images=None)
        subset = settings.subset
        return replace(
            configured,
            train_images=_count(self.train_images, subset.train if subset else None, settings.validation, "train"),
            test_images=_count(self.test_images, subset.test if subset else None, None, "test"),
        )

    def check_split(self) -> None:
        """Raise BenchError unless the validation images can be held out and some are left to train on."""
        assert self.settings is not None
        if self.train_images is not None and self.settings.held_out >= self.train_images:
            raise BenchError(
                f"{self.settings.held_out} validation images leave none to train on: {self.name} has "
                f"{self.train_images} in all"
            )

    @property
    def left_to_train(self) -> int | None:
        """How many images are trained on, where it is known without the files."""
        assert self.settings is not None
        return None if self.train_images is None else self.train_images - self.settings.held_out

    def counted(self, root: Path | None) -> Dataset:
        """Return this dataset with the counts that only the files know.

        Raises:
            NotFound, BenchError: as `locate` and `choose` do, if it must look.
        """
        if self.train_images is not None and self.test_images is not None:
            return self
        train, validation, test = (len(chosen.index) for chosen in self.choose(self.locate(root)))
        return replace(self, train_images=train + validation, test_images=test)

    def locate(self, root: Path | None) -> Found:
        """Return the files as `find` does, checked against the digest that the suite states.

        Raises:
            NotFound: there are none below `root`; the sentence says where they were looked for and how to get them.
            BenchError: they are not what they should be, or not those of the digest.
        """
        assert self.settings is not None
        found = self.find(root, self.settings)
        if self.settings.digest is not None:
            if found.digest is None:
                raise BenchError(f"dataset '{self.name}' has no digest; leave 'digest' out")
            if (digest := found.digest()) != self.settings.digest:
                raise BenchError(
                    f"{found.where} holds other files than the suite's 'digest' states; theirs is {digest}"
                )
        return found

    def splits(self, root: Path | None) -> Splits:
        """Load the images and hold out the validation ones; a number of them is chosen by a fixed permutation.

        Raises:
            NotFound, BenchError: as `locate` and `choose` do, or an image cannot be read.
        """
        train, validation, test = (self._load(chosen) for chosen in self.choose(self.locate(root)))
        return Splits(train, validation, test)

    def choose(self, found: Found) -> tuple[Chosen, Chosen, Chosen]:
        """Return which images to train on, to validate on and to test on; none is read.

        Raises:
            BenchError: an image that is asked for is not among the files found, or none is left to train on.
        """
        assert self.settings is not None
        self.check_split()
        settings, subset = self.settings, self.settings.subset or Subset()
        shuffled = generator(settings.split_seed, "split")
        pool = _positions(found.train.labels, subset.train, f"training images of {self.name}")
        if isinstance(settings.validation, str):
            validation = _positions(found.train.labels, settings.validation, f"training images of {self.name}")
            pool = pool[~torch.isin(pool, validation)]
            if found.test is None:
                pool = pool[torch.randperm(len(pool), generator=shuffled)]
        else:
            pool = pool[torch.randperm(len(pool), generator=shuffled)]
            validation, pool = pool[: settings.validation], pool[settings.validation :]
        if found.test is not None:
            test = Chosen(found.test, _positions(found.test.labels, subset.test, f"test images of {self.name}"))
        elif settings.files and settings.files.test:
            test = Chosen(found.train, pool[: settings.files.test])
            pool = pool[settings.files.test :]
        else:
            raise BenchError(
                f"{found.where} holds no test images; say how many training images to take, as 'test' in 'files'"
            )
        if not len(pool):
            raise BenchError(f"no images of {self.name} are left to train on: all are held out")
        return Chosen(found.train, pool), Chosen(found.train, validation), test

    def _load(self, chosen: Chosen) -> Images:
        """Return the images, loaded if they are small, else to be streamed."""
        assert self.settings is not None
        source, index = chosen.part.source, chosen.index
        if self.settings.resize is not None:
            source = Averaged(source, self.settings.resize)
        labels = torch.from_numpy(chosen.part.labels[index.numpy()])
        if self.shape[1] * self.shape[2] > LARGE_PIXELS:
            return ImageStream(source, index, labels)
        return ImageSet(torch.from_numpy(source.load(index.numpy())), labels)


def dataset_of(settings: DatasetSettings) -> Dataset:
    """Return the dataset that a protocol names, as configured by it. Raises BenchError as `configured` does."""
    dataset: Dataset = registry.DATASETS.get(settings.name)
    return dataset.configured(settings)


def own_dataset(name: str, title: str, find: Callable[[Path | None, DatasetSettings], Found], obtain: str) -> Dataset:
    """Return a dataset of the user's own files: what it is like, the suite's `files` state."""
    return Dataset(
        name=name,
        title=title,
        classes=0,
        shape=(0, 0, 0),
        mean=(),
        std=(),
        train_images=None,
        test_images=None,
        licence="yours to know.",
        citation="",
        find=find,
        obtain=obtain,
        own_files=True,
    )


def arrays(train: ImageSet, test: ImageSet) -> Found:
    """Return images that are in memory already as what `Dataset.find` returns."""
    first, second = (Part(ArraySource(images.pixels.numpy()), images.labels.numpy()) for images in (train, test))
    return Found(None, first, second)


def missing(dataset: Dataset, looked_for: Sequence[Path], root: Path | None) -> NotFound:
    """Return the error for a dataset that is not there: where it was looked for, how to get it, its licence."""
    where = "no data root is given; name it with --data or BENCH_DATA"
    if root:
        where = f"looked for {' or '.join(map(str, looked_for))}"
    return NotFound(f"dataset '{dataset.name}' not found: {where}. {dataset.obtain} Licence: {dataset.licence}")


def _count(official: int | None, chosen: str | None, validation: int | str | None, part: str) -> int | None:
    """Return how many images of a part are used, given the indices chosen, which must be below the official number."""
    for key, indices in ((f"subset.{part}", chosen), ("validation", validation)):
        if isinstance(indices, str) and official is not None and ranges(indices)[-1][-1] >= official:
            raise BenchError(f"{key}: index {ranges(indices)[-1][-1]} is beyond the {official} images")
    if chosen is None:
        return official
    used = set().union(*ranges(chosen))
    if isinstance(validation, str):
        used |= set().union(*ranges(validation))
    return len(used)


def _positions(labels: NDArray[np.int64], chosen: str | None, what: str) -> Tensor:
    """Return the official indices chosen (all of them if None), int64, [k]; each must have its image."""
    if chosen is None:
        index = torch.arange(len(labels))
    else:
        index = torch.cat([torch.arange(part.start, part.stop) for part in ranges(chosen)])
        if int(index[-1]) >= len(labels):
            raise BenchError(f"index {int(index[-1])} is beyond the {len(labels)} {what}")
    absent = index[torch.from_numpy(labels)[index] == ABSENT]
    if len(absent):
        there = int((labels != ABSENT).sum())
        raise BenchError(
            f"{len(absent)} of the {what} are not among the files found, which hold {there}: the first is index "
            f"{int(absent[0])}"
        )
    return index
