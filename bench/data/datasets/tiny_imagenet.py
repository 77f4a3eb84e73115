"""`tiny_imagenet`: 200 classes of ImageNet at 64x64 pixels, as the course CS231n hands them out, or a hub's parquet."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.config.augmentation import Crop, Flip
from bench.config.protocol import DatasetSettings
from bench.data.dataset import ABSENT, OFFICIAL, ROWS, Dataset, Located, Split, missing
from bench.data.folder import content_digest, images_in, state_of, unread
from bench.data.parquet import Rows, read_rows, shard_folder
from bench.data.prepared import ImageFiles, SelectionReader, with_gaps
from bench.data.readers import FileReader
from bench.errors import BenchError

FOLDER = "tiny-imagenet-200"
CLASSES = 200
OF_A_CLASS = 500  # training images
IMAGES = {"train": CLASSES * OF_A_CLASS, "val": 10_000}
SHAPE = (3, 64, 64)

_SYNSETS = """
n02124075 n04067472 n04540053 n04099969 n07749582 n01641577 n02802426 n09246464 n07920052 n03970156 n03891332 n02106662
n03201208 n02279972 n02132136 n04146614 n07873807 n02364673 n04507155 n03854065 n03838899 n03733131 n01443537 n07875152
n03544143 n09428293 n03085013 n02437312 n07614500 n03804744 n04265275 n02963159 n02486410 n01944390 n09256479 n02058221
n04275548 n02321529 n02769748 n02099712 n07695742 n02056570 n02281406 n01774750 n02509815 n03983396 n07753592 n04254777
n02233338 n04008634 n02823428 n02236044 n03393912 n07583066 n04074963 n01629819 n09332890 n02481823 n03902125 n03404251
n09193705 n03637318 n04456115 n02666196 n03796401 n02795169 n02123045 n01855672 n01882714 n02917067 n02988304 n04398044
n02843684 n02423022 n02669723 n04465501 n02165456 n03770439 n02099601 n04486054 n02950826 n03814639 n04259630 n03424325
n02948072 n03179701 n03400231 n02206856 n03160309 n01984695 n03977966 n03584254 n04023962 n02814860 n01910747 n04596742
n03992509 n04133789 n03937543 n02927161 n01945685 n02395406 n02125311 n03126707 n04532106 n02268443 n02977058 n07734744
n03599486 n04562935 n03014705 n04251144 n04356056 n02190166 n03670208 n02002724 n02074367 n04285008 n04560804 n04366367
n02403003 n07615774 n04501370 n03026506 n02906734 n01770393 n04597913 n03930313 n04118538 n04179913 n04311004 n02123394
n04070727 n02793495 n02730930 n02094433 n04371430 n04328186 n03649909 n04417672 n03388043 n01774384 n02837789 n07579787
n04399382 n02791270 n03089624 n02814533 n04149813 n07747607 n03355925 n01983481 n04487081 n03250847 n03255030 n02892201
n02883205 n03100240 n02415577 n02480495 n01698640 n01784675 n04376876 n03444034 n01917289 n01950731 n03042490 n07711569
n04532670 n03763968 n07768694 n02999410 n03617480 n06596364 n01768244 n02410509 n03976657 n01742172 n03980874 n02808440
n02226429 n02231487 n02085620 n01644900 n02129165 n02699494 n03837869 n02815834 n07720875 n02788148 n02909870 n03706229
n07871810 n03447447 n02113799 n12267677 n03662601 n02841315 n07715103 n02504458
"""
SYNSETS = tuple(_SYNSETS.split())
"""The classes in the order of the official `wnids.txt`, which parquet files lack."""


def locate(root: Path | None, _settings: DatasetSettings) -> Located:
    """Return the official folder, `root / "tiny-imagenet-200"` or `root` itself, as `Dataset.find` does.

    Without it, the parquet files in `root / "tiny-imagenet" / "data"`, as at zh-plus/tiny-imagenet.

    The test images are the official validation images, as the official test images have no public labels. They may be
    in class folders instead of being listed in `val_annotations.txt`, as `ImageFolder` needs them. The index of
    a training image is 500 times the rank of its class in `wnids.txt`, plus the number in its name; a test image's is
    the number in its name.

    Raises:
        NotFound: neither has a file `wnids.txt`, and there are no parquet files.
        BenchError: a file is not what the official one is.
    """
    folders = [root / FOLDER, root] if root else []
    folder = next((folder for folder in folders if (folder / "wnids.txt").is_file()), None)
    if folder is None:
        if root and (shards := shard_folder(root, ("tiny-imagenet", "tiny_imagenet", FOLDER), ("data", "default"))):
            return _parquet(shards)
        raise missing(tiny_imagenet, [folder / "wnids.txt" for folder in folders], root)
    classes, annotations = folder / "wnids.txt", folder / "val" / "val_annotations.txt"
    names = _lines(classes)
    if len(set(names)) != CLASSES or len(names) != CLASSES:
        raise BenchError(f"{classes} must name {CLASSES} classes, one a line")
    ranks = {name: rank for rank, name in enumerate(names)}
    train = {}
    for name, rank in ranks.items():
        for path in _of_class(folder / "train" / name):
            train[rank * OF_A_CLASS + _numbered(path, name, OF_A_CLASS)] = (path, rank)
    by_class = {path: rank for name, rank in ranks.items() for path in _of_class(folder / "val" / name)}
    if not by_class:
        label_of = _annotated(annotations, ranks)
        for path in images_in(folder / "val" / "images"):
            if path.name not in label_of:
                raise BenchError(f"{annotations} does not name the class of {path}")
            by_class[path] = label_of[path.name]
    test = {_numbered(path, "val", IMAGES["val"]): (path, rank) for path, rank in by_class.items()}
    for part, images in ("train", train), ("val", test):
        if not images:
            raise BenchError(f"{folder / part} holds no images")
    listed = [classes, annotations] if annotations.is_file() else [classes]
    files = [*listed, *(path for images in (train, test) for path, _ in images.values())]
    boxes = [folder / "train" / name / f"{name}_boxes.txt" for name in names]
    rest = partial(unread, [folder / "train", folder / "val"], files + boxes)
    described = partial(content_digest, folder, files), partial(state_of, folder, files), rest
    return Located(
        folder, _part(train, IMAGES["train"]), _part(test, IMAGES["val"]), *described, layout="official files"
    )


def _of_class(folder: Path) -> list[Path]:
    """Return the images of a class, in its folder or in the folder `images` there."""
    place = folder / "images" if (folder / "images").is_dir() else folder
    return images_in(place) if place.is_dir() else []


def _parquet(folder: Path) -> Located:
    """Return the images of parquet files: by official index if every image has its official name, else by row."""
    train = read_rows(folder, ("train",), {"label": SYNSETS}, SHAPE)
    test = read_rows(folder, ("valid", "validation", "val"), {"label": SYNSETS}, SHAPE)
    splits, named = [], True
    for rows, part in ((train, "train"), (test, "val")):
        if not rows.named_classes:
            raise BenchError(f"{rows.paths[0]} does not name the {CLASSES} classes by synsets, such as {SYNSETS[0]}")
        index = _official_indices(rows, part)
        if index is None:
            named, index = False, _by_class(rows, part)
        labels = np.full(IMAGES[part], ABSENT, np.int64)
        labels[index] = rows.labels["label"]
        splits.append(with_gaps(SelectionReader(rows.reader, np.argsort(index)), labels))
    paths = [*train.paths, *test.paths]
    described = partial(content_digest, folder, paths), partial(state_of, folder, paths)
    identity = f"{OFFICIAL}, by the names of the images" if named else ROWS
    return Located(folder, splits[0], splits[1], *described, layout="parquet files", identity=identity)


def _official_indices(rows: Rows, part: str) -> NDArray[np.int64] | None:
    """Return the official index of each row by the name of its image, None if some have no official name."""
    indices = []
    for name, label in zip(rows.names, rows.labels["label"].tolist(), strict=True):
        prefix, first = (SYNSETS[label], label * OF_A_CLASS) if part == "train" else ("val", 0)
        number = _number(name or "", prefix, OF_A_CLASS if part == "train" else IMAGES["val"])
        if number is None:
            return None
        indices.append(first + number)
    if len({*indices}) < len(indices):
        raise BenchError(f"{rows.paths[0].parent}: two images of '{part}' have the same name")
    return np.array(indices, np.int64)


def _by_class(rows: Rows, part: str) -> NDArray[np.int64]:
    """Return an index for each row of images without official names: training images one class after the other."""
    labels, of_a_class = rows.labels["label"], IMAGES[part] // CLASSES
    if (np.bincount(labels, minlength=CLASSES) != of_a_class).any():
        raise BenchError(f"{rows.paths[0].parent}: '{part}' must hold {of_a_class} images of each class")
    return np.argsort(np.argsort(labels, kind="stable")) if part == "train" else np.arange(len(labels))


def _part(images: dict[int, tuple[Path, int]], count: int) -> Split:
    """Return a part of `count` images, of which those at the indices in `images` are there."""
    labels = np.full(count, ABSENT, np.int64)
    for index, (_, label) in images.items():
        labels[index] = label
    return with_gaps(FileReader([images[index][0] for index in sorted(images)], SHAPE), labels)


def _numbered(path: Path, prefix: str, count: int) -> int:
    """Return the number in the name of a file such as `val_17.JPEG`; raises BenchError if it has no such name."""
    number = _number(path.name, prefix, count)
    if number is None:
        raise BenchError(f"{path} is no file of the official archive: not {prefix}_0.JPEG to {prefix}_{count - 1}.JPEG")
    return number


def _number(name: str, prefix: str, count: int) -> int | None:
    match = re.fullmatch(re.escape(prefix) + r"_(0|[1-9][0-9]{0,5})\.JPEG", name)
    return int(match[1]) if match and int(match[1]) < count else None


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
    train_images=IMAGES["train"],
    test_images=IMAGES["val"],
    licence="that of ImageNet: for non-commercial research and education.",
    citation="Le and Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS231N, 2015",
    find=ImageFiles(locate),
    augmentation=(Crop(padding=8, mode="reflect"), Flip()),  # the padding is declared: no recipe with a source is known
    obtain="Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there.",
)
