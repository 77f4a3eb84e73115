"""Suites and cells: YAML in, cells out, each with its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from bench import registry
from bench.errors import BenchError, did_you_mean
from bench.parameters import MethodInfo, MethodParams, Source, weakest
from bench.protocol import Name, Protocol, Seed, named
from bench.records import fingerprint
from bench.settings import Settings
from bench.suite_file import Location, SuiteFile, read_suite_file



class MethodEntry(Settings):
    """One row of the suite: a method, perhaps with parameters of its own."""

    name: Name
    label: str | None = Field(None, min_length=1, max_length=80)
    params: dict[str, Any] = {}


class ResolvedMethod(Settings):
    """A method with every parameter filled in."""

    name: Name
    version: int
    params: dict[str, Any]
    label: str
    custom: bool
    """Some parameter differs from the canonical one."""
    origin: Source | None
    """The weakest origin among the canonical parameters that are in force; None for a method without parameters."""


class Cell(Settings):
    """One (protocol, method with parameters, seed): the unit of work."""

    protocol: Protocol
    method: ResolvedMethod
    seed: Seed
    suite: str
    """Name of the suite it came from; not part of its identity."""
    plugins: tuple[str, ...] = ()
    """Absolute paths of the plug-in files that the method may need; not part of its identity."""

    def identity(self) -> dict[str, Any]:
        """Return the plain data that makes this cell what it is: protocol, method with parameters, seed."""
        method = self.method.model_dump(mode="json", include={"name", "version", "params"})
        return {"protocol": self.protocol.identity(), "method": method, "seed": self.seed}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    @cached_property
    def training_fingerprint(self) -> str:
        """Digest of all that the trained weights depend on: the identity without the final attacks."""
        identity = self.identity()
        del identity["protocol"]["evaluation"]["final"]
        return fingerprint(identity)

    def __str__(self) -> str:
        return f"{self.method.label} seed {self.seed}"


class Execution(Settings):
    """How the cells are run; never part of an identity."""

    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of each worker. Sums depend on it in the last bits, so a suite that promises equal weights fixes it."""


class Suite(Protocol):
    """A suite file: one protocol, a list of methods, a list of seeds."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
    description: str = ""
    methods: tuple[Annotated[MethodEntry, BeforeValidator(named)], ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    plugins: tuple[str, ...] = ()
    """Python files that define further methods, datasets or models, relative to the suite. They are executed: trust them."""
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _no_seed_twice(self) -> Suite:
        if len(set(self.seeds)) < len(self.seeds):
            raise PydanticCustomError("seeds", "the same seed stands twice")
        return self

    @cached_property
    def protocol(self) -> Protocol:
        return Protocol.model_validate({name: getattr(self, name) for name in Protocol.model_fields})


class LoadedSuite:
    """A suite whose names and parameters have been resolved: its `cells`, in the order of the file."""

    def __init__(self, file: SuiteFile) -> None:
        """Raises: BenchError, naming file, line and key, for anything that is wrong in the file."""
        self._file = file
        try:
            self.suite = Suite.model_validate(file.data)
        except ValidationError as error:
            raise self._located(error) from None
        self.plugins = tuple(str((file.path.parent / path).resolve()) for path in self.suite.plugins)
        for index, plugin in enumerate(self.plugins):
            with self._at("plugins", index):
                registry.load_plugin(Path(plugin))
        with self._at("model"):
            registry.MODELS.get(self.suite.model)
        with self._at("dataset", "name"):
            info = registry.DATASETS.get(self.suite.dataset.name)
        with self._at("dataset", "validation"):
            info.check_split(self.suite.dataset.validation)
        self.methods = [self._resolve(index, entry) for index, entry in enumerate(self.suite.methods)]
        self.cells = [
            Cell(protocol=self.suite.protocol, method=method, seed=seed, suite=self.suite.name, plugins=self.plugins)
            for method in self.methods
            for seed in self.suite.seeds
        ]
        seen: dict[str, int] = {}
        for index, method in enumerate(self.methods):
            for key in (method.label, fingerprint([method.name, method.params])):
                if seen.setdefault(key, index) != index:
                    with self._at("methods", index):
                        raise BenchError(f"'{method.label}' stands twice; give rows different labels and parameters")

    def _resolve(self, index: int, entry: MethodEntry) -> ResolvedMethod:
        """Fill in the canonical parameters of one row and validate those that the suite gives."""
        with self._at("methods", index):
            method = registry.METHODS.get(entry.name)
        info: MethodInfo = method.info
        declared: type[MethodParams] = method.Params
        canonical = declared.canonical(self.suite.dataset.name, self.suite.training.attack.setting)
        values = {name: origin.value for name, origin in canonical.items()}
        try:
            params = declared.model_validate({**values, **entry.params})
            reference = declared.model_validate(values).model_dump(mode="json") if values else {}
        except ValidationError as error:
            raise self._located(error, ("methods", index, "params")) from None
        resolved = params.model_dump(mode="json")
        changed = {name for name, value in resolved.items() if name not in reference or reference[name] != value}
        return ResolvedMethod(
            name=info.name,
            version=info.version,
            params=resolved,
            label=entry.label or info.title,
            custom=bool(changed),
            origin=weakest([origin.source for name, origin in canonical.items() if name not in changed]),
        )

    @contextmanager
    def _at(self, *location: int | str) -> Iterator[None]:
        """Prefix a BenchError raised inside with file, line and key."""
        try:
            yield
        except BenchError as error:
            raise BenchError(f"{self._where(location)}: {error}") from error

    def _located(self, error: ValidationError, prefix: Location = ()) -> BenchError:
        """Turn pydantic's first complaint into one sentence with file, line and key."""
        first = error.errors(include_url=False)[0]
        location = (*prefix, *first["loc"])
        if first["type"] == "unknown_key":
            location = (*location, first["ctx"]["key"])
        return BenchError(f"{self._where(location)}: {_sentence(first)}")

    def _where(self, location: Location) -> str:
        keys = ".".join(str(part) for part in location)
        return f"{self._file.path}:{self._file.line(location)}" + (f": {keys}" if keys else "")


def _sentence(problem: Any) -> str:
    """Say pydantic's complaint in the words of the file."""
    kind, message, value = problem["type"], problem["msg"], problem.get("input")
    if kind == "missing":
        return "this key is required"
    if kind == "union_tag_invalid":
        return f"unknown name '{problem['ctx']['tag']}'; known: {problem['ctx']['expected_tags']}"
    sentence: str = message[0].lower() + message[1:]
    ours = "input should" not in sentence.lower()  # our own messages show the value where it helps
    if ours or not isinstance(value, str | int | float | bool | type(None)):
        return sentence
    return f"{sentence.replace('input should', 'the value should')} (got {value!r:.60})"


def load_suite(name_or_path: str) -> LoadedSuite:
    """Load a suite by path, or by the name of one that ships with the package.

    Raises:
        BenchError: there is no such suite, or something in it is wrong (file, line and key are named).
    """
    return LoadedSuite(read_suite_file(find_suite(name_or_path)))


def find_suite(name_or_path: str) -> Path:
    """Return the path of a suite given by path or by shipped name."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    shipped = shipped_suites()
    if name_or_path not in shipped:
        raise BenchError(f"unknown suite '{name_or_path:.100}'{did_you_mean(name_or_path, shipped)}")
    return shipped[name_or_path]


def shipped_suites() -> dict[str, Path]:
    """Return the suites that ship with the package, by name."""
    package = Path(__file__).parent
    for folder in (package / "suites", package.parent / "suites"):  # in the wheel; in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def select_cells(cells: Iterable[Cell], methods: Iterable[str] = (), seeds: Iterable[int] = ()) -> list[Cell]:
    """Return the cells whose method (by name or label) and seed are among those asked for; empty means all.

    Raises:
        BenchError: a method or seed is asked for that no cell has.
    """
    cells, wanted, wanted_seeds = list(cells), set(methods), set(seeds)
    names = {name for cell in cells for name in (cell.method.name, cell.method.label)}
    for name in sorted(wanted - names):
        raise BenchError(f"the suite has no method '{name}'{did_you_mean(name, names)}")
    known_seeds = {cell.seed for cell in cells}
    for seed in sorted(wanted_seeds - known_seeds):
        raise BenchError(f"the suite has no seed {seed}; it has {', '.join(map(str, sorted(known_seeds)))}")
    return [
        cell
        for cell in cells
        if (not wanted or {cell.method.name, cell.method.label} & wanted)
        and (not wanted_seeds or cell.seed in wanted_seeds)
    ]
