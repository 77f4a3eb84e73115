"""Bundles: the records of finished runs as one file, which another results folder can ingest.

A bundle is a record (`bench.utils.files`), JSON text that states the SHA-256 of its content:

    format, version   "bench-bundle", 1
    origin            where the runs come from, in words, or null
    runs              a list by folder name, each with
      folder          the name of its run folder
      fingerprint, protocol_fingerprint
      files           by path below the run folder, each with
        sha256        of the file's bytes
        text          the file, a list of its lines

There is no archive to unpack: no links, no compression, and only the paths that `_record_path` accepts. Equal records
and origins give equal bytes. Weights and logs are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from bench.config.base import BaseConfig, shown
from bench.config.messages import complaint
from bench.config.protocol import Digest
from bench.errors import BenchError, DamagedFile, NothingMeasured
from bench.storage.received import received_run
from bench.storage.run_folder import CellStatus, RunFolder, run_folders
from bench.storage.schema import RunRow
from bench.utils.environment import other_code
from bench.utils.files import fingerprint, read_record, record_bytes, write_atomically
from bench.utils.formatting import byte_size

FORMAT: Final = "bench-bundle"

VERSION: Final = 1
"""Of the format. A reader refuses bundles of later versions."""

MAX_BYTES = 256 * 2**20
"""Of a bundle: about 2,000 runs of 200 epochs with nine outcomes of 10,000 images."""

MAX_ORIGIN = 200

SHOWN = 3  # runs that a sentence names

RECORDS = ("cell.json", "epochs.jsonl", "done.json", "incidents.json", "checkpoints/index.json")
"""The files of a run that a bundle has, besides the outcomes."""

_OUTCOME = re.compile(r"outcomes/[A-Za-z0-9_]+\.[A-Za-z0-9_-]+\.json")


def _record_path(path: str) -> str:
    if path not in RECORDS and not (_OUTCOME.fullmatch(path) and len(path) <= 100):
        raise PydanticCustomError("path", f"{shown(path)} is not the path of a record of a run")
    return path


def _one_line(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise PydanticCustomError("origin", "must be one line of printable characters, without spaces around it")
    return text


class BundledFile(BaseConfig):
    """A file of a run: the SHA-256 of its bytes, and its lines with their ends."""

    sha256: Digest
    text: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> BundledFile:
        """Read a file. Raises DamagedFile if it is not UTF-8."""
        data = path.read_bytes()
        try:
            lines = data.decode().splitlines(keepends=True)
        except UnicodeDecodeError as error:
            raise DamagedFile(f"{path} is damaged: it is not UTF-8") from error
        return cls(sha256=hashlib.sha256(data).hexdigest(), text=tuple(lines))

    @property
    def data(self) -> bytes:
        return "".join(self.text).encode()

    @model_validator(mode="after")
    def _intact(self) -> BundledFile:
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise PydanticCustomError("sha256", "the text does not match its SHA-256")
        return self


class BundledRun(BaseConfig):
    """The records of a run. `received_run` checks what they state."""

    folder: str = Field(pattern=r"^[A-Za-z0-9-]+$", max_length=200)
    fingerprint: Digest
    protocol_fingerprint: Digest
    files: dict[Annotated[str, AfterValidator(_record_path)], BundledFile]

    @classmethod
    def of(cls, folder: RunFolder) -> BundledRun:
        """Read the records of a run. Raises BenchError if it has not finished, DamagedFile if they are damaged."""
        folder.refuse_links()
        if (status := folder.status()) is not CellStatus.FINISHED:
            raise BenchError(f"run '{folder.path.name}' is {status}; only finished runs can be bundled")
        cell = folder.cell()
        return cls(
            folder=folder.path.name,
            fingerprint=cell["fingerprint"],
            protocol_fingerprint=cell["protocol_fingerprint"],
            files=records_of(folder),
        )


class Bundle(BaseConfig):
    """Finished runs, by folder name."""

    format: Literal["bench-bundle"] = FORMAT
    version: Literal[1] = VERSION
    origin: Annotated[str, Field(min_length=1, max_length=MAX_ORIGIN), AfterValidator(_one_line)] | None = None
    runs: Annotated[tuple[BundledRun, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sorted(self) -> Bundle:
        names = [run.folder for run in self.runs]
        if names != sorted(set(names)):
            raise PydanticCustomError("runs", "must be sorted by 'folder', each once")
        return self

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the content, which the file states in its first lines."""
        return fingerprint(self.model_dump(mode="json"))

    @cached_property
    def data(self) -> bytes:
        """The bytes of the file."""
        return record_bytes(self.model_dump(mode="json"))


def records_of(folder: RunFolder) -> dict[str, BundledFile]:
    """Return the files of a run folder that a bundle has, by path. Raises DamagedFile if one is not UTF-8."""
    paths = [folder.path / name for name in RECORDS] + list(folder.outcomes.glob("*.json"))
    names = {path.relative_to(folder.path).as_posix(): path for path in paths if path.is_file()}
    return {name: BundledFile.of(names[name]) for name in sorted(names)}


def make_bundle(folders: Sequence[RunFolder], origin: str | None = None) -> Bundle:
    """Return the bundle of finished runs.

    Raises:
        BenchError: a run has not finished, `origin` is not one line, or the runs are too many for one bundle.
        DamagedFile: a record is damaged, or contradicts another.
    """
    by_name = {folder.path.name: folder for folder in folders}
    try:
        bundle = Bundle(origin=origin, runs=tuple(BundledRun.of(by_name[name]) for name in sorted(by_name)))
    except ValidationError as error:
        raise BenchError(complaint(error)) from None
    if len(bundle.data) > MAX_BYTES:
        raise BenchError(f"a bundle has at most {byte_size(MAX_BYTES)}; split the runs over several bundles")
    check_bundle(bundle, str(folders[0].path.parent))
    return bundle


def read_bundle(path: Path) -> Bundle:
    """Read a bundle; what its records state is not checked before `check_bundle`.

    Raises:
        BenchError: the file cannot be read, is no bundle, of a later version, or too large.
        DamagedFile: it is not what was written.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BenchError(f"{path} is larger than any bundle: {byte_size(MAX_BYTES)}")
        content = read_record(path)
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror or error}") from None
    if content.get("format") != FORMAT:
        raise BenchError(f"{path} is not a bundle of runs; `bench bundle` writes them")
    if isinstance(version := content.get("version"), int) and version > VERSION:
        raise BenchError(f"{path} is a bundle of version {version}, this package reads version {VERSION}; upgrade it")
    try:
        return Bundle.model_validate(content)
    except ValidationError as error:
        raise DamagedFile(f"{path} is no valid bundle: {complaint(error)}") from None


def write_run(run: BundledRun, folder: RunFolder, *, durable: bool) -> None:
    """Write the files of a run into a new folder, flushed to disk if `durable`."""
    for path, file in run.files.items():
        (folder.path / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.path / path, file.data, durable=durable)


def check_bundle(bundle: Bundle, name: str) -> list[RunRow]:
    """Return what the runs of a bundle state, in its order, after all checks; `name` is for messages.

    Raises:
        DamagedFile: a record is damaged, or contradicts another, the protocol or the bundle.
    """
    rows = []
    with TemporaryDirectory() as temporary:
        for run in bundle.runs:
            folder = RunFolder(Path(temporary) / "runs" / run.folder)
            write_run(run, folder, durable=False)
            try:
                row = received_run(folder)
                if (row.fingerprint, row.protocol_fingerprint) != (run.fingerprint, run.protocol_fingerprint):
                    raise DamagedFile(f"{folder.path} has other fingerprints than the bundle states")
            except DamagedFile as error:
                raise DamagedFile(f"{name}: {str(error).replace(f'{temporary}/runs/', '')}") from None
            rows.append(row)
    return rows


def check_protocol(bundle: Bundle, name: str, protocol: str) -> None:
    """Raise BenchError, which names the runs, if some have another protocol than the one with this fingerprint."""
    if others := [run for run in bundle.runs if run.protocol_fingerprint != protocol]:
        listed = ", ".join(f"{run.folder} ({run.protocol_fingerprint[:12]})" for run in others[:SHOWN])
        more = ", ..." if len(others) > SHOWN else ""
        raise BenchError(f"{name}: {len(others)} runs have another protocol than {protocol[:12]}: {listed}{more}")


def describe_bundle(rows: Sequence[RunRow]) -> list[dict[str, Any]]:
    """Return one row of plain data for each run; `code` says whether the code here measured it."""
    return [
        {
            "name": Path(row.folder).name,
            "suite": row.suite,
            "method": row.label,
            "seed": row.seed,
            "protocol": row.protocol_fingerprint[:12],
            "code": other_code(row.environment, row.environment.get("plugins") or {}) or "the code here",
        }
        for row in rows
    ]


def finished_runs(results: Path, protocol: str | None) -> tuple[list[RunFolder], int]:
    """Return the finished runs of a results folder, and how many others there are.

    Args:
        protocol: fingerprint of the protocol whose runs to include; None includes all.

    Raises:
        NothingMeasured: none has finished.
        DamagedFile: a record is damaged.
    """
    folders = [
        folder
        for folder in run_folders(results)
        if protocol is None or folder.cell().get("protocol_fingerprint") == protocol
    ]
    finished = [folder for folder in folders if folder.status() is CellStatus.FINISHED]
    if not finished:
        which = "" if protocol is None else f" of protocol {protocol[:12]}"
        raise NothingMeasured(f"no run{which} in {results / 'runs'} has finished; `bench run SUITE` runs them")
    return finished, len(folders) - len(finished)
