"""The results of a suite's runs as one small file to commit: the figures that later runs are compared with.

New runs and the baseline have the same record, so creating a baseline means writing the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.attacks.outcome import PackedBits
from bench.config.messages import complaint
from bench.config.suite import LoadedSuite
from bench.errors import BenchError, DamagedFile, NotComparable, NothingMeasured
from bench.reporting.rows import collapsed, complete_run, ranking
from bench.storage.schema import OutcomeRow, RunRow
from bench.storage.store import Epoch, Store
from bench.utils.environment import DATA, different_data, other_code
from bench.utils.files import canonical_json, fingerprint, read_record, write_record

FORMAT = 1
"""Version of the file's layout; raised when older files can no longer be read."""

CHECKPOINTS = ("best", "last")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A frozen model that allows no other keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AttackResult(Record):
    """One checkpoint under one attack: `right` of `count` images are correct; `verdicts`: the text of `PackedBits`.

    `versions`: of each image, under corruptions; each counts.
    """

    attack: str
    count: int = Field(ge=1)
    right: int = Field(ge=0)
    verdicts: str
    versions: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _agree(self) -> AttackResult:
        if PackedBits.from_text(self.verdicts, self.count).total() != self.right:
            raise ValueError("'verdicts' does not have 'right' of 'count' bits set")
        if self.count % (self.versions or 1):
            raise ValueError("'count' is not a multiple of 'versions'")
        return self

    def correct(self) -> NDArray[Any]:
        """Return whether each image is classified correctly (bool), or the share of its versions (float): [images]."""
        return PackedBits.from_text(self.verdicts, self.count).per_image(self.versions or 1)


class CheckpointResult(Record):
    """The best or the last checkpoint under every final attack, in the order of the protocol.

    `collapsed`: under the ranking attack it is no better than guessing.
    """

    weights: str
    collapsed: bool
    judged: tuple[AttackResult, ...] = Field(min_length=1)


class Training(Record):
    """The last epoch of training: mean loss, and accuracy (a share) on the adversarial training images."""

    loss: float
    robust: Share


class SeedResult(Record):
    """One cell. Only a finished one has figures."""

    seed: int
    status: Literal["finished", "diverged", "failed", "interrupted", "not run"]
    training: Training | None = None
    best: CheckpointResult | None = None
    last: CheckpointResult | None = None

    @model_validator(mode="after")
    def _figures_if_finished(self) -> SeedResult:
        if any((self.status == "finished") != (part is not None) for part in (self.training, self.best, self.last)):
            raise ValueError("figures belong to a finished cell, and to no other")
        return self

    def broken(self, checkpoint: str) -> str | None:
        """Return `diverged` or `collapsed` if the cell has no figure to average at a checkpoint, else None."""
        if self.status == "diverged":
            return "diverged"
        network: CheckpointResult | None = getattr(self, checkpoint)
        return "collapsed" if network is not None and network.collapsed else None


class Row(Record):
    """A method with its parameters, and its cells by seed."""

    label: str
    method: str
    version: int
    params: dict[str, Any]
    seeds: tuple[SeedResult, ...] = Field(min_length=1)

    @property
    def key(self) -> str:
        """The identity of a row; the label is no part of it."""
        return canonical_json([self.method, self.version, self.params])


class Snapshot(Record):
    """The results of a suite's runs. `made_with`: the distinct environments of the runs, with digests of the images."""

    format: Literal[1]
    suite: str
    fingerprint: Digest
    protocol: dict[str, Any]
    made_with: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Snapshot:
        if fingerprint(self.protocol) != self.fingerprint:
            raise ValueError("the fingerprint is not that of the protocol")
        counts = [
            tuple(judged.count for judged in network.judged)
            for row in self.rows
            for seed in row.seeds
            for network in (seed.best, seed.last)
            if network is not None
        ]
        if any(count != counts[0] for count in counts):
            raise ValueError("cells have different numbers of images")
        return self

    @property
    def data(self) -> dict[str, str]:
        """The digests of the images, see `environment.DATA`; empty in baselines of older versions."""
        return {key: value for environment in self.made_with for key, value in environment.get("data", {}).items()}

    def require_complete(self) -> None:
        """Raise NothingMeasured unless every cell has finished or diverged, which a baseline needs."""
        incomplete = [
            f"{row.label} seed {seed.seed} ({seed.status})"
            for row in self.rows
            for seed in row.seeds
            if seed.status not in {"finished", "diverged"}
        ]
        if incomplete:
            raise NothingMeasured(f"a baseline needs every cell of {self.suite}; not finished: {', '.join(incomplete)}")
        if not any(seed.status == "finished" for row in self.rows for seed in row.seeds):
            raise NothingMeasured(f"no cell of {self.suite} has a result: all diverged")


def snapshot(store: Store, loaded: LoadedSuite) -> Snapshot:
    """Return the results of a suite's cells in the store; cells that have not finished are included without figures.

    Raises:
        DamagedFile: what the store holds contradicts itself, such as runs on different images.
        NothingMeasured: the runs were made by other code than this, and say nothing of it.
        NotComparable: the runs used different data.
    """
    protocol = loaded.suite.protocol
    runs = {run.fingerprint: run for run in store.runs(protocol=protocol.fingerprint, bits=True)}
    cells = {cell.fingerprint: cell for cell in loaded.cells}
    curves = store.curves(cells)
    rows = []
    for method in loaded.methods:
        seeds = [
            _seed(cell.seed, runs.get(name), curves.get(name, []))
            for name, cell in cells.items()
            if cell.method.label == method.label
        ]
        rows.append(
            Row(
                label=method.label,
                method=method.name,
                version=method.version,
                params=method.params,
                seeds=tuple(sorted(seeds, key=lambda seed: seed.seed)),
            )
        )
    found = [_environment(runs[name].environment) for name in cells if name in runs]
    environments = {canonical_json(environment): environment for environment in found}
    for name, cell in cells.items():
        if name in runs and (code := other_code(runs[name].environment, cell.plugin_digests())):
            raise NothingMeasured(  # complete cells are never run again
                f"the run of {cell} was made by {code}, so nothing of this code was measured; run the suite again "
                "with --rerun all, or into another --results"
            )
    used = {str(cells[name]): runs[name].environment for name in cells if name in runs}
    if different := different_data(used):
        raise NotComparable(f"not comparable: the runs of {loaded.suite.name} used different data: {different}")
    try:
        return Snapshot(
            format=FORMAT,
            suite=loaded.suite.name,
            fingerprint=protocol.fingerprint,
            protocol=protocol.identity(),
            made_with=tuple(environments[key] for key in sorted(environments)),
            rows=tuple(rows),
        )
    except ValidationError as error:
        raise DamagedFile(f"the runs of {loaded.suite.name} contradict each other: {complaint(error)}") from error


def _seed(seed: int, run: RunRow | None, curve: Sequence[Epoch]) -> SeedResult:
    if run is None:
        return SeedResult(seed=seed, status="not run")
    attacks = run.protocol.content["evaluation"]["final"]
    complete = complete_run(run, attacks, "validation")
    if complete is None:
        return SeedResult.model_validate({"seed": seed, "status": "failed" if run.status == "finished" else run.status})
    return SeedResult(
        seed=seed,
        status="finished",
        training=Training(loss=round(curve[-1].train_loss, 6), robust=round(curve[-1].train_robust, 6)),
        best=_checkpoint("best", complete.best, run),
        last=_checkpoint("last", complete.last, run),
    )


def _checkpoint(name: str, outcomes: Sequence[OutcomeRow], run: RunRow) -> CheckpointResult:
    return CheckpointResult(
        weights=run.checkpoints[name].sha256,
        collapsed=collapsed(outcomes[ranking(run.protocol.content["evaluation"]["final"])], run),
        judged=tuple(
            AttackResult(
                attack=outcome.title,
                count=outcome.count,
                right=outcome.right,
                verdicts=outcome.bits.text,
                versions=outcome.versions if outcome.versions > 1 else None,
            )
            for outcome in outcomes
        ),
    )


def _environment(environment: dict[str, Any]) -> dict[str, Any]:
    """Return what figures may depend on, without the host's name, so that equal baselines have equal files."""
    kept = {
        key: environment[key] for key in ("device", "cpu", "gpu", "threads", "versions", "git") if key in environment
    }
    data = {part: digest for part, digest in (environment.get("data") or {}).items() if part in DATA}
    return kept | ({"data": data} if data else {})


def check_same_images(run: Snapshot, baseline: Snapshot) -> None:
    """Raise NotComparable if the images of two snapshots differ in number, or in their digests if both have any."""
    counts = [
        next(
            (tuple(one.count for one in seed.best.judged) for row in side.rows for seed in row.seeds if seed.best), None
        )
        for side in (baseline, run)
    ]
    if None not in counts and counts[0] != counts[1]:
        raise NotComparable(f"not comparable: the baseline has {counts[0]} test images, these runs {counts[1]}")
    if different := different_data({"baseline": {"data": baseline.data}, "now": {"data": run.data}}):
        raise NotComparable(
            f"not comparable: these runs used other data than the baseline's: {different}; if this is intended, create "
            "a new baseline with --update"
        )


# --- the file --------------------------------------------------------------------------------------------------------


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline.

    Raises:
        BenchError: the file does not exist or cannot be read, or has another format.
        DamagedFile: its content is not valid.
    """
    try:
        content = read_record(path)
    except FileNotFoundError:
        raise BenchError(f"there is no baseline {path}; create it with `bench check SUITE --update`") from None
    except OSError as error:
        raise BenchError(f"the baseline {path} cannot be read: {error.strerror}") from error
    if content.get("format") != FORMAT:
        raise BenchError(
            f"the baseline {path} has format {content.get('format')!r:.20}, this version reads {FORMAT}; "
            "recreate it with --update"
        )
    try:
        return Snapshot.model_validate(content)
    except ValidationError as error:
        raise DamagedFile(f"the baseline {path} is damaged: {complaint(error)}") from error


def write_baseline(path: Path, results: Snapshot) -> None:
    """Write a baseline atomically. Raises BenchError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, results.model_dump(mode="json", exclude_none=True))
    except OSError as error:
        raise BenchError(f"the baseline {path} cannot be written: {error.strerror}") from error
