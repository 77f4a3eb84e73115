"""`restricted_imagenet`: nine super-classes of ImageNet, from a local copy of ImageNet sorted into synset folders."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from bench.config.augmentation import Crop, Flip
from bench.config.protocol import DatasetSettings
from bench.data.dataset import Dataset, Located, Split, missing
from bench.data.folder import classes_in, content_digest, images_in, labelled, state_of, unread
from bench.data.prepared import ImageFiles
from bench.data.readers import FileReader
from bench.errors import BenchError

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


def synsets() -> dict[str, int]:
    """Return the label of each of the 203 synsets, sorted by synset.

    A class index of ImageNet is the rank of the synset among all 1,000, so the list is timm's and never that of a
    folder, which may hold some of them only.
    """
    with warnings.catch_warnings():  # the import tells timm's developers of torch's plans
        warnings.simplefilter("ignore")
        from timm.data import ImageNetInfo

    known = sorted(ImageNetInfo("imagenet-1k").label_names())
    labels = {known[index]: label for label, indices in enumerate(SUPER_CLASSES.values()) for index in indices}
    return dict(sorted(labels.items()))


def locate(root: Path | None, settings: DatasetSettings) -> Located:
    """Return `train/<synset>/*` and `val/<synset>/*` of the folder that holds ImageNet, as `Dataset.find` does.

    The test images are ImageNet's validation images. Each part is in the order of the file names, which is ImageNet's
    own order of the validation images. Without a stated digest all must be there.
    """
    folders = [root / name for name in FOLDERS] if root else []
    folder = next((folder for folder in folders if _holds_imagenet(folder, named=folder != root)), None)
    if folder is None:
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
            f"{folder} is not all of Restricted ImageNet: {'; '.join(problems)}; a suite that is to use just these "
            f"images states 'digest: {digest()}'"
        )
    rest = partial(unread, [folder / "train", folder / "val"], paths, others)
    return Located(folder, parts[0], parts[1], digest, partial(state_of, folder, paths), rest)


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
    obtain="Get ILSVRC 2012 from https://www.image-net.org, and put its images there as train/<synset>/* and "
    "val/<synset>/*.",
)
