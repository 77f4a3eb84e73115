"""`tiny_imagenet`: 200 classes of ImageNet at 64x64 pixels, as the course CS231n hands them out."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from bench.config.augmentation import Crop, Flip
from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, Dataset, Located, Split, missing
from bench.data.folder import content_digest, images_in, state_of, unread
from bench.data.prepared import ImageFiles, with_gaps
from bench.data.readers import FileReader
from bench.errors import BenchError

FOLDER = "tiny-imagenet-200"
CLASSES = 200
OF_A_CLASS = 500  # training images
SHAPE = (3, 64, 64)


def locate(root: Path | None, _settings: DatasetSettings) -> Located:
    """Return the official folder, `root / "tiny-imagenet-200"` or `root` itself, as `Dataset.find` does.

    The test images are the official validation images, as the official test images have no public labels. The index of
    a training image is 500 times the rank of its class in `wnids.txt`, plus the number in its name; a test image's is
    the number in its name.

    Raises:
        NotFound: neither has a file `wnids.txt`.
        BenchError: a file is not what the official one is.
    """
    folders = [root / FOLDER, root] if root else []
    folder = next((folder for folder in folders if (folder / "wnids.txt").is_file()), None)
    if folder is None:
        raise missing(tiny_imagenet, [folder / "wnids.txt" for folder in folders], root)
    classes, annotations = folder / "wnids.txt", folder / "val" / "val_annotations.txt"
    names = _lines(classes)
    if len(set(names)) != CLASSES or len(names) != CLASSES:
        raise BenchError(f"{classes} must name {CLASSES} classes, one a line")
    ranks = {name: rank for rank, name in enumerate(names)}
    train = {}
    for name, rank in ranks.items():
        of_class = folder / "train" / name / "images"
        for path in images_in(of_class) if of_class.is_dir() else ():
            train[rank * OF_A_CLASS + _number(path, name, OF_A_CLASS)] = (path, rank)
    label_of = _annotated(annotations, ranks)
    test = {}
    for path in images_in(folder / "val" / "images"):
        if path.name not in label_of:
            raise BenchError(f"{annotations} does not name the class of {path}")
        test[_number(path, "val", 10_000)] = (path, label_of[path.name])
    for part, images in ("train", train), ("val", test):
        if not images:
            raise BenchError(f"{folder / part} holds no images")
    files = [classes, annotations, *(path for images in (train, test) for path, _ in images.values())]
    boxes = [folder / "train" / name / f"{name}_boxes.txt" for name in names]
    rest = partial(unread, [folder / "train", folder / "val"], files + boxes)
    described = partial(content_digest, folder, files), partial(state_of, folder, files), rest
    return Located(folder, _part(train, CLASSES * OF_A_CLASS), _part(test, 10_000), *described)


def _part(images: dict[int, tuple[Path, int]], count: int) -> Split:
    """Return a part of `count` images, of which those at the indices in `images` are there."""
    labels = np.full(count, ABSENT, np.int64)
    for index, (_, label) in images.items():
        labels[index] = label
    return with_gaps(FileReader([images[index][0] for index in sorted(images)], SHAPE), labels)


def _number(path: Path, prefix: str, count: int) -> int:
    """Return the number in a name such as `val_17.JPEG`."""
    match = re.fullmatch(re.escape(prefix) + r"_(0|[1-9][0-9]{0,5})\.JPEG", path.name)
    if match is None or int(match[1]) >= count:
        raise BenchError(f"{path} is no file of the official archive: not {prefix}_0.JPEG to {prefix}_{count - 1}.JPEG")
    return int(match[1])


def _annotated(annotations: Path, ranks: dict[str, int]) -> dict[str, int]:
    """Return the label of each validation image: a line is its name, its class and four numbers, with tabs between."""
    labels = {}
    for line in _lines(annotations):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in ranks:
            raise BenchError(f"{annotations} names a class for {name} that is not in wnids.txt: '{wnid}'")
        labels[name] = ranks[wnid]
    return labels


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        return [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


tiny_imagenet = Dataset(
    name="tiny_imagenet",
    title="Tiny ImageNet",
    classes=CLASSES,
    shape=SHAPE,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    train_images=CLASSES * OF_A_CLASS,
    test_images=10_000,
    licence="that of ImageNet: for non-commercial research and education.",
    citation="Le and Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS231N, 2015",
    find=ImageFiles(locate),
    augmentation=(Crop(padding=8, mode="reflect"), Flip()),  # the padding is declared: no recipe with a source is known
    obtain="Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there.",
)
