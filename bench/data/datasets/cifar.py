"""CIFAR-10 and CIFAR-100: the official files, loss-free images named by their official index, or a hub's parquet."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import registry
from bench.config.augmentation import Crop, Flip, Rotate
from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, OFFICIAL, ROWS, Dataset, Located, Split, missing
from bench.data.downloads import OfficialFile, torchvision_datasets, unpack
from bench.data.folder import state_of, unread
from bench.data.parquet import Rows, read_rows, shard_folder
from bench.data.prepared import SelectionReader
from bench.data.readers import ArrayReader, FileReader, Pixels
from bench.errors import BenchError, NotFound, did_you_mean

SHAPE = (3, 32, 32)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100.split())
_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
COARSE_CLASSES = tuple(_COARSE.split())
"""The official names, in the order of the labels."""


@dataclass(frozen=True)
class Cifar:
    """What tells one of the two datasets from the other, and how both are read.

    `listed` is torchvision's class that lists the official files, `labels` the key of the labels in them.
    An official index is the place in the official files, one after the other.

    `columns`: the labels in a hub's parquet files, the last one those to train on. `train_sums` and `test_sums`: MD5
    sums of the files of the official binary version, in official order, which hold nothing but these labels, a byte
    each, and the pixels of one image after the other (https://www.cs.toronto.edu/~kriz/cifar.html).
    """

    name: str
    listed: str
    folder: str
    archive: str
    labels: bytes
    classes: tuple[str, ...]
    columns: dict[str, Sequence[str]]
    train_sums: tuple[str, ...]
    test_sums: tuple[str, ...]
    train_images: int = 50_000
    test_images: int = 10_000

    def find(self, root: Path | None, _settings: DatasetSettings) -> Located:
        """Return the official files, else the folder of images, else the parquet files, that lie below `root`.

        Images lie at `{cifar10,cifar10-exact,.}/{train,test}/<class>/<official index>.png`, not necessarily all,
        parquet files in `cifar10/plain_text` or `cifar100/cifar100`, as at uoft-cs/cifar10 and uoft-cs/cifar100.

        Raises:
            NotFound: there is none.
            BenchError: files are missing or damaged, or no loss-free images named by official indices.
        """
        if root is None:
            raise missing(self._dataset, (), root)
        try:
            if (root / self.folder).is_dir():
                return self._official(root / self.folder)
            for folder in self._image_folders(root):
                train, train_paths = self._images(folder / "train", self.train_images)
                test, test_paths = self._images(folder / "test", self.test_images)
                paths = train_paths + test_paths
                places = [folder / "train", folder / "test"] if folder == root else [folder]
                described = partial(state_of, folder, paths), partial(unread, places, paths)
                return Located(folder, train, test, None, *described, "images in class folders")
            if shards := shard_folder(root, (self.name,), ("plain_text", self.name)):
                return self._parquet(shards)
            if (archive := root / self.archive).is_file():
                raise NotFound(f"{archive} is not unpacked; run `bench data prepare {self.name}`")
        except OSError as error:
            raise BenchError(f"the files of {self.name} below {root} cannot be read: {error}") from error
        raise missing(self._dataset, [root / place for place in (self.folder, self.name, f"{self.name}-exact")], root)

    def download(self, root: Path) -> None:
        """Download, verify and unpack the official files below `root`, unless they are there.

        Raises:
            BenchError: they cannot be had, or not written.
        """
        listed, (train, test) = self._listed, self._files(root / self.folder)
        names = OfficialFile(root / self.folder / listed.meta["filename"], listed.meta["md5"], self.name)
        files = [*train, *test, names]  # the names of the classes only so that torchvision can read the folder too
        if all(file.is_whole() for file in files):
            return
        archive = OfficialFile(root / listed.filename, listed.tgz_md5, self.name)
        archive.fetch(listed.url)
        unpack(archive, files)

    def obtain(self, megabytes: int) -> str:
        """Return the sentence on how to get the official files."""
        return (
            f"Run `bench data prepare {self.name} --data DIR`, which downloads {megabytes} MB from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html, or put the folder {self.folder} below the data root by hand."
        )

    @property
    def _dataset(self) -> Dataset:
        dataset: Dataset = registry.DATASETS.get(self.name)
        return dataset

    @property
    def _listed(self) -> Any:
        return getattr(torchvision_datasets(), self.listed)

    def _files(self, folder: Path) -> tuple[list[OfficialFile], list[OfficialFile]]:
        """Return the official files of training and of test images, in official order."""
        train, test = (
            [OfficialFile(folder / name, md5, self.name) for name, md5 in files]
            for files in (self._listed.train_list, self._listed.test_list)
        )
        return train, test

    def _official(self, folder: Path) -> Located:
        train, test = self._files(folder)
        state = partial(state_of, folder, [file.path for file in (*train, *test)])
        return Located(folder, self._batches(train), self._batches(test), state=state, layout="official files")

    def _batches(self, files: list[OfficialFile]) -> Split:
        pixels, labels = zip(*(read_batch(file, self.labels, len(self.classes)) for file in files), strict=True)
        return Split(ArrayReader(np.concatenate(pixels)), np.concatenate(labels))

    def _parquet(self, folder: Path) -> Located:
        """Return the images of parquet files: by official index if the official sums tell their order, else by row."""
        train, test = (
            read_rows(folder, (name,), self.columns, SHAPE, count=count, formats=("PNG",))
            for name, count in (("train", self.train_images), ("test", self.test_images))
        )
        state = partial(state_of, folder, [*train.paths, *test.paths])
        key = folder, state()
        if key not in _orders:
            _orders[key] = _official_order(train, self.train_sums), _official_order(test, self.test_sums)
        first, second = (self._ordered(rows, order) for rows, order in zip((train, test), _orders[key], strict=True))
        known = all(order is not None for order in _orders[key])
        identity = f"{OFFICIAL}, by MD5 sums of labels and pixels" if known else ROWS
        return Located(folder, first, second, state=state, layout="parquet files", identity=identity)

    def _ordered(self, rows: Rows, order: NDArray[np.int64] | None) -> Split:
        labels = rows.labels[next(reversed(self.columns))]
        return (
            Split(rows.reader, labels) if order is None else Split(SelectionReader(rows.reader, order), labels[order])
        )

    def _image_folders(self, root: Path) -> Iterator[Path]:
        """Yield the folders that hold images by class. `root` itself must have every class: it could be anything."""
        for folder in (root / self.name, root / f"{self.name}-exact"):
            if any((folder / part / name).is_dir() for part in ("train", "test") for name in self.classes):
                yield folder
        if all((root / "train" / name).is_dir() for name in self.classes):
            yield root

    def _images(self, folder: Path, count: int) -> tuple[Split, list[Path]]:
        """Return the images in the class folders of `folder` by index, and their files; those missing are ABSENT.

        What lies beside the class folders, and names that begin with a dot, are no images and are passed over.
        """
        labels = np.full(count, ABSENT, np.int64)
        paths = [folder / "absent"] * count
        for place in sorted(folder.iterdir()) if folder.is_dir() else ():
            if place.name.startswith(".") or not place.is_dir():
                continue
            if place.name not in self.classes:
                raise BenchError(f"{place} is no class of {self.name}{did_you_mean(place.name, self.classes)}")
            label = self.classes.index(place.name)
            for path in place.iterdir():
                if not path.name.startswith("."):
                    index = self._index(path, count)
                    if labels[index] != ABSENT:
                        raise BenchError(f"{path} and {paths[index]} have the same index")
                    labels[index], paths[index] = label, path
        there = [paths[index] for index in np.flatnonzero(labels != ABSENT)]
        return Split(FileReader(paths, SHAPE, formats=("PNG",)), labels), there

    def _index(self, path: Path, count: int) -> int:
        """Return the official index that the file of an image is named by; there are `count` of them."""
        kind = path.suffix.lower()
        if kind in {".jpg", ".jpeg"}:
            raise BenchError(
                f"{path} is a JPEG file: lossy copies are not the images of {self.name}; use PNG files, or the dataset "
                "image_folder for these"
            )
        if kind != ".png":
            raise BenchError(f"{path} is not a PNG file")
        if not re.fullmatch("[0-9]+", path.stem):
            raise BenchError(f"{path} is not named by the image's official index, such as 00042.png")
        if (index := int(path.stem)) >= count:
            raise BenchError(f"{path}: index {index} is beyond the {count} images of this part of {self.name}")
        return index


_orders: dict[tuple[Path, str], tuple[NDArray[np.int64] | None, ...]] = {}  # of this process, by folder and state


def _official_order(rows: Rows, sums: tuple[str, ...]) -> NDArray[np.int64] | None:
    """Return the row of each official index, None unless the rows are the official files in any order.

    Args:
        rows: of a split, with the columns of labels that the binary version has.
        sums: the MD5 sums of the files of the split, of equal length, in the binary version.
    """
    index = np.arange(len(rows.reader))
    labels = np.stack([*rows.labels.values()], axis=1).astype(np.uint8)
    content = np.concatenate([labels, rows.reader.load(index).reshape(len(index), -1)], axis=1)
    found = [hashlib.md5(part.data, usedforsecurity=False).hexdigest() for part in np.split(content, len(sums))]
    parts = np.split(index, len(sums))
    return np.concatenate([parts[found.index(md5)] for md5 in sums]) if {*found} == {*sums} else None


def read_batch(file: OfficialFile, key: bytes, classes: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Return the images of an official file, uint8, [n, 3, 32, 32], and the labels that it has under `key`, [n].

    The file is a pickle of Python 2: a dict with, among others, the pixels as an array [n, 3072], each row the red,
    the green and the blue pixels of an image, from left to right and from top to bottom (https://www.cs.toronto.edu/~kriz/cifar.html).

    Raises:
        BenchError: the file is missing, has another MD5 sum, asks for anything but arrays, or holds no such images.
    """
    content = file.read()
    try:
        batch = _ArraysOnly(content, file).load()
        pixels, labels = batch[b"data"], np.array(batch[key], np.int64)
        sound = (
            isinstance(pixels, np.ndarray)
            and pixels.dtype == np.uint8
            and pixels.shape == (len(labels), 3 * 32 * 32)
            and 0 <= labels.min() <= labels.max() < classes
        )
    except BenchError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise file.damaged(f"it cannot be parsed ({type(error).__name__}: {error})") from error
    if not sound:
        raise file.damaged("it holds no images of 3x32x32 pixels with a label each")
    return pixels.reshape(-1, *SHAPE), labels


def _dtype(name: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    """Return the type of an array's elements; Python 2's numpy wrote the flags as 0 and 1, of which numpy now warns."""
    made: np.dtype[Any] = np.dtype(name, align=bool(align), copy=bool(copy))
    return made


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's function has moved; pickles know it by either name
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy arrays.

    A pickle is a program, so whatever else it asks for is refused and not even imported.
    """

    def __init__(self, content: bytes, file: OfficialFile) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        """Return what a batch of images needs. Raises BenchError for everything else."""
        if (module, name) not in _KNOWN:
            raise self._file.damaged(f"it asks for {module}.{name}, which images do not need")
        return _KNOWN[module, name]


# the sums: rai-project/dldataset, vision/cifar10.go and cifar100.go; those of CIFAR-10 also in other public code
CIFAR10 = Cifar(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    b"labels",
    CIFAR10_CLASSES,
    columns={"label": CIFAR10_CLASSES},
    train_sums=(
        "5dd7e06a14cb22eb9f671a540d1b7c25",
        "5ea93a67294ea407fff1d09f752e9692",
        "942cd6a4bcdd0dd3c604fbe906cb4421",
        "ae636b3ba5c66a11e91e8cb52e771fcb",
        "53f37980c15c3d472c316c40844f3f0d",
    ),
    test_sums=("803d5f7f4d78ea53de84dbe85f74fb6d",),
)
CIFAR100 = Cifar(
    "cifar100",
    "CIFAR100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    b"fine_labels",
    CIFAR100_CLASSES,
    columns={"coarse_label": COARSE_CLASSES, "fine_label": CIFAR100_CLASSES},
    train_sums=("6172c7755cfe09b2fe270c85cebc1b15",),
    test_sums=("4499cfba6c016c1be1438163640a0898",),
)

_LICENCE = "none stated by the authors, who ask to be cited; used for research."
_CITATION = (
    "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, University of Toronto, 2009"
)

# mean, std and augmentation: Rice, Wong and Kolter, Overfitting in Adversarially Robust Deep Learning, released code
cifar10 = Dataset(
    name="cifar10",
    title="CIFAR-10",
    classes=10,
    shape=SHAPE,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
    train_images=CIFAR10.train_images,
    test_images=CIFAR10.test_images,
    licence=_LICENCE,
    citation=_CITATION,
    find=CIFAR10.find,
    augmentation=(Crop(padding=4, mode="reflect"), Flip()),
    obtain=CIFAR10.obtain(megabytes=170),
    download=CIFAR10.download,
)
cifar100 = Dataset(
    name="cifar100",
    title="CIFAR-100",
    classes=100,
    shape=SHAPE,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    train_images=CIFAR100.train_images,
    test_images=CIFAR100.test_images,
    licence=_LICENCE,
    citation=_CITATION,
    find=CIFAR100.find,
    augmentation=(Crop(padding=4, mode="zero"), Flip(), Rotate(degrees=15)),
    obtain=CIFAR100.obtain(megabytes=169),
    download=CIFAR100.download,
)
