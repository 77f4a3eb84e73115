"""`npz`: images of your own in one .npz file, named as MedMNIST or as Keras names them, described by `files`."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bench.config.protocol import DatasetSettings, Files
from bench.data.dataset import Located, Split, missing
from bench.data.datasets.image_folder import own_dataset
from bench.data.folder import below, state_of
from bench.data.readers import ArrayReader, Pixels
from bench.errors import BenchError
from bench.utils.files import file_sha256

NAMES = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
"""The keys of images and labels, MedMNIST's and Keras's."""

UNUSED = {"val_images", "val_labels"}
"""MedMNIST's keys of further images."""


def find(root: Path | None, settings: DatasetSettings) -> Located:
    """Return the arrays in the file below `root` at the suite's `files.path`, as `Dataset.find` does.

    Images are uint8, [n, height, width] or [n, height, width, channels]; labels are whole numbers, [n] or [n, 1].
    """
    files = settings.files
    assert files is not None
    if root is None or not (path := below(root, files.path)).exists():
        raise missing(npz, [root / files.path] if root else [], root)
    state = state_of(path.parent, [path])  # before it is read: it may be replaced meanwhile
    with open_npz(path) as arrays:
        train, test = (_part(path, arrays, part, files) for part in ("train", "test"))
    if train is None:
        raise BenchError(f"{path} has no key 'train_images' or 'x_train'; it has {', '.join(arrays.files) or 'none'}")
    used = {key for part in NAMES for key in _keys(arrays, part) or ()} | UNUSED
    rest = [str(path / key) for key in arrays.files if key not in used]
    described = partial(file_sha256, path), lambda: state, lambda: rest
    return Located(path, train, test, *described, ".npz file", "order of the arrays")


def open_npz(path: Path) -> Any:
    """Return the arrays of an .npz file, to be closed; raises BenchError if it is none."""
    try:
        arrays = np.load(path, allow_pickle=False)
    except (BadZipFile, EOFError, OSError, ValueError) as error:
        raise BenchError(f"{path} is no .npz file, or a damaged one: {error}") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise BenchError(f"{path} is no .npz file: it holds a single array")
    return arrays


def _part(path: Path, arrays: Any, part: str, files: Files) -> Split | None:
    """Return the images and labels of a part, None if the file has no images of it."""
    names = _keys(arrays, part)
    if names is None:
        return None
    images, labels = labelled(path, arrays, names, files.shape, files.classes)
    absent = np.flatnonzero(np.bincount(labels, minlength=files.classes) == 0)
    if len(absent):
        raise BenchError(f"{path}: '{names[1]}' has no image of class {absent[0]}; there are {files.classes} classes")
    return Split(ArrayReader(images.transpose(0, 3, 1, 2)), labels)


def labelled(
    path: Path, arrays: Any, names: tuple[str, str], shape: tuple[int, int, int], classes: int
) -> tuple[Pixels, NDArray[np.int64]]:
    """Return images (uint8, [n, height, width, channels]) and labels ([n]) of an opened file, checked.

    Raises:
        BenchError: an array is missing or damaged, or is not what `shape` (channels, height, width) and `classes` say.
    """
    images, labels = (read_array(path, arrays, key) for key in names)
    channels, height, width = shape
    if images.dtype != np.uint8:
        raise BenchError(f"{path}: '{names[0]}' holds {images.dtype}, not uint8")
    if images.ndim == 3:
        images = images[..., None]
    if not len(images) or images.shape[1:] != (height, width, channels):
        stated = f"images of height {height}, width {width} and {channels} channels"
        raise BenchError(f"{path}: '{names[0]}' has the shape {shape_text(images)}; the suite states {stated}")
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        stated = f"{labels.dtype} of shape {shape_text(labels)}"
        raise BenchError(f"{path}: '{names[1]}' holds {stated}, not one whole number for each of {len(images)} images")
    labels = labels.reshape(-1).astype(np.int64)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise BenchError(f"{path}: '{names[1]}' has the label {wrong[0]}; the suite states {classes} classes")
    return images, labels


def _keys(arrays: Any, part: str) -> tuple[str, str] | None:
    return next((names for names in NAMES[part] if names[0] in arrays), None)


def read_array(path: Path, arrays: Any, key: str) -> Any:
    """Return one array of an opened file; raises BenchError if it is missing or damaged."""
    try:
        return arrays[key]
    except KeyError:
        raise BenchError(f"{path} has no key '{key}'; it has {', '.join(arrays.files)}") from None
    except (BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise BenchError(f"{path}: '{key}' cannot be read: {error or 'out of memory'}") from error


def shape_text(array: Any) -> str:
    """Return the shape of an array for a sentence."""
    return "[" + ", ".join(map(str, array.shape)) + "]"


npz = own_dataset("npz", "Images of your own, in one .npz file", find, "Put your file there.")
