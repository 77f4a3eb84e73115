"""`restricted_imagenet`: nine super-classes of ImageNet, from a local copy of ImageNet sorted into synset folders.

A hub's parquet files are unpacked into such folders first: their rows are shuffled, and reading one image of a parquet
file means reading its whole row group.
"""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.config.augmentation import Crop, Flip
from bench.config.protocol import DatasetSettings
from bench.data.dataset import Dataset, Located, Split, missing
from bench.data.folder import classes_in, content_digest, images_in, labelled, state_of, unread
from bench.data.parquet import read_rows, shard_folder
from bench.data.prepared import ImageFiles
from bench.data.readers import FileReader
from bench.errors import BenchError, NotFound
from bench.utils.progress import ProgressCallback

SUPER_CLASSES = {
    "dog": range(151, 269),
    "cat": range(281, 286),
    "frog": range(30, 33),
    "turtle": range(33, 38),
    "bird": range(80, 101),
    "monkey": range(365, 383),
    "fish": range(389, 398),
    "crab": range(118, 122),
    "insect": range(300, 320),
}
"""In the order of the labels: the ImageNet classes of each (robustness.tools.constants, released code of MadryLab)."""

TEST_IMAGES = 10_150  # 50 of each of the 203 synsets
SHAPE = (3, 224, 224)
SHORTER_SIDE = 256  # pixels; the middle 224x224 are cut out
SYNSET = "n[0-9]{8}"  # its name
SHOWN = 5  # missing synsets that an error names
FOLDERS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", ".")
UNPACKED = "ILSVRC2012"
NAME = r"((?:(n[0-9]{8})_[0-9]+)|ILSVRC2012_val_[0-9]{8})(?:_(n[0-9]{8}))?\.JPEG"
"""A name in parquet files: the official one, with the synset appended before the suffix."""


def synsets() -> dict[str, int]:
    """Return the label of each of the 203 synsets, sorted by synset."""
    known = all_synsets()
    labels = {known[index]: label for label, indices in enumerate(SUPER_CLASSES.values()) for index in indices}
    return dict(sorted(labels.items()))


def all_synsets() -> list[str]:
    """Return the 1,000 synsets of ImageNet, in the order of its class indices.

    A class index of ImageNet is the rank of the synset among all 1,000, so the list is timm's and never that of a
    folder, which may hold some of them only.
    """
    with warnings.catch_warnings():  # the import tells timm's developers of torch's plans
        warnings.simplefilter("ignore")
        from timm.data import ImageNetInfo

    return sorted(ImageNetInfo("imagenet-1k").label_names())


def locate(root: Path | None, settings: DatasetSettings) -> Located:
    """Return `train/<synset>/*` and `val/<synset>/*` of the folder that holds ImageNet, as `Dataset.find` does.

    The test images are ImageNet's validation images. Each part is in the order of the file names, which is ImageNet's
    own order of the validation images. Without a stated digest all must be there.
    """
    folders = [root / name for name in FOLDERS] if root else []
    folder = next((folder for folder in folders if _holds_imagenet(folder, named=folder != root)), None)
    if folder is None:
        if root and (shards := _shards(root)):
            raise NotFound(
                f"the parquet files in {shards} are not unpacked; run `bench data prepare restricted_imagenet`"
            )
        raise missing(restricted_imagenet, [folder / "train" for folder in folders], root)
    labels = synsets()
    parts, paths, problems, others = [], [], [], set[str]()
    for name in ("train", "val"):
        there = {synset: label for synset, label in labels.items() if (folder / name / synset).is_dir()}
        if not there:
            if (folder / name).is_dir() and images_in(folder / name):
                raise BenchError(
                    f"{folder / name} holds its images in one folder, as ImageNet's archive does; sort them into a "
                    "folder for each synset first, as those of train are"
                )
            raise BenchError(f"{folder / name} has none of the {len(labels)} synset folders of Restricted ImageNet")
        others |= {name for name in classes_in(folder / name) if re.fullmatch(SYNSET, name) and name not in labels}
        if absent := [synset for synset in labels if synset not in there]:
            shown = ", ".join(absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
            problems.append(f"{name} lacks {len(absent)} of the {len(labels)} synsets ({shown})")
        images, classes = labelled({folder / name / synset: label for synset, label in there.items()})
        order = np.argsort([path.name for path in images], kind="stable")
        parts.append(Split(FileReader([images[place] for place in order], SHAPE, SHORTER_SIDE), classes[order]))
        paths += images
    digest = partial(content_digest, folder, paths)
    if len(parts[1].labels) != TEST_IMAGES:
        problems.append(f"val has {len(parts[1].labels):,} images of these synsets instead of {TEST_IMAGES:,}")
    if problems and settings.digest is None:
        raise BenchError(
            f"{folder} is not all of Restricted ImageNet: {'; '.join(problems)}; to use only these "
            f"images, state 'digest: {digest()}' in the suite"
        )
    rest = partial(unread, [folder / "train", folder / "val"], paths, others)
    state = partial(state_of, folder, paths)
    return Located(
        folder, parts[0], parts[1], digest, state, rest, "images in class folders", "order of the names of the files"
    )


def unpack(root: Path, progress: ProgressCallback) -> None:
    """Write the images of the 203 synsets in the parquet files below `root` into class folders, under official names.

    Images without an official name are named by their rows.

    Raises:
        NotFound: there are no parquet files.
        BenchError: a file cannot be read or written, or the name of an image contradicts its label.
    """
    shards = _shards(root)
    if shards is None:
        raise missing(restricted_imagenet, [root / name for name in FOLDERS], root)
    known = all_synsets()
    indices = [known.index(synset) for synset in synsets()]
    parts = {
        part: read_rows(shards, names, {"label": known}, SHAPE)
        for part, names in (("train", ("train",)), ("val", ("validation", "val")))
    }
    chosen = {part: np.flatnonzero(np.isin(rows.labels["label"], indices)) for part, rows in parts.items()}
    done, total = 0, sum(map(len, chosen.values()))
    try:
        with TemporaryDirectory(prefix=".unpack-", dir=root) as temporary:
            unpacked = Path(temporary) / UNPACKED
            for part, rows in parts.items():
                for places, images in rows.reader.encoded(chosen[part]):
                    for row, (where, content) in zip(chosen[part][places], images, strict=True):
                        synset = known[rows.labels["label"][row]]
                        name = _official_name(rows.names[row], synset, where) or f"{part}_{row:07}.JPEG"
                        folder = unpacked / part / synset
                        folder.mkdir(parents=True, exist_ok=True)
                        with (folder / name).open("xb") as file:
                            file.write(content)
                    done += len(places)
                    progress(done, total)
            unpacked.rename(root / UNPACKED)
    except OSError as error:
        raise BenchError(f"{shards} cannot be unpacked into {root / UNPACKED}: {error}") from error


def _official_name(name: str | None, synset: str, where: str) -> str | None:
    """Return the official name of an image by its name in a parquet file, None if that is of another kind."""
    match = re.fullmatch(NAME, name or "")
    if match is None:
        return None
    official, *stated = match.groups()
    if any(other not in (None, synset) for other in stated):
        raise BenchError(f"{where}: its name {name} contradicts its label, which is that of {synset}")
    return f"{official}.JPEG"


def _shards(root: Path) -> Path | None:
    return shard_folder(root, ("imagenet-1k", "imagenet"), ("data", "default"))


def _holds_imagenet(folder: Path, *, named: bool) -> bool:
    """Tell whether a folder is ImageNet's; one that is not named so must have folders that are named by synsets."""
    parts = [folder / name for name in ("train", "val") if (folder / name).is_dir()]
    if named:
        return bool(parts)
    return not (folder / "wnids.txt").exists() and any(  # Tiny ImageNet has it
        re.fullmatch(SYNSET, name) for part in parts for name in classes_in(part)
    )


restricted_imagenet = Dataset(
    name="restricted_imagenet",
    title="Restricted ImageNet, nine super-classes",
    classes=len(SUPER_CLASSES),
    shape=SHAPE,
    mean=(0.4717, 0.4499, 0.3837),  # as the ranges, MadryLab's released code
    std=(0.2600, 0.2516, 0.2575),
    train_images=None,
    test_images=TEST_IMAGES,
    licence="ImageNet's terms of access: for non-commercial research and education.",
    citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV, 2015; "
    "Tsipras et al., Robustness May Be at Odds with Accuracy, ICLR, 2019",
    find=ImageFiles(locate),
    augmentation=(Crop(padding=16, mode="reflect"), Flip()),  # both declared
    unpack=unpack,
    obtain="Get ILSVRC 2012 from https://www.image-net.org, and put its images there as train/<synset>/* and "
    "val/<synset>/*.",
)
