"""`image_folder`: images of your own, one folder a class, described by the suite's `files`.

    <path>/train/<class>/<any name>.png
    <path>/test/<class>/<any name>.png      or val/; without either, the suite says how many images to test on

The label of a class is its rank among the sorted names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.config.protocol import DatasetSettings
from bench.data.dataset import Dataset, Located, Split, missing
from bench.data.folder import below, classes_in, content_digest, labelled, state_of, unread
from bench.data.prepared import ImageFiles
from bench.data.readers import FileReader
from bench.errors import BenchError


def own_dataset(name: str, title: str, find: Callable[[Path | None, DatasetSettings], Located], obtain: str) -> Dataset:
    """Return a dataset of the user's own files, which the setting `files` of a suite describes."""
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


def locate(root: Path | None, settings: DatasetSettings) -> Located:
    """Return the images below `root` at the suite's `files.path`, as `Dataset.find` does."""
    files = settings.files
    assert files is not None
    if root is None or not (folder := below(root, files.path)).exists():
        raise missing(image_folder, [root / files.path] if root else [], root)
    if not (folder / "train").is_dir():
        raise BenchError(f"{folder} has no folder 'train' with a folder for each class")
    names = classes_in(folder / "train")
    if len(names) != files.classes:
        raise BenchError(f"{folder / 'train'} has {len(names)} class folders; the suite states {files.classes} classes")
    test_folder = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    test_names = classes_in(test_folder) if test_folder else {}
    if test_folder and [*test_names] != [*names]:
        alone = [", ".join(sorted(some)) or "none" for some in ({*names} - {*test_names}, {*test_names} - {*names})]
        raise BenchError(
            f"{folder} has classes in train alone ({alone[0]}) or in {test_folder.name} alone ({alone[1]})"
        )
    parts = [
        labelled({path: label for label, path in enumerate(part.values())}) for part in (names, test_names) if part
    ]
    paths = [path for part, _ in parts for path in part]
    train, *test = (Split(FileReader(part, files.shape), labels) for part, labels in parts)
    described = partial(content_digest, folder, paths), partial(state_of, folder, paths)
    rest = partial(unread, [folder], paths)
    layout, identity = "images in class folders", "order of the names of the files"
    return Located(folder, train, test[0] if test else None, *described, rest, layout, identity)


image_folder = own_dataset(
    "image_folder",
    "Images of your own, in one folder a class",
    ImageFiles(locate),
    "Put your images there, as train/<class>/<image> and test/<class>/<image>.",
)
