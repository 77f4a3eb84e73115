"""Which datasets are there, whether they are whole, and how those that are not are brought there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.config.protocol import DatasetSettings
from bench.config.suite import find_suite, load_suite, shipped_suites
from bench.data.dataset import Dataset, Found, Part, dataset_of, missing
from bench.data.prepare import prepare
from bench.data.prepared import ImageFiles, Prepared, folder_of, present
from bench.data.readers import Tick
from bench.errors import BenchError, DamagedFile, NotFound, did_you_mean
from bench.registry import DATASETS

CHUNK = 64  # images decoded at a time when looking for broken ones


def names() -> list[str]:
    """Return the names of all datasets and of the suites that ship with the package, sorted."""
    return sorted({*DATASETS.names(), *shipped_suites()})


def named(name: str) -> Dataset:
    """Return a dataset, whole, by its name, or as a suite uses it, by the suite's path or shipped name.

    Raises:
        BenchError: neither has that name, the suite is wrong, or the dataset needs a suite that describes it.
    """
    if name in DATASETS.names():
        dataset: Dataset = DATASETS.get(name)
        if dataset.own_files:
            raise BenchError(f"the images of '{name}' are described by a suite's 'files': name that suite instead")
        return dataset.configured(DatasetSettings(name=name, validation=1))
    try:
        suite = find_suite(name)
    except BenchError:
        raise BenchError(f"no dataset and no suite is called '{name:.100}'{did_you_mean(name, names())}") from None
    return dataset_of(load_suite(str(suite)).suite.dataset)


def overview(root: Path | None) -> list[dict[str, Any]]:
    """Return one row for every dataset: what it states, where it is found below `root`, and whether it is prepared."""
    return [_row(DATASETS.get(name), root) for name in DATASETS.names()]


def _row(dataset: Dataset, root: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": dataset.name, "title": dataset.title, "classes": None, "image": None}
    if dataset.own_files:
        return {**row, "train": None, "test": None, "found": "as a suite says", "where": None, "prepared": None}
    row |= {"classes": dataset.classes, "image": "x".join(map(str, dataset.shape))}
    row |= {"train": dataset.train_images, "test": dataset.test_images}
    whole, where, found = named(dataset.name), None, "yes"
    try:
        files = whole.locate(root)
        where = files.where and str(files.where)
        whole.choose(files)
    except NotFound:
        found = "no"
    except BenchError:
        found = "not whole"
    return {**row, "found": found, "where": where, "prepared": _prepared(whole, root, verify=False)[0]}


def prepared_twice(root: Path) -> Iterator[Path]:
    """Yield the folders of prepared images below `root` whose original files are there too, and still the same."""
    for name in DATASETS.names():
        if DATASETS.get(name).own_files:  # only a suite knows where
            continue
        dataset = named(name)
        if isinstance(dataset.find, ImageFiles) and dataset.settings is not None:
            folder = folder_of(root, dataset.settings)
            try:
                prepared, files = Prepared.read(folder), dataset.find.look(root, dataset.settings)
            except BenchError:
                continue
            if prepared and files.digest and files.digest() == prepared.digest:
                yield folder


def check(
    dataset: Dataset, root: Path | None, *, decode: bool = False, tick: Tick = lambda _done, _of: None
) -> dict[str, Any]:
    """Return what there is of a configured dataset, and under `problems` a sentence for all that is wrong with it.

    `prepared` is None for a dataset without image files, else "no", "yes" (every array verified), "outdated" or
    "damaged". `digest` is what a suite may state. With `decode`, every image file is decoded, and `tick` is called with
    (done, of) images.
    """
    problems: list[str] = []
    facts: dict[str, Any] = {"name": dataset.name, "where": None, "train": None, "test": None, "digest": None}
    try:
        found = dataset.locate(root)
        facts["where"] = found.where and str(found.where)
        facts |= {"train": _counts(found.train), "test": found.test and _counts(found.test)}
        facts["digest"] = found.digest and found.digest()
        dataset.choose(found)
    except BenchError as error:
        problems.append(str(error))
    facts["prepared"], problem = _prepared(dataset, root, verify=True)
    if problem and problem not in problems:
        problems.append(problem)
    if decode and facts["where"]:
        problems += broken(_of_files(dataset).locate(root), tick)
    return {**facts, "problems": problems}


def broken(found: Found, tick: Tick = lambda _done, _of: None) -> Iterator[str]:
    """Decode every image, and yield a sentence for each that cannot be read, in order."""
    parts = [part for part in (found.train, found.test) if part]
    done, of = 0, sum(len(present(part)) for part in parts)
    for part in parts:
        positions = present(part)
        for start in range(0, len(positions), CHUNK):
            chunk = positions[start : start + CHUNK]
            try:
                part.source.load(chunk)
            except BenchError:
                for position in chunk:
                    try:
                        part.source.load(np.array([position]))
                    except BenchError as error:
                        yield str(error)
            done += len(chunk)
            tick(done, of)


def bring(dataset: Dataset, root: Path | None, tick: Tick, say: Callable[[str], None]) -> str:
    """Download a configured dataset that can be downloaded, decode one of image files; return what was done.

    Raises:
        NotFound, BenchError: it cannot be had or written; the sentence says why, and how to get it by hand.
    """
    if isinstance(dataset.find, ImageFiles):
        if root is None:
            raise missing(dataset, [], root)
        prepared, there = prepare(dataset, root, tick, say=say)
        gib = sum(file["bytes"] for file in prepared.files()) / 2**30
        state = "were prepared already, nothing to do; verified" if there else "are prepared"
        return f"the images of {dataset.name} {state}: {prepared.folder}, {gib:.2f} GiB"
    try:
        found = dataset.locate(root)
        dataset.choose(found)
        return f"{dataset.name} is there already, nothing to do" + (f": {found.where}" if found.where else "")
    except BenchError:
        if dataset.download is None or root is None:
            raise
    try:
        dataset.download(root)
    except OSError as error:
        raise BenchError(f"{dataset.name} cannot be downloaded: {error}. {dataset.obtain}") from error
    found = dataset.locate(root)
    dataset.choose(found)
    return f"{dataset.name} is downloaded: {found.where}"


def _of_files(dataset: Dataset) -> Dataset:
    """Return the dataset without its prepared images."""
    return replace(dataset, find=dataset.find.look) if isinstance(dataset.find, ImageFiles) else dataset


def _prepared(dataset: Dataset, root: Path | None, *, verify: bool) -> tuple[str | None, str | None]:
    """Return what `check` says of prepared images, and what is wrong with them, if anything."""
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
        found = dataset.find.look(root, dataset.settings)
    except NotFound:
        return "yes", None  # of files that are gone since
    except BenchError:
        return "outdated", None
    return "yes" if found.digest and found.digest() == prepared.digest else "outdated", None


def _counts(part: Part) -> dict[str, int]:
    """Return how many images there are and how many are not, and the sizes of the smallest and the largest class."""
    labels = part.labels[present(part)]
    sizes = np.bincount(labels)[np.unique(labels)]
    smallest, largest = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
    absent = len(part.labels) - len(labels)
    return {"images": len(labels), "absent": absent, "smallest_class": smallest, "largest_class": largest}
