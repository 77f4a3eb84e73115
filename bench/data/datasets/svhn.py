"""SVHN, cropped digits: house numbers from street photographs, in the official MATLAB files or a hub's parquet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.config.protocol import DatasetSettings
from bench.data.dataset import ROWS, Dataset, Located, Split, missing
from bench.data.downloads import OfficialFile, torchvision_datasets
from bench.data.folder import state_of
from bench.data.parquet import read_rows, shard_folder
from bench.data.readers import ArrayReader, Pixels
from bench.errors import BenchError
from bench.utils.progress import ProgressCallback, no_progress

NAMES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
DIGITS = tuple("0123456789")
IMAGES = {"train": 73_257, "test": 26_032}
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class _MatPixels:
    """The `count` images of a MATLAB file, decompressed when the first of them is asked for: that takes seconds."""

    file: OfficialFile
    count: int

    def __len__(self) -> int:
        return self.count

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Return the images at `index`, uint8, [k, 3, 32, 32]."""
        return self._all.load(index, progress)

    @cached_property
    def _all(self) -> ArrayReader:
        pixels = _variable(self.file, "X")
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, self.count):
            raise self.file.damaged(f"it holds no {self.count} images of 32x32x3 pixels")
        return ArrayReader(pixels.transpose(3, 2, 0, 1))


def find(root: Path | None, _settings: DatasetSettings) -> Located:
    """Return the official files, in `root` or in its folder `svhn`, else the parquet files in `svhn/cropped_digits`.

    Nothing but labels is read of them yet. The rows of parquet files are numbered as they come: official sums of the
    pixels are not known.

    Raises:
        NotFound: there is neither.
        BenchError: one of them is missing, damaged or not the official file.
    """
    if root is None:
        raise missing(svhn, (), root)
    try:
        folder = _folder(root)
        if folder is None and (shards := shard_folder(root, ("svhn",), ("cropped_digits",))):
            return _parquet(shards)
    except OSError as error:
        raise BenchError(f"the files of svhn below {root} cannot be read: {error}") from error
    if folder is None:
        raise missing(svhn, [place / NAMES["train"] for place in (root, root / "svhn")], root)
    (train, _), (test, _) = _files(folder)
    state = partial(state_of, folder, [train.path, test.path])
    return Located(folder, _part(train), _part(test), state=state, layout="official files")


def _parquet(folder: Path) -> Located:
    train, test = (
        read_rows(folder, (part,), {"label": DIGITS}, SHAPE, count=count, formats=("PNG",))
        for part, count in IMAGES.items()
    )
    first, second = (Split(rows.reader, rows.labels["label"]) for rows in (train, test))
    state = partial(state_of, folder, [*train.paths, *test.paths])
    return Located(folder, first, second, state=state, layout="parquet files", identity=ROWS)


def download(root: Path) -> None:
    """Download and verify the official files into the folder `svhn` below `root`, unless they are there.

    A file that lies in `root` already stays there, and the other one joins it.

    Raises:
        BenchError: they cannot be had, or not written.
    """
    for file, url in _files(_folder(root) or root / "svhn"):
        file.fetch(url)


def _folder(root: Path) -> Path | None:
    """Return where one of the files lies."""
    places = (place for place in (root, root / "svhn") if any((place / name).is_file() for name in NAMES.values()))
    return next(places, None)


def _files(folder: Path) -> list[tuple[OfficialFile, str]]:
    """Return the files of training and test images, with the addresses they come from."""
    listed = torchvision_datasets().SVHN.split_list
    return [(OfficialFile(folder / listed[part][1], listed[part][2], "svhn"), listed[part][0]) for part in NAMES]


def _part(file: OfficialFile) -> Split:
    """Return the images of a file, with labels: the digit 0 has the label 10 in it."""
    file.verify()
    labels = _variable(file, "y").ravel()
    if labels.dtype.kind not in "iuf" or not len(labels) or not 1 <= labels.min() <= labels.max() <= 10:
        raise file.damaged("its labels are not 1 to 10")
    return Split(_MatPixels(file, len(labels)), labels.astype(np.int64) % 10)


def _variable(file: OfficialFile, name: str) -> NDArray[Any]:
    """Return one of the file's variables; the others are passed over, not decompressed."""
    from scipy.io import loadmat

    try:
        value: NDArray[Any] = np.asarray(loadmat(file.path, variable_names=[name])[name])
    except Exception as error:  # a broken file can raise anything
        raise file.damaged(f"it cannot be parsed ({type(error).__name__}: {error})") from error
    return value


# mean, std and no augmentation: Rice, Wong and Kolter, Overfitting in Adversarially Robust Deep Learning, released code
svhn = Dataset(
    name="svhn",
    title="SVHN, cropped digits",
    classes=10,
    shape=SHAPE,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    train_images=IMAGES["train"],
    test_images=IMAGES["test"],
    licence="no licence text; its authors state that it is for non-commercial use only.",
    citation="Netzer, Wang, Coates, Bissacco, Wu and Ng, Reading Digits in Natural Images with Unsupervised Feature "
    "Learning, NIPS workshop, 2011",
    find=find,
    obtain="Run `bench data prepare svhn --data DIR`, which downloads 246 MB from "
    "http://ufldl.stanford.edu/housenumbers/, or put train_32x32.mat and test_32x32.mat into the data root by hand.",
    download=download,
)
