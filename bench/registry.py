"""Names -> methods, datasets, architectures and experiment trackers.

Built-in and third-party entries are registered in the same ways: through the entry-point groups `bench.methods`,
`bench.datasets` and `bench.models`, or through a plug-in file that a suite names; trackers through the group
`bench.trackers` alone. Modules are imported on first use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from bench import outside
from bench.errors import BenchError, did_you_mean


class Registry:
    """The named entries of one kind.

    An entry follows the contract of its kind: a `Method` subclass, a `Dataset`, an `Architecture`, a `Tracker`
    subclass. The registry maps names only, so it imports none of these classes. An entry with a callable `member` is a
    family: the name `<family>/<variant>` returns `member(variant)`.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self._group = group
        self._added: dict[str, Any] = {}
        self._digests: dict[str, str] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            if points.setdefault(point.name, point).value != point.value:
                raise BenchError(
                    f"two installed packages register the {self.kind} '{point.name}': {points[point.name].value} and "
                    f"{point.value}; uninstall one"
                )
        return points

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        return sorted({*self._entry_points, *self._added})

    def get(self, name: str) -> Any:
        """Return the entry `name`, or the member of a family for `<family>/<variant>`, created in every call.

        Raises:
            BenchError: the name is unknown (the message suggests the nearest) or that of a whole family, the family has
                no such variant, or a module cannot be imported.
        """
        family, slash, variant = name.partition("/")
        if slash and name not in self.names() and family in self.names():
            entry = self.entry(family)
            if not _is_family(entry):
                raise BenchError(f"unknown {self.kind} '{name}': '{family}' has no variants")
            return entry.member(variant)
        entry = self.entry(name)
        if _is_family(entry):
            example = f", such as '{name}/{entry.listed[0]}'" if entry.listed else ""
            raise BenchError(f"'{name}' is a family of {self.kind}s: write '{name}/{entry.written}'{example}")
        return entry

    def entry(self, name: str) -> Any:
        """Return the entry or the whole family registered as `name`, importing its module if necessary.

        Raises:
            BenchError: the name is unknown (the message suggests the nearest), or its module cannot be imported.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._entry_points:
            raise BenchError(f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}")
        point = self._entry_points[name]
        with outside.running(f"{self.kind} '{name}' ({point.value}) cannot be imported"):
            self._added[name] = point.load()
        if point.module.partition(".")[0] not in outside.OURS:
            self._digests[name] = outside.package_digest(point.module)
        return self._added[name]

    def add(self, name: str, entry: Any, digest: str | None = None) -> None:
        """Register `entry`; the same object again is allowed, another object under the name is an error.

        `digest`: that of the plug-in file that brings it.
        """
        if name in self.names() and self.entry(name) is not entry:
            raise BenchError(f"the {self.kind} name '{name}' is registered already")
        self._added[name] = entry
        if digest is not None:
            self._digests[name] = digest

    def digest(self, name: str) -> str | None:
        """Return the digest of the sources of an entry, or of its family; None if it is built in or unknown.

        It is of the plug-in file and what this imports from outside, or of the installed package.
        """
        name = name if name in self.names() else name.partition("/")[0]
        if name in self._entry_points:
            self.entry(name)
        return self._digests.get(name)


def _is_family(entry: Any) -> bool:
    """Return whether an entry is a family: whether it has a callable `member`."""
    return callable(getattr(entry, "member", None))


METHODS = Registry("method", "bench.methods")
DATASETS = Registry("dataset", "bench.datasets")
MODELS = Registry("model", "bench.models")
TRACKERS = Registry("tracker", "bench.trackers")


def load_plugin(path: Path) -> None:
    """Import a trusted plug-in file and register its entries.

    The file lists them in `METHODS`, `DATASETS` or `MODELS`, each a mapping from name to entry. Loading the same file
    again does nothing.

    Raises:
        BenchError: the file is missing, cannot be imported, lists nothing, or uses a name that exists.
    """
    module = outside.import_file(path, "plug-in")
    path = Path(str(module.__file__))
    try:
        parts = [
            (registry, entries)
            for registry, attribute in ((METHODS, "METHODS"), (DATASETS, "DATASETS"), (MODELS, "MODELS"))
            if (entries := getattr(module, attribute, None))
        ]
        if not parts:
            raise BenchError(f"plug-in {path} lists no parts: it needs METHODS, DATASETS or MODELS")
        if not all(isinstance(entries, Mapping) for _, entries in parts):
            raise BenchError(f"plug-in {path}: METHODS, DATASETS and MODELS map names to entries")
        digest = outside.file_digest(path)
        for registry, entries in parts:
            for entry_name, entry in entries.items():
                try:
                    registry.add(entry_name, entry, digest)
                except BenchError as error:
                    raise BenchError(f"plug-in {path}: {error}") from error
    except BenchError:
        del sys.modules[module.__name__]
        raise
