"""YAML with positions: a suite file as plain data, and the line of each of its keys.

`yaml.safe_load` drops line numbers, accepts duplicate keys, and expands a few lines of aliases to gigabytes. Reading
the node tree avoids all three.
"""

from __future__ import annotations

import datetime
import re
import stat
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.errors import BenchError

MAX_BYTES = 256 * 1024  # a suite is a page of text
MAX_DEPTH = 20

_DECIMAL = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|nan)", re.IGNORECASE
)
"""A number that reads the same in decimal; infinities and NaN are left to the settings, which refuse them."""

Location = tuple[int | str, ...]


@dataclass
class SuiteFile:
    """The content of one file: `data` is plain dicts, lists and scalars, `lines` maps a path of keys to its line."""

    path: Path
    data: dict[str, Any]
    lines: dict[Location, int] = field(repr=False)

    def existing(self, location: Location) -> Location:
        """Return the parts of `location` that the file contains.

        Others, such as the tag of a union or a missing key, are skipped.
        """
        known: Location = ()
        for part in location:
            if (*known, part) in self.lines:
                known = (*known, part)
        return known

    def line(self, location: Location) -> int:
        """Return the 1-based line of the deepest part of `location` that the file contains."""
        return self.lines[self.existing(location)]


def read_suite_file(path: Path) -> SuiteFile:
    """Read a suite without executing or expanding anything.

    Raises:
        BenchError: no such file, not UTF-8, too large, not valid YAML (with the line), a key twice, an alias, or not a
            mapping at the top.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # reading a device or a pipe may never end
            raise BenchError(f"{path}: not a file")
        if state.st_size > MAX_BYTES:
            raise BenchError(f"{path}: {state.st_size} bytes; a suite file has at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BenchError(f"{path}: no such suite file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise BenchError(f"{path}:{line}: aliases are not allowed in a suite; write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise BenchError(f"{path}:{line}: nested deeper than {MAX_DEPTH} levels")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise BenchError(f"{path}:1: a suite is a mapping of keys such as 'name' and 'dataset'")
            lines: dict[Location, int] = {}
            _index(node, (), lines, path, loader)
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = min(mark.line + 1, len(text.splitlines())) if mark else 1
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if problem.startswith("but ") and isinstance(error, yaml.MarkedYAMLError):
            problem = f"{error.context}, {problem}"
        raise BenchError(f"{path}:{line}: invalid YAML: {problem}") from error
    return SuiteFile(path, data, lines)


def _index(
    node: yaml.Node, location: Location, lines: dict[Location, int], path: Path, loader: yaml.SafeLoader
) -> None:
    """Fill `lines` from the node tree; reject keys that are not words or duplicates, and invalid scalars."""
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise BenchError(f"{path}:{line}: a key must be a word")
            if key.tag != "tag:yaml.org,2002:str":
                raise BenchError(f"{path}:{line}: a key must be a word, not '{key.value:.60}'")
            if key.value in seen:
                raise BenchError(f"{path}:{line}: duplicate key '{key.value}'")
            seen.add(key.value)
            lines[(*location, key.value)] = line
            _index(value, (*location, key.value), lines, path, loader)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _index(value, (*location, index), lines, path, loader)
    else:
        try:
            scalar = loader.construct_object(node)
        except (ValueError, KeyError, IndexError, AttributeError) as error:  # what PyYAML raises for 2024-13-45
            problem = f"'{node.value:.60}' is no {node.tag.removeprefix('tag:yaml.org,2002:')}"
            raise BenchError(f"{path}:{node.start_mark.line + 1}: invalid YAML: {problem}") from error
        if isinstance(scalar, int) and scalar.bit_length() > 64:
            raise BenchError(f"{path}:{node.start_mark.line + 1}: the number {node.value:.60} is too large")
        if meant := _meant(node, scalar):
            raise BenchError(f"{path}:{node.start_mark.line + 1}: {meant}")


def _meant(node: yaml.Node, scalar: object) -> str | None:
    """Return what to write instead of a plain scalar that YAML 1.1 reads as another value than people do.

    030 is octal (24), 1:30 is sexagesimal (90), 1_000 and 0x10 are integers, yes and off are booleans, 2024-01-01 is a
    date (https://yaml.org/type/).
    """
    text = node.value
    if isinstance(scalar, bool):
        word = str(scalar).lower()
        if text.lower() == word:
            return None
        return f"'{text}' is the boolean {word} in YAML 1.1; write {word}, or quote it"
    if isinstance(scalar, datetime.date):
        return f"'{text}' is a date in YAML 1.1; quote it"
    if isinstance(scalar, int | float) and not _DECIMAL.fullmatch(text):
        return f"'{text:.60}' is the number {scalar:.10g} in YAML 1.1; write it as a plain decimal number, or quote it"
    return None
