"""The contract of a dataset: its properties, where its images are, and how they are split."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import registry
from bench.config.augmentation import Augmentation
from bench.config.base import ranges
from bench.config.protocol import NO_IMAGES, DatasetSettings, Subset
from bench.data.readers import ArrayReader, AveragingReader, Reader
from bench.data.streaming import ImageStream
from bench.errors import BenchError, NotFound
from bench.utils.progress import ProgressCallback
from bench.utils.rng import generator

log = logging.getLogger(__name__)

LARGE_PIXELS = 128 * 128
"""Images with more pixels than this are streamed from files instead of being kept on the device."""

CHUNK = 256
"""Images read at a time for their digest."""

SHOWN = 5
"""Files that a sentence names."""

OFFICIAL = "official indices"
"""The identity of images whose names or official sums tell their official indices."""

ROWS = "row numbers of the files: the official order is not known"
"""The identity of images that nothing tells the official indices of."""

ABSENT = -1
"""The label of an official index whose image is not among the files."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in the memory of a device.

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
    """Disjoint images for training, for the selection of checkpoints, and for the reported results.

    `validation` is empty if the protocol holds out no image: the test images select then.

    `files`: the `state` of the files they were read from, `content`: their `digest`; see `Located`. `extra`: further
    images to train on, from the protocol's `extra_data`, whose digest the protocol states.
    """

    train: Images
    validation: Images
    test: Images
    files: str | None = None
    content: Callable[[], str] | None = None
    extra: ImageSet | None = None

    def to(self, device: torch.device) -> Splits:
        """Return the same images on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            extra=self.extra and self.extra.to(device),
        )

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 (hex) of the images and labels to train and select on, and of those to test on.

        Pixels that are streamed are not all read: the digest of their files stands for them, if there is one.
        """
        return {"training": self._digest(self.train, self.validation), "test": self._digest(self.test)}

    def _digest(self, *parts: Images) -> str:
        digest = hashlib.sha256()
        for images in parts:
            digest.update(f"{len(images)}\n".encode())
            digest.update(images.labels.cpu().numpy().astype("<i8").tobytes())
            if isinstance(images, ImageStream) and self.content:
                digest.update(self.content().encode() + images.index.numpy().astype("<i8").tobytes())
                continue
            for pixels in images.read(torch.split(torch.arange(len(images)), CHUNK)):
                digest.update(np.ascontiguousarray(pixels.cpu().numpy()).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """The official training or test images: a reader of the pixels by official index, and labels (int64, [n]).

    An index without an image has the label `ABSENT`.
    """

    reader: Reader
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Some images of a split, by official index (int64, [k])."""

    split: Split
    index: Tensor


@dataclass(frozen=True)
class Located:
    """The files of a dataset: their folder, their splits, and their digest.

    `test` is None for files without test images. `digest()` returns the SHA-256 of the files' names and contents.
    `state()` returns that of their names, sizes and times, which is quick: where it is equal, so are the contents.
    `unread()` returns the paths of what lies among the files and is none of the images, nor known to belong there.

    `layout` says what kind of files they are, `identity` what the indices of the images mean and how that is known.
    """

    where: Path | None
    train: Split
    test: Split | None
    digest: Callable[[], str] | None = None
    state: Callable[[], str] | None = None
    unread: Callable[[], list[str]] | None = None
    layout: str = "files"
    identity: str = OFFICIAL

    def not_read(self) -> str | None:
        """Return a sentence on the files that are not read, None if there are none."""
        paths = self.unread() if self.unread else []
        listed = ", ".join(paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
        return f"{len(paths)} {'file is' if len(paths) == 1 else 'files are'} not read: {listed}" if paths else None


@dataclass(frozen=True)
class Dataset:
    """The properties of a dataset; an entry of the group `bench.datasets` is one of these.

    `mean` and `std` are per channel in units of [0, 1]. `augmentation` is the default for suites that name none.
    `train_images` and `test_images` are None if only the files tell. `obtain` says in one sentence how to get the
    files, and is empty for images that ship with a package. `download` fetches and verifies them into a data root.
    `unpack` writes the files that `find` reads from others in the data root, and raises NotFound if there are none.

    `find(root, settings)` returns the files below the data root, and reads as little of them as possible. It raises
    NotFound if there are none, and BenchError, which names the file, if a file is not the official one.
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
    find: Callable[[Path | None, DatasetSettings], Located]
    augmentation: tuple[Augmentation, ...] = ()
    obtain: str = ""
    download: Callable[[Path], None] | None = None
    unpack: Callable[[Path, ProgressCallback], None] | None = None
    own_files: bool = False
    """The suite describes the files in its setting `files`."""
    settings: DatasetSettings | None = None
    """The settings of a suite; see `configured`."""

    def configured(self, settings: DatasetSettings) -> Dataset:
        """Return this dataset with the settings of a suite: shape, counts and classes follow from `settings`.

        Raises:
            BenchError: the settings do not fit the dataset.
        """
        if (settings.files is None) == self.own_files:
            problem = "needs the key" if self.own_files else "has files of its own; remove the key"
            raise BenchError(f"dataset '{self.name}' {problem} 'files'")
        configured = replace(self, settings=settings)
        if files := settings.files:
            half = (0.5,) * files.shape[0]
            configured = replace(
                configured, classes=files.classes, shape=files.shape, mean=files.mean or half, std=files.std or half
            )
        for name in ("mean", "std"):
            if values := getattr(settings, name):
                if settings.files or len(values) != configured.shape[0]:
                    channels = configured.shape[0]
                    problem = "belongs below 'files'" if settings.files else f"needs {channels} values, one a channel"
                    raise BenchError(f"'{name}' {problem}")
                configured = replace(configured, **{name: values})
        if side := settings.resize:
            channels, height, width = configured.shape
            if height != width or height % side:
                raise BenchError(f"resize: {side} does not divide the side of {height}x{width} pixels")
            configured = replace(configured, shape=(channels, side, side))
        if settings.digest is not None:  # any part of the dataset
            return replace(configured, train_images=None, test_images=None)
        subset = settings.subset
        return replace(
            configured,
            train_images=_count(self.train_images, subset.train if subset else None, settings.validation, "train"),
            test_images=_count(self.test_images, subset.test if subset else None, None, "test"),
        )

    def check_split(self) -> None:
        """Raise BenchError unless some training images remain after the validation images are held out."""
        assert self.settings is not None
        if self.train_images is not None and self.settings.held_out >= self.train_images:
            raise BenchError(
                f"{self.settings.held_out} validation images leave none to train on: {self.name} has "
                f"{self.train_images} training images"
            )

    @property
    def left_to_train(self) -> int | None:
        """The number of images to train on, None if only the files tell."""
        assert self.settings is not None
        return None if self.train_images is None else self.train_images - self.settings.held_out

    def counted(self, root: Path | None) -> Dataset:
        """Return this dataset with the numbers of images, read from the files if necessary.

        Raises:
            NotFound, BenchError: as `locate` and `select` do.
        """
        if self.train_images is not None and self.test_images is not None:
            return self
        train, validation, test = (len(selection.index) for selection in self.select(self.locate(root)))
        return replace(self, train_images=train + validation, test_images=test)

    def locate(self, root: Path | None) -> Located:
        """Return the files as `find` does, and check them against the digest that the suite states.

        Raises:
            NotFound: there are none below `root`; the message says which paths were tried and how to get the files.
            BenchError: a file is not the official one, or the digest is another.
        """
        assert self.settings is not None
        located = self.find(root, self.settings)
        if self.settings.digest is not None:
            if located.digest is None:
                raise BenchError(f"dataset '{self.name}' has no digest; remove the key 'digest'")
            if (digest := located.digest()) != self.settings.digest:
                raise BenchError(
                    f"{located.where}: these files have the digest {digest}, not the one that the suite states; if "
                    f"they are the right files, write 'digest: {digest}' (older versions stated another kind of digest,"
                    " of names and sizes)"
                )
        return located

    def splits(self, root: Path | None) -> Splits:
        """Load the images and hold out the validation images, chosen by a fixed permutation.

        Raises:
            NotFound, BenchError: as `locate` and `select` do, or an image cannot be read.
        """
        located = self.locate(root)
        if located.identity == ROWS:
            log.warning("%s: the indices of the images are %s", located.where, ROWS)
        files = located.state() if located.state else None  # before they are read: they may be replaced meanwhile
        train, validation, test = (self.load(selection) for selection in self.select(located))
        return Splits(train, validation, test, files, located.digest)

    def select(self, located: Located) -> tuple[Selection, Selection, Selection]:
        """Return the training, validation and test images, by index; no image is read.

        Raises:
            BenchError: a selected image is not among the files, or none remains to train on.
        """
        assert self.settings is not None
        self.check_split()
        settings, subset = self.settings, self.settings.subset or Subset()
        shuffled = generator(settings.split_seed, "split")
        pool = positions(located.train.labels, subset.train, f"training images of {self.name}")
        if isinstance(settings.validation, str) and settings.held_out:
            validation = positions(located.train.labels, settings.validation, f"training images of {self.name}")
            pool = pool[~torch.isin(pool, validation)]
            if located.test is None:
                pool = pool[torch.randperm(len(pool), generator=shuffled)]
        else:
            pool = pool[torch.randperm(len(pool), generator=shuffled)]
            validation, pool = pool[: settings.held_out], pool[settings.held_out :]
        if located.test is not None:
            test = Selection(located.test, positions(located.test.labels, subset.test, f"test images of {self.name}"))
        elif settings.files and settings.files.test:
            test = Selection(located.train, pool[: settings.files.test])
            pool = pool[settings.files.test :]
        else:
            raise BenchError(
                f"{located.where} has no test images; set 'files.test' to the number of training images to use instead"
            )
        if not len(pool):
            raise BenchError(f"no images of {self.name} remain to train on: all are held out")
        return Selection(located.train, pool), Selection(located.train, validation), test

    def load(self, selection: Selection) -> Images:
        """Return the images: loaded if small, streamed if large."""
        assert self.settings is not None
        reader, index = selection.split.reader, selection.index
        if self.settings.resize is not None:
            reader = AveragingReader(reader, self.settings.resize)
        labels = torch.from_numpy(selection.split.labels[index.numpy()])
        if self.shape[1] * self.shape[2] > LARGE_PIXELS:
            return ImageStream(reader, index, labels)
        return ImageSet(torch.from_numpy(reader.load(index.numpy())), labels)


def dataset_of(settings: DatasetSettings) -> Dataset:
    """Return the configured dataset of a protocol. Raises BenchError as `configured` does."""
    dataset: Dataset = registry.DATASETS.get(settings.name)
    return dataset.configured(settings)


def arrays(train: ImageSet, test: ImageSet) -> Located:
    """Return images in memory in the form that `Dataset.find` returns."""
    first, second = (Split(ArrayReader(images.pixels.numpy()), images.labels.numpy()) for images in (train, test))
    return Located(None, first, second, layout="part of a package")


def missing(dataset: Dataset, tried: Sequence[Path], root: Path | None) -> NotFound:
    """Return the error for a missing dataset: the paths that were tried, how to get it, its licence."""
    where = "no data root is given; set --data or BENCH_DATA"
    if root:
        where = f"looked for {' or '.join(map(str, tried))}"
    return NotFound(f"dataset '{dataset.name}' not found: {where}. {dataset.obtain} Licence: {dataset.licence}")


def _count(official: int | None, subset: str | None, validation: int | str | None, split: str) -> int | None:
    """Return how many images of a split are used; the indices of `subset` must be below the official number."""
    validation = None if validation == NO_IMAGES else validation
    for key, indices in ((f"subset.{split}", subset), ("validation", validation)):
        if isinstance(indices, str) and official is not None and ranges(indices)[-1][-1] >= official:
            raise BenchError(f"{key}: index {ranges(indices)[-1][-1]} is beyond the {official} images")
    if subset is None:
        return official
    used = set().union(*ranges(subset))
    if isinstance(validation, str):
        used |= set().union(*ranges(validation))
    return len(used)


def positions(labels: NDArray[np.int64], indices: str | None, what: str) -> Tensor:
    """Return the official indices (all of them if None), int64, [k]; each must have its image."""
    if indices is None:
        index = torch.arange(len(labels))
    else:
        index = torch.cat([torch.arange(part.start, part.stop) for part in ranges(indices)])
        if int(index[-1]) >= len(labels):
            raise BenchError(f"index {int(index[-1])} is beyond the {len(labels)} {what}")
    absent = index[torch.from_numpy(labels)[index] == ABSENT]
    if len(absent):
        available = int((labels != ABSENT).sum())
        raise BenchError(
            f"{len(absent)} of the {what} have no file ({available} have one); the first is index {int(absent[0])}"
        )
    return index
