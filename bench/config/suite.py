"""Suites and cells: YAML in, cells out, each with its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from bench import registry
from bench.config.attacks import CW, PGD, AutoAttack, FinalAttack, Threat, TrainingAttack
from bench.config.augmentation import Crop, Mix
from bench.config.base import BaseConfig, named
from bench.config.cell import EVALUATED, Cell, ResolvedMethod
from bench.config.hyperparameters import MethodInfo, MethodParams, least_reliable
from bench.config.messages import complaint, sentence
from bench.config.protocol import Name, Protocol, Seed, check_normalisation
from bench.config.teacher import Teacher
from bench.config.yaml_file import Location, SuiteFile, read_suite_file
from bench.errors import BenchError, did_you_mean


class MethodEntry(BaseConfig):
    """One row of the suite: a method, perhaps with parameters of its own."""

    name: Name
    label: str | None = Field(None, min_length=1, max_length=80)
    params: dict[str, Any] = Field({})


MethodRow = Annotated[MethodEntry, BeforeValidator(named, json_schema_input_type=MethodEntry | str)]


class Execution(BaseConfig):
    """How the cells are run; never part of an identity."""

    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of each worker. Sums depend on it in the last bits: a suite that promises equal weights fixes it."""

    devices: int | None = Field(None, ge=1, le=64)
    """Processes that train one cell, each on a device of its own with an equal part of every batch.

    They share the batches of AutoAttack, too."""

    compile: bool = False
    """Whether the network is compiled for training, with other rounding: for GPUs (docs/performance.md)."""

    preview: bool = False
    """Whether a short attack gives an upper bound of the robust accuracy before AutoAttack (docs/attacks.md)."""


class PublishedRow(BaseConfig):
    """One row of `results/published.csv` that the suite should meet, on its dataset, model and threat.

    It must be one row only: `selection` and `pgd_steps` are needed where the others leave several.
    """

    source: Annotated[str, Field(min_length=1)]
    """Text that the row's `source` contains."""
    method: str | None = None
    """The row's method; default: that of the suite's row."""
    row: str | None = None
    """The suite's row, by label or method; default: the only one, or the one whose method is `method`."""
    selection: Literal["validation", "test", "none"] | None = None
    pgd_steps: int | None = Field(None, ge=1)


class Suite(Protocol):
    """A suite file: one protocol, a list of methods, a list of seeds."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
    description: str = ""
    methods: tuple[MethodRow, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    plugins: tuple[str, ...] = ()
    """Python files that define further methods, datasets or models, relative to the suite; executed, so trust them."""
    execution: Execution = Execution()
    published: tuple[PublishedRow, ...] = ()
    """What a paper reports of the rows; never part of an identity."""

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise PydanticCustomError("seeds", "duplicate seed")
        return seeds

    @cached_property
    def protocol(self) -> Protocol:
        return Protocol.model_validate({name: getattr(self, name) for name in Protocol.model_fields})


def resolve_method(protocol: Protocol, entry: MethodEntry, users: tuple[MethodEntry, ...] = ()) -> ResolvedMethod:
    """Return a row of a suite with the canonical parameters filled in and those that it gives validated.

    Teachers are resolved likewise; `users` are the methods, the first one first, whose teacher this row is.

    Raises:
        BenchError: no such method, or what is registered as one is none; teachers form a circle.
        ValidationError: a parameter is unknown or out of its range.
    """
    if entry.name == EVALUATED:
        raise BenchError(f"'{EVALUATED}' is reserved for external models; add one with `bench evaluate`")
    method = registry.METHODS.get(entry.name)
    try:
        info: MethodInfo = method.info
        declared: type[MethodParams] = method.Params
        canonical = declared.canonical(protocol.dataset.name, protocol.training.attack.regime)
    except (AttributeError, TypeError) as error:
        raise BenchError(f"'{entry.name}' is not a valid method: {error}") from error
    if protocol.training.soft_labels and not vars(method).get("accepts_soft_labels"):
        raise BenchError(
            f"'{entry.name}' needs one label for each image; remove {_softening(protocol)} from the training, which "
            "mixes labels, or the method"
        )
    values = {name: value for name, (value, _) in canonical.items()}
    given = declared.model_validate(declared.completed(entry.params, values))
    if given.training_radius < 1:
        raise BenchError(
            f"'{entry.name}' states a training radius of {given.training_radius:g} eps; it must be at least 1"
        )
    params = given.model_dump(mode="json")
    reference = declared.model_validate({**entry.params, **values}).model_dump(mode="json")
    changed = {name for name, value in params.items() if name not in values or reference[name] != value}
    for name, teacher in given:
        if isinstance(teacher, Teacher):
            found = _resolve_teacher(protocol, name, teacher, (*users, entry))
            filled = teacher.model_copy(update={"params": found.params, "version": found.version})
            params[name] = filled.model_dump(mode="json")
    return ResolvedMethod(
        name=entry.name,
        version=info.version,
        params=params,
        label=entry.label or info.title,
        custom=bool(changed),
        origin=least_reliable(
            provenance for name, (value, provenance) in canonical.items() if name not in changed and value is not None
        ),
        final_is_best=info.final_is_best,
    )


def _softening(protocol: Protocol) -> str:
    """Return which setting of the training makes soft labels."""
    training = protocol.training
    mixing = [f"the augmentation '{step.name}'" for step in training.augmentation if isinstance(step, Mix)]
    return mixing[0] if mixing else "extra_data.label_smoothing"


def _resolve_teacher(protocol: Protocol, name: str, teacher: Teacher, users: tuple[MethodEntry, ...]) -> ResolvedMethod:
    """Return the method of a teacher, which the parameter `name` of the last of `users` names."""
    entry = MethodEntry(name=teacher.method, params=teacher.params)
    if any((entry.name, entry.params) == (user.name, user.params) for user in users):
        raise BenchError(f"teachers form a circle: {' -> '.join([*(user.name for user in users), entry.name])}")
    try:
        return resolve_method(protocol, entry, users)
    except ValidationError as error:
        raise BenchError(complaint(error, "params", name, "params")) from None


def params_of(cell: Cell) -> MethodParams:
    """Return the parameters of a cell that is trained."""
    params: MethodParams = registry.METHODS.get(cell.method.name).Params.model_validate(cell.method.params)
    return params


def teachers_of(cell: Cell) -> dict[str, tuple[Cell, str]]:
    """Return the cells whose networks `cell` uses, and the checkpoint of each, by the parameter that names it."""
    if cell.network is not None:
        return {}
    teachers: dict[str, tuple[Cell, str]] = {}
    for name, value in params_of(cell):
        if isinstance(value, Teacher):
            method = resolve_method(cell.protocol, MethodEntry(name=value.method, params=value.params))
            seed = cell.seed if value.seed == "same" else value.seed
            teacher = Cell(
                protocol=cell.protocol, method=method, seed=seed, suite=cell.suite, plugins=cell.plugins
            )  # not `model_copy`, which copies cached fingerprints too
            teachers[name] = teacher, value.checkpoint
    return teachers


def with_teachers(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells, and before each the teachers it needs that are not among them."""
    chosen, ordered = {cell.fingerprint: cell for cell in cells}, dict[str, Cell]()

    def add(cell: Cell) -> None:
        if cell.fingerprint not in ordered:
            for teacher, _ in teachers_of(cell).values():
                add(chosen.get(teacher.fingerprint, teacher))
            ordered[cell.fingerprint] = cell

    for cell in chosen.values():
        add(cell)
    return list(ordered.values())


class LoadedSuite:
    """A suite whose names and parameters have been resolved: its `cells`, in the order of the file.

    `steps` is the number of training steps of a cell, None if only the files tell how many images there are.
    """

    steps: int | None

    def __init__(self, file: SuiteFile) -> None:
        """Raises: BenchError, naming file, line and key, for anything that is wrong in the file."""
        self._file = file
        try:
            self.suite = Suite.model_validate(file.data)
        except ValidationError as error:
            raise self._located(error) from None
        self.plugins = tuple(str(file.path.parent.resolve() / path) for path in self.suite.plugins)
        for index, plugin in enumerate(self.plugins):
            with self._at("plugins", index):
                registry.load_plugin(Path(plugin))
        with self._at("model"):
            registry.MODELS.get(self.suite.model)
        self._check_dataset()
        self.methods = [self._resolve(index, entry) for index, entry in enumerate(self.suite.methods)]
        self.cells = [
            Cell(protocol=self.suite.protocol, method=method, seed=seed, suite=self.suite.name, plugins=self.plugins)
            for method in self.methods
            for seed in self.suite.seeds
        ]
        for index, method in enumerate(self.methods):
            with self._at("methods", index):
                for earlier in self.methods[:index]:
                    if (method.name, method.params) == (earlier.name, earlier.params):
                        raise BenchError(
                            f"'{method.label}' is the same method with the same parameters as an earlier row"
                        )
                    if method.label == earlier.label:
                        raise BenchError(f"two rows are called '{method.label}'; give one of them another 'label'")

    def _check_dataset(self) -> None:
        """Refuse a split, a batch or a crop that the images do not allow."""
        dataset, training = self.suite.dataset, self.suite.training
        with self._at("dataset", "name"):
            registered = registry.DATASETS.get(dataset.name)
        with self._at("dataset"):
            info = registered.configured(dataset)
        with self._at("dataset", "validation"):
            info.check_split()
        if dataset.files or dataset.mean or dataset.std:
            with self._at("dataset", *(["files"] if dataset.files else [])):
                check_normalisation(info.mean, info.std)
        with self._at("training", "batch_size"):
            left = self._left = info.left_to_train
            if left is not None and training.batch_size > left:
                raise BenchError(f"only {left} images are left to train on, too few for one batch")
            self.steps = None if left is None else training.epochs * training.batches(left)
        if "augmentation" not in training.model_fields_set:
            training = training.model_copy(update={"augmentation": info.augmentation})
            self.suite = self.suite.model_copy(update={"training": training})
        for index, step in enumerate(training.augmentation):
            with self._at("training", "augmentation", index, "padding"):
                if isinstance(step, Crop) and step.mode == "reflect" and step.padding >= min(info.shape[1:]):
                    size = f"{info.shape[1]}x{info.shape[2]}"
                    raise BenchError(f"an image of {size} pixels cannot be reflected into a border of {step.padding}")
        self._check_attacks(info.shape, info.classes)

    def _check_attacks(self, shape: Sequence[int], classes: int) -> None:
        """Refuse a radius or a step that the images do not allow, and attacks that need more classes."""
        threat, evaluation = self.suite.threat, self.suite.evaluation
        with self._at("threat", "eps"):
            threat.check_size(shape)
        attacks: dict[Location, TrainingAttack | FinalAttack] = {
            ("training", "attack"): self.suite.training.attack,
            ("evaluation", "track", "attack"): evaluation.track.attack,
            **{("evaluation", "final", index): attack for index, attack in enumerate(evaluation.final)},
        }
        for location, attack in attacks.items():
            own: Threat | None = getattr(attack, "threat", None)
            if own is not None:
                with self._at(*location, "threat"):
                    if own == threat:
                        raise BenchError("this is the threat of the suite; remove the key, or give another ball")
                with self._at(*location, "threat", "eps"):
                    own.check_size(shape)
            if isinstance(attack, TrainingAttack | PGD | CW) and "step_size" in attack.model_fields_set:
                with self._at(*location, "step_size"):
                    (own or threat).check_step(attack.step_size)
            if isinstance(attack, AutoAttack):
                with self._at(*location):
                    attack.check_classes(classes)

    def _resolve(self, index: int, entry: MethodEntry) -> ResolvedMethod:
        """Fill in the canonical parameters of one row and validate those that the suite gives."""
        try:
            with self._at("methods", index):
                method = resolve_method(self.suite, entry)
            if self._left is not None:
                with self._at("methods", index, "params"):
                    params = registry.METHODS.get(entry.name).Params.model_validate(method.params)
                    self._check_images(params, self._left)
            return method
        except ValidationError as error:
            raise self._located(error, ("methods", index, "params")) from None

    def _check_images(self, params: MethodParams, left: int) -> None:
        """Refuse parameters that `left` training images do not allow."""
        training, own = self.suite.training, left - params.held_out
        if own < training.batch_size:
            raise BenchError(
                f"the method holds out {params.held_out} of the {left} training images; too few for one batch are left"
            )
        params.check_length(training.epochs * training.batches(own))

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
        if first["type"] in {"unknown_key", "not_a_number"}:
            location = (*location, first["ctx"]["key"])
        missing = (*prefix, location[-1]) if first["type"] == "missing" else ()
        return BenchError(f"{self._where(location, missing)}: {sentence(first)}")

    def _where(self, location: Location, missing: Location = ()) -> str:
        existing = self._file.existing(location)
        keys = [f"{part!s:.60}" for part in (*existing, *(part for part in missing if part not in existing))]
        return f"{self._file.path}:{self._file.line(location)}" + (f": {'.'.join(keys)}" if keys else "")


def load_suite(name_or_path: str) -> LoadedSuite:
    """Load a suite by path, or by the name of one that ships with the package.

    Raises:
        BenchError: there is no such suite, or something in it is wrong (file, line and key are named).
    """
    return LoadedSuite(read_suite_file(find_suite(name_or_path)))


def find_suite(name_or_path: str) -> Path:
    """Return the path of a suite given by path or by shipped name."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    shipped = shipped_suites()
    if name_or_path not in shipped:
        raise BenchError(f"unknown suite '{name_or_path:.100}'{did_you_mean(name_or_path, shipped)}")
    return shipped[name_or_path]


def shipped_suites() -> dict[str, Path]:
    """Return the suites that ship with the package, by name; those of a subfolder last, such as `papers/NAME`."""
    package = Path(__file__).parents[1]
    for folder in (package / "suites", package.parent / "suites"):  # in the wheel; in a checkout
        if folder.is_dir():
            paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*/*.yaml"))]
            return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return {}


def select_cells(cells: Iterable[Cell], methods: Iterable[str] = (), seeds: Iterable[int] = ()) -> list[Cell]:
    """Return the cells whose method (by name or label) and seed are among the given ones; empty means all.

    Raises:
        BenchError: no cell has one of the methods or seeds.
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
