"""The state of the datasets below the data root: found, complete, prepared; and how to fetch the missing ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.config.protocol import DatasetSettings
from bench.config.suite import find_suite, load_suite, shipped_suites
from bench.data.dataset import Dataset, Located, Split, dataset_of, missing
from bench.data.prepare import prepare
from bench.data.prepared import ImageFiles, Prepared, folder_of, present
from bench.errors import BenchError, DamagedFile, NotFound, did_you_mean
from bench.registry import DATASETS
from bench.utils.progress import ProgressCallback, no_progress

CHUNK = 64  # images decoded at a time when looking for broken ones


def names() -> list[str]:
    """Return the names of all datasets and of the suites that ship with the package, sorted."""
    return sorted({*DATASETS.names(), *shipped_suites()})


def named(name: str) -> Dataset:
    """Return a whole dataset by its name, or the configured dataset of a suite by its path or shipped name.

    Raises:
        BenchError: neither has that name, the suite is wrong, or the dataset needs a suite that describes it.
    """
    if name in DATASETS.names():
        dataset: Dataset = DATASETS.get(name)
        if dataset.own_files:
            raise BenchError(f"dataset '{name}' is described by the key 'files' of a suite; name the suite instead")
        return dataset.configured(DatasetSettings(name=name, validation=1))
    try:
        suite = find_suite(name)
    except BenchError:
        raise BenchError(f"no dataset and no suite is called '{name:.100}'{did_you_mean(name, names())}") from None
    return dataset_of(load_suite(str(suite)).suite.dataset)


def overview(root: Path | None) -> list[dict[str, Any]]:
    """Return one row per dataset: its properties, where it is below `root`, and whether it is prepared."""
    return [_row(DATASETS.get(name), root) for name in DATASETS.names()]


def _row(dataset: Dataset, root: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": dataset.name, "title": dataset.title, "classes": None, "image": None}
    if dataset.own_files:
        return {**row, "train": None, "test": None, "found": "as a suite says", "where": None, "prepared": None}
    row |= {"classes": dataset.classes, "image": "x".join(map(str, dataset.shape))}
    row |= {"train": dataset.train_images, "test": dataset.test_images}
    whole, where, state = named(dataset.name), None, "yes"
    try:
        located = whole.locate(root)
        where = located.where and str(located.where)
        whole.select(located)
    except NotFound:
        state = "no"
    except BenchError:
        state = "not whole"
    return {**row, "found": state, "where": where, "prepared": _prepared(whole, root, verify=False)[0]}


def prepared_twice(root: Path) -> Iterator[Path]:
    """Yield the folders of prepared images below `root` whose original files are still there, unchanged."""
    for name in DATASETS.names():
        if DATASETS.get(name).own_files:  # only a suite knows the folder
            continue
        dataset = named(name)
        if isinstance(dataset.find, ImageFiles) and dataset.settings is not None:
            folder = folder_of(root, dataset.settings)
            try:
                prepared, files = Prepared.read(folder), dataset.find.locate(root, dataset.settings)
            except BenchError:
                continue
            if prepared and prepared.made_of(files):
                yield folder


def check(
    dataset: Dataset,
    root: Path | None,
    *,
    decode: bool = False,
    ignore_unread: bool = False,
    progress: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Return the state of a configured dataset, and under `problems` one sentence per problem.

    `prepared` is None for a dataset without image files, else "no", "yes" (every array verified), "outdated" or
    "damaged". `digest` is the value for a suite's `digest`. `unread` counts the files that are not read, a problem
    unless `ignore_unread`. `layout` and `identity` are those of `Located`. With `decode`, every image file is decoded,
    and `progress` is called with the numbers of finished and of all images.
    """
    problems: list[str] = []
    facts: dict[str, Any] = {"name": dataset.name}
    facts |= dict.fromkeys(("where", "layout", "identity", "train", "test", "digest", "unread"))
    try:
        located = dataset.locate(root)
        facts |= {"where": located.where and str(located.where)}
        facts |= {"layout": located.layout, "identity": located.identity}
        facts |= {"train": _counts(located.train), "test": located.test and _counts(located.test)}
        facts["digest"] = located.digest and located.digest()
        facts["unread"] = located.unread and len(located.unread())
        if not ignore_unread and (sentence := located.not_read()):
            problems.append(f"{sentence}; move them away, or accept them with --ignore-unread")
        dataset.select(located)
    except BenchError as error:
        problems.append(str(error))
    facts["prepared"], problem = _prepared(dataset, root, verify=True)
    if problem and problem not in problems:
        problems.append(problem)
    if decode and facts["where"]:
        problems += broken(_of_files(dataset).locate(root), progress)
    return {**facts, "problems": problems}


def broken(located: Located, progress: ProgressCallback = no_progress) -> Iterator[str]:
    """Decode every image, and yield the error of each that cannot be read, in order."""
    splits = [split for split in (located.train, located.test) if split]
    done, total = 0, sum(len(present(split)) for split in splits)
    for split in splits:
        positions = present(split)
        for start in range(0, len(positions), CHUNK):
            chunk = positions[start : start + CHUNK]
            try:
                split.reader.load(chunk)
            except BenchError:
                for position in chunk:
                    try:
                        split.reader.load(np.array([position]))
                    except BenchError as error:
                        yield str(error)
            done += len(chunk)
            progress(done, total)


def fetch(dataset: Dataset, root: Path | None, progress: ProgressCallback, say: Callable[[str], None]) -> str:
    """Download or decode a configured dataset, and return a sentence that says what was done.

    Raises:
        NotFound, BenchError: it cannot be downloaded, read or written; the message says how to get it by hand.
    """
    if isinstance(dataset.find, ImageFiles):
        if root is None:
            raise missing(dataset, [], root)
        try:
            prepared, existed = prepare(dataset, root, progress, say=say)
        except NotFound:
            if dataset.unpack is None:
                raise
            dataset.unpack(root, progress)
            prepared, existed = prepare(dataset, root, progress, say=say)
        gib = sum(file["bytes"] for file in prepared.files()) / 2**30
        state = "were prepared already, nothing to do; verified" if existed else "are prepared"
        return f"the images of {dataset.name} {state}: {prepared.folder}, {gib:.2f} GiB"
    try:
        located = dataset.locate(root)
        dataset.select(located)
        return f"{dataset.name} is there already, nothing to do" + (f": {located.where}" if located.where else "")
    except BenchError:
        if dataset.download is None or root is None:
            raise
    try:
        dataset.download(root)
    except OSError as error:
        raise BenchError(f"{dataset.name} cannot be downloaded: {error}. {dataset.obtain}") from error
    located = dataset.locate(root)
    dataset.select(located)
    return f"{dataset.name} is downloaded: {located.where}"


def _of_files(dataset: Dataset) -> Dataset:
    """Return the dataset without its prepared images."""
    return replace(dataset, find=dataset.find.locate) if isinstance(dataset.find, ImageFiles) else dataset


def _prepared(dataset: Dataset, root: Path | None, *, verify: bool) -> tuple[str | None, str | None]:
    """Return the value of `prepared` in `check`, and the problem with the prepared images, if any."""
    if not isinstance(dataset.find, ImageFiles):
        return None, None
    assert dataset.settings is not None
    try:
        prepared = Prepared.read(folder_of(root, dataset.settings)) if root else None
        if prepared is None:
            return "no", None
        if verify:
            prepared.verify()
    except DamagedFile as error:
        return "damaged", str(error)
    try:
        located = dataset.find.locate(root, dataset.settings)
    except NotFound:
        return "yes", None  # the files are gone
    except BenchError:
        return "outdated", None
    return "yes" if prepared.made_of(located) else "outdated", None


def _counts(split: Split) -> dict[str, int]:
    """Return the numbers of images and of absent images, and the sizes of the smallest and the largest class."""
    labels = split.labels[present(split)]
    sizes = np.bincount(labels)[np.unique(labels)]
    smallest, largest = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
    absent = len(split.labels) - len(labels)
    return {"images": len(labels), "absent": absent, "smallest_class": smallest, "largest_class": largest}
