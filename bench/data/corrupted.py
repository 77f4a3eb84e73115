"""The corrupted test images of a final evaluation: computed, or read as they are published."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.config.corruptions import SEVERITIES, Corruptions
from bench.data.corruptions import corrupted
from bench.data.dataset import CHUNK, LARGE_PIXELS, Dataset, Images, ImageSet, Selection, Split, positions
from bench.data.datasets.tiny_imagenet import SYNSETS
from bench.data.folder import below, classes_in, content_digest, labelled
from bench.data.readers import ArrayReader, FileReader, Pixels
from bench.errors import BenchError, NotFound


class Version(NamedTuple):
    """The test images under one corruption of one severity.

    `sha256`: of the names and contents of the files they come from, or of the pixels if they were computed.
    """

    name: str
    images: Images
    sha256: str


def check_corruptions(settings: Corruptions, dataset: Dataset, root: Path | None) -> None:
    """Check that the corrupted images can be had, without reading them.

    Raises:
        NotFound: there is no such folder below the data root, or a corruption is not in it.
        BenchError: a file has another layout, or the images of the dataset cannot be corrupted.
    """
    if settings.path is None:
        channels, height, width = dataset.shape
        if channels not in (1, 3) or height * width > LARGE_PIXELS:
            raise BenchError(
                f"corruptions are computed for images of 1 or 3 channels and at most 128x128 pixels, not "
                f"{channels}x{height}x{width}; give the 'path' of published ones"
            )
        return
    for kind, severity in settings.versions:
        _located(settings, kind, severity, dataset, root)


def versions(settings: Corruptions, dataset: Dataset, test: Images, root: Path | None) -> Iterator[Version]:
    """Yield the versions of the test images, in the order of `settings.versions`, on their device.

    Raises:
        NotFound, BenchError: as `check_corruptions`, or published labels are not those of the test images, or the
            versions have different images.
    """
    check_corruptions(settings, dataset, root)
    device, names = test.labels.device, None
    original = None if settings.path else _pixels(test)
    for kind, severity in settings.versions:
        name = f"{kind} {severity}"
        if original is not None:
            pixels = corrupted(original, kind, severity)
            digest = hashlib.sha256(pixels.data).hexdigest()
            yield Version(name, ImageSet(torch.from_numpy(pixels), test.labels.cpu()).to(device), digest)
            continue
        found = _located(settings, kind, severity, dataset, root)
        images = dataset.load(found.selection)
        if found.names is None and not torch.equal(images.labels, test.labels.cpu()):
            raise BenchError(f"{found.folder / 'labels.npy'}: these labels are not those of the test images")
        if names not in (None, found.names):
            raise BenchError(f"{found.folder}: the folder of '{name}' has other images than those before it")
        names = found.names
        yield Version(name, images.to(device), content_digest(found.folder, found.files))


def _pixels(images: Images) -> Pixels:
    batches = torch.split(torch.arange(len(images), device=images.labels.device), CHUNK)
    return np.concatenate([pixels.cpu().numpy() for pixels in images.read(batches)])


class _Located(NamedTuple):
    """The published images of one corruption and severity; `names`: in a folder of classes, their paths in it."""

    folder: Path
    files: list[Path]
    selection: Selection
    names: tuple[str, ...] | None


def _located(settings: Corruptions, kind: str, severity: int, dataset: Dataset, root: Path | None) -> _Located:
    assert settings.path is not None
    folder = below(root, settings.path) if root else None
    if folder is None or not folder.is_dir():
        where = f"{folder} does not exist" if folder else "no data root is given; set --data or BENCH_DATA"
        raise NotFound(f"corruptions: {where}; unpack the published archive there, or leave out 'path'")
    if (folder / "labels.npy").is_file():
        return _in_array(folder, kind, severity, dataset)
    return _in_folders(folder, kind, severity, dataset)


def _in_array(folder: Path, kind: str, severity: int, dataset: Dataset) -> _Located:
    """Return the images of CIFAR-10-C and CIFAR-100-C: an array a corruption, the five severities one after another."""
    path, labels_path = folder / f"{kind}.npy", folder / "labels.npy"
    if not path.is_file():
        raise NotFound(f"corruptions: {path} does not exist; list the existing ones in 'kinds'")
    pixels, labels = _array(path), _array(labels_path)
    resized = dataset.settings and dataset.settings.resize
    if dataset.shape[0] != 3 or (dataset.shape[1:] != (32, 32) and not resized):
        raise BenchError(f"{folder} has colour images of 32x32 pixels, unlike {dataset.name}")
    count = len(pixels) // len(SEVERITIES)
    if pixels.dtype != np.uint8 or pixels.shape != (count * len(SEVERITIES), 32, 32, 3):
        raise BenchError(f"{path} has {pixels.dtype} {list(pixels.shape)}, not uint8 [50000, 32, 32, 3]")
    if labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise BenchError(f"{labels_path} has {labels.dtype} {list(labels.shape)}, not a whole number for each image")
    of_severity = slice((severity - 1) * count, severity * count)
    split = Split(ArrayReader(pixels[of_severity].transpose(0, 3, 1, 2)), labels[of_severity].astype(np.int64))
    subset = dataset.settings and dataset.settings.subset
    index = positions(split.labels, subset.test if subset else None, f"images of {path}")
    return _Located(folder, [path, labels_path], Selection(split, index), None)


def _array(path: Path) -> NDArray[Any]:
    """Return an array, mapped from its file; nothing is unpickled."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    return array


def _in_folders(folder: Path, kind: str, severity: int, dataset: Dataset) -> _Located:
    """Return the images of Tiny-ImageNet-C: a folder a corruption, a severity and a class."""
    place = folder / kind / str(severity)
    if not place.is_dir():
        raise NotFound(f"corruptions: {place} does not exist; list the existing ones in 'kinds'")
    settings = dataset.settings
    if settings and settings.subset and settings.subset.test:
        raise BenchError(f"{folder} does not say which test image is which; leave out 'subset.test'")
    classes = classes_in(place)
    order = SYNSETS if dataset.name == "tiny_imagenet" else sorted(classes)
    if sorted(order) != sorted(classes) or len(order) != dataset.classes:
        raise BenchError(
            f"{place} has {len(classes)} class folders, which are not the {dataset.classes} of the dataset"
        )
    paths, labels = labelled({classes[name]: label for label, name in enumerate(order)})
    selection = Selection(Split(FileReader(paths, dataset.shape), labels), torch.arange(len(paths)))
    return _Located(folder, paths, selection, tuple(path.relative_to(place).as_posix() for path in paths))
