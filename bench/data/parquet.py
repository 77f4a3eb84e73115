"""Parquet files as dataset hubs publish them: a column of encoded images and columns of labels, in one or more shards.

    <folder>/train-00000-of-00002.parquet      images: structs of `bytes` and `path`, in the column `image` or `img`
    <folder>/train-00001-of-00002.parquet      labels: integers, with the names of the classes in the file's metadata
    <folder>/test-00000-of-00001.parquet

A hash may follow the numbers: train-00000-of-00002-0123456789abcdef.parquet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.readers import Pixels, decode, decode_each
from bench.errors import BenchError
from bench.utils.progress import ProgressCallback, no_progress

IMAGES = ("image", "img")
"""Names of the column of images."""


@dataclass(frozen=True)
class RowGroup:
    """`count` rows that are read together: group `number` of the file `path`, from its row `first` on."""

    path: Path
    number: int
    first: int
    count: int


@dataclass(frozen=True)
class ParquetReader:
    """The images of a split by row, one file after the other.

    `column`: that of the images. `shape`: (channels, height, width). `formats`: Pillow's names of those allowed.
    """

    groups: tuple[RowGroup, ...]
    column: str
    shape: tuple[int, int, int]
    formats: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return sum(group.count for group in self.groups)

    def load(self, index: NDArray[np.int64], progress: ProgressCallback = no_progress) -> Pixels:
        """Decode the images at `index`."""
        pixels = np.empty((len(index), *self.shape), np.uint8)
        done = 0
        for places, images in self.encoded(index):

            def decoded(image: tuple[str, bytes]) -> Pixels:
                name, content = image
                return decode(BytesIO(content), name, self.shape, formats=self.formats)

            pixels[places] = decode_each(decoded, images, self.shape)
            done += len(places)
            progress(done, len(index))
        return pixels

    def encoded(self, index: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], list[tuple[str, bytes]]]]:
        """Yield the images at `index`, those of one row group at a time, in the order of the files.

        Each time: their places in `index` ([k]), and for each image words that name it and its bytes.

        Raises:
            BenchError: a file cannot be read, or has no bytes in one of these rows.
        """
        starts = np.cumsum([0, *(group.count for group in self.groups)])
        of_group = np.searchsorted(starts, index, side="right") - 1
        for number in np.unique(of_group):
            places, group = np.flatnonzero(of_group == number), self.groups[number]
            rows = index[places] - starts[number]
            with _opened(group.path) as file:
                table = file.read_row_group(group.number, columns=[f"{self.column}.bytes"]).combine_chunks()
                contents = table[self.column].chunk(0).field("bytes").take(rows).to_pylist()
            names = [f"image in row {group.first + row} of {group.path}" for row in rows]
            if None in contents:
                raise BenchError(f"{names[contents.index(None)]} has no bytes")
            yield places, list(zip(names, contents, strict=True))


@dataclass(frozen=True)
class Rows:
    """The rows of a split: their images, the labels in each column asked for ([n]), and the files' names, if any."""

    paths: tuple[Path, ...]
    reader: ParquetReader
    labels: dict[str, NDArray[np.int64]]
    names: list[str | None]
    named_classes: bool
    """Whether the files name the classes as the dataset does; the labels are then numbered as the dataset numbers them,
    whatever the order in the files."""


def shard_folder(root: Path, names: Sequence[str], configurations: Sequence[str]) -> Path | None:
    """Return the folder below `root` that holds the shards of a dataset, None if there is none.

    Looked at are `<root>/<name>` and, in the cache of huggingface_hub, `<root>/datasets--<owner>--<name>`, and in both
    the folders of `configurations`.
    """
    for name in names:
        places = [root / name]
        for cached in sorted(root.glob(f"datasets--*--{name}/refs/main")):
            places.append(cached.parents[1] / "snapshots" / cached.read_text(encoding="utf-8").strip())
        for place in places:
            for folder in (*(place / configuration for configuration in configurations), place):
                if any(folder.glob("train-*-of-*.parquet")):
                    return folder
    return None


def read_rows(
    folder: Path,
    splits: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    shape: tuple[int, int, int],
    *,
    count: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Rows:
    """Read the labels of a split, and where its images are; no image is read.

    Args:
        folder: of the shards.
        splits: names of the split; the first that has shards counts.
        labels: the columns of labels, and the official names of the classes of each in official order.
        shape: of the images, (channels, height, width).
        count: the number of images that there must be.
        formats: Pillow's names of the allowed formats.

    Raises:
        BenchError: a shard is missing, or of another set; it cannot be read, has other columns, or a label that is no
            class; there are more or fewer images. pyarrow is not installed.
    """
    paths = _shards(folder, splits)
    groups: list[RowGroup] = []
    names: list[str | None] = []
    numbers: dict[str, list[NDArray[np.int64]]] = {column: [] for column in labels}
    first: tuple[str, dict[str, list[str] | None]] | None = None
    for path in paths:
        with _opened(path) as file:
            image = _image_column(path, file.schema_arrow, labels)
            classes = {column: _class_names(file.schema_arrow, column) for column in labels}
            if first is not None and first != (image, classes):
                raise BenchError(f"{path} has other columns or classes than {paths[0]}: shards of different datasets")
            first = image, classes
            table = file.read(columns=[f"{image}.path", *labels])
            counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            starts = np.cumsum([0, *counts])
            groups += [RowGroup(path, number, int(starts[number]), n) for number, n in enumerate(counts)]
            names += [(cell or {}).get("path") for cell in table[image].to_pylist()]
            for column, official in labels.items():
                numbers[column].append(_numbers(path, table, column, official, classes[column]))
    assert first is not None
    if count is not None and len(names) != count:
        raise BenchError(f"{paths[0].parent}: the shards of '{splits[0]}' hold {len(names):,} images, not {count:,}")
    whole = {column: np.concatenate(parts) for column, parts in numbers.items()}
    named = all(_same(labels[column], found) for column, found in first[1].items())
    return Rows(tuple(paths), ParquetReader(tuple(groups), first[0], shape, formats), whole, names, named)


def _shards(folder: Path, splits: Sequence[str]) -> list[Path]:
    """Return the shards of the first of `splits` that has any, in order; all must be there."""
    for split in splits:
        pattern = re.compile(rf"{split}-([0-9]{{5}})-of-([0-9]{{5}})(-[0-9a-f]+)?\.parquet")
        shards = [(match, path) for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))]
        if not shards:
            continue
        total = int(shards[0][0][2])
        by_number = {int(match[1]): path for match, path in shards}
        if len(by_number) < len(shards) or any(int(match[2]) != total for match, _ in shards):
            listed = ", ".join(path.name for _, path in shards[:3])
            raise BenchError(
                f"{folder} mixes shards of several versions of '{split}' ({listed}, ...); keep one version"
            )
        if missing := sorted({*range(total)} - {*by_number}):
            name = f"{split}-{missing[0]:05}-of-{total:05}.parquet"
            raise BenchError(f"{folder} lacks {len(missing)} of the {total} shards of '{split}': {name} is missing")
        return [by_number[number] for number in range(total)]
    raise BenchError(f"{folder} has no shards of '{splits[0]}': {splits[0]}-00000-of-00001.parquet is missing")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a parquet file, and raise what pyarrow says of it as BenchError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BenchError(
            f"{path} is read with pyarrow, which is not installed: pip install 'robust-overfitting-bench[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise BenchError(f"{path} cannot be read as a parquet file: {error}") from error


def _image_column(path: Path, schema: Any, labels: Mapping[str, Any]) -> str:
    """Return the name of the column of images; the columns of labels must be there too, with integers."""
    from pyarrow import types

    kinds = {field.name: field.type for field in schema}
    for image in IMAGES:
        kind: Any = kinds.get(image)
        if kind is not None and types.is_struct(kind):
            fields = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
            integers = all(column in kinds and types.is_integer(kinds[column]) for column in labels)
            if {"bytes", "path"} <= {*fields} and str(fields["bytes"]) in {"binary", "large_binary"} and integers:
                return image
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    wanted = " and ".join(f"'{column}'" for column in labels)
    raise BenchError(
        f"{path} has other columns: {listed}; needed are 'image' or 'img' (a struct of bytes and path) and {wanted} "
        "(integers)"
    )


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names of the classes in the metadata that Hugging Face writes, in the order of the labels."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _same(official: Sequence[str], classes: list[str] | None) -> bool:
    return classes is not None and len(classes) == len(official) and {*classes} == {*official}


def _numbers(
    path: Path, table: Any, column: str, official: Sequence[str], classes: list[str] | None
) -> NDArray[np.int64]:
    """Return the labels of a file ([n]), by the official order of the classes if the file names them so."""
    if table[column].null_count:
        raise BenchError(f"{path}: the column '{column}' lacks {table[column].null_count} labels")
    labels: NDArray[np.int64] = table[column].to_numpy().astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(official)))
    if len(wrong):
        row, last = wrong[0], len(official) - 1
        raise BenchError(f"{path}: '{column}' has the label {labels[row]} in row {row}, not one of 0 to {last}")
    if classes is None or not _same(official, classes):
        return labels
    return np.array([official.index(name) for name in classes], np.int64)[labels]
