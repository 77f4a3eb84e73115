"""What a suite's runs came to, as one small file to commit: the figures that later runs are held against.

The same record describes fresh runs and the baseline, so that making a baseline is writing the record down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.attacks.outcome import Correct, PackedBits
from bench.config.suite import LoadedSuite
from bench.errors import BenchError, DamagedFile, NothingMeasured
from bench.reporting.rows import collapsed, complete_run, ranking
from bench.storage.schema import OutcomeRow, RunRow
from bench.storage.store import Epoch, Store
from bench.utils.environment import code_digest
from bench.utils.files import canonical_json, fingerprint, read_record, write_record

FORMAT = 1
"""Version of the file's layout; raised when older files can no longer be read."""

CHECKPOINTS = ("best", "last")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Frozen, and nothing in it that is not expected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Judged(Record):
    """One checkpoint under one attack: `right` of `count` images; `verdicts` packed (`outcome.pack`), in base64."""

    attack: str
    count: int = Field(ge=1)
    right: int = Field(ge=0)
    verdicts: str

    @model_validator(mode="after")
    def _agree(self) -> Judged:
        if PackedBits.from_text(self.verdicts, self.count).total() != self.right:
            raise ValueError("the verdicts are not those that 'count' and 'right' state")
        return self

    def unpacked(self) -> Correct:
        """Return the verdicts, bool, [count]."""
        return PackedBits.from_text(self.verdicts, self.count).unpack()


class Checkpoint(Record):
    """The network at best or at last, judged under every final attack in the order of the protocol.

    `collapsed`: under the strongest attack it is no better than guessing.
    """

    weights: str
    collapsed: bool
    judged: tuple[Judged, ...] = Field(min_length=1)


class Training(Record):
    """The last epoch of training: mean loss, and accuracy (a share) on the adversarial training images."""

    loss: float
    robust: Share


class Seed(Record):
    """One cell. Only a finished one has figures."""

    seed: int
    status: Literal["finished", "diverged", "failed", "interrupted", "not run"]
    training: Training | None = None
    best: Checkpoint | None = None
    last: Checkpoint | None = None

    @model_validator(mode="after")
    def _figures_if_finished(self) -> Seed:
        if any((self.status == "finished") != (part is not None) for part in (self.training, self.best, self.last)):
            raise ValueError("figures belong to a finished cell, and to no other")
        return self

    def broken(self, checkpoint: str) -> str | None:
        """Return `diverged` or `collapsed` if the cell has no figure worth averaging at a checkpoint, else None."""
        if self.status == "diverged":
            return "diverged"
        network: Checkpoint | None = getattr(self, checkpoint)
        return "collapsed" if network is not None and network.collapsed else None


class Row(Record):
    """A method with its parameters, and its cells by seed."""

    label: str
    method: str
    version: int
    params: dict[str, Any]
    seeds: tuple[Seed, ...] = Field(min_length=1)

    @property
    def key(self) -> str:
        """What makes two rows the same one; the label does not."""
        return canonical_json([self.method, self.version, self.params])


class Snapshot(Record):
    """What the runs of a suite came to. `made_with`: the different environments of the runs."""

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
            raise ValueError("cells were judged on different numbers of images")
        return self

    def require_complete(self) -> None:
        """Raise NothingMeasured unless every cell has ended, which a baseline needs."""
        lacking = [
            f"{row.label} seed {seed.seed} ({seed.status})"
            for row in self.rows
            for seed in row.seeds
            if seed.status not in {"finished", "diverged"}
        ]
        if lacking:
            raise NothingMeasured(f"a baseline needs every cell of {self.suite}; not ended: {', '.join(lacking)}")
        if not any(seed.status == "finished" for row in self.rows for seed in row.seeds):
            raise NothingMeasured(f"no cell of {self.suite} has a figure: all diverged")


def snapshot(store: Store, loaded: LoadedSuite) -> Snapshot:
    """Return what the store knows of the cells of a suite; cells that have not finished are there without figures.

    Raises:
        DamagedFile: what the store holds contradicts itself, such as runs judged on different images.
        NothingMeasured: the runs were made by other code than this, and say nothing of it.
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
    _check_code([runs[name].environment for name in cells if name in runs])
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
        raise DamagedFile(f"the runs of {loaded.suite.name} do not fit together: {_complaint(error)}") from error


def _seed(seed: int, run: RunRow | None, curve: Sequence[Epoch]) -> Seed:
    if run is None:
        return Seed(seed=seed, status="not run")
    finals = run.protocol.content["evaluation"]["final"]
    found = complete_run(run, finals, "validation")
    if found is None:
        return Seed.model_validate({"seed": seed, "status": "failed" if run.status == "finished" else run.status})
    return Seed(
        seed=seed,
        status="finished",
        training=Training(loss=round(curve[-1].train_loss, 6), robust=round(curve[-1].train_robust, 6)),
        best=_checkpoint("best", found.best, run),
        last=_checkpoint("last", found.last, run),
    )


def _checkpoint(name: str, outcomes: Sequence[OutcomeRow], run: RunRow) -> Checkpoint:
    return Checkpoint(
        weights=run.checkpoints[name].sha256,
        collapsed=collapsed(outcomes[ranking(run.protocol.content["evaluation"]["final"])], run),
        judged=tuple(
            Judged(
                attack=outcome.title,
                count=outcome.count,
                right=outcome.right,
                verdicts=outcome.bits.text,
            )
            for outcome in outcomes
        ),
    )


def _environment(environment: dict[str, Any]) -> dict[str, Any]:
    """Return what figures may depend on; not the machine's name, which would make equal baselines differ."""
    return {
        key: environment[key] for key in ("device", "cpu", "gpu", "threads", "versions", "git") if key in environment
    }


def _check_code(environments: Sequence[dict[str, Any]]) -> None:
    """Raise NothingMeasured unless all runs were made by the code that is here: complete cells are never run again."""
    now = code_digest()
    for environment in environments:
        then = environment.get("code")
        if then != now:
            made = f"by other code (digest {then[:12]}, here {now[:12]})" if then else "by code that they do not name"
            raise NothingMeasured(
                f"the runs were made {made}, so nothing of this code was measured; run the suite again with "
                "--rerun all, or into another --results"
            )


# --- the file --------------------------------------------------------------------------------------------------------


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline.

    Raises:
        BenchError: there is none, or it is of another version.
        DamagedFile: it is not what was written there.
    """
    try:
        content = read_record(path)
    except FileNotFoundError:
        raise BenchError(f"there is no baseline {path}; `bench check SUITE --update` writes one") from None
    except OSError as error:
        raise BenchError(f"the baseline {path} cannot be read: {error.strerror}") from error
    if content.get("format") != FORMAT:
        raise BenchError(
            f"the baseline {path} has format {content.get('format')!r:.20}, this version reads {FORMAT}; "
            "make it anew with --update"
        )
    try:
        return Snapshot.model_validate(content)
    except ValidationError as error:
        raise DamagedFile(f"the baseline {path} is damaged: {_complaint(error)}") from error


def write_baseline(path: Path, found: Snapshot) -> None:
    """Write a baseline, whole or not at all. Raises BenchError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, found.model_dump(mode="json", exclude_none=True))
    except OSError as error:
        raise BenchError(f"the baseline {path} cannot be written: {error.strerror}") from error


def _complaint(error: ValidationError) -> str:
    """Return pydantic's first complaint in one line: where, and what."""
    problem = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
