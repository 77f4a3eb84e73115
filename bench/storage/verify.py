"""Whether run folders and the database are intact, and agree with each other."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, and_, exists, select, text

from bench.errors import BenchError, DamagedFile
from bench.storage.checkpoints import INDEX, Checkpoints, load_verified
from bench.storage.database import name_of, reported
from bench.storage.run_folder import CHECKPOINTS, RunFolder, run_folders
from bench.storage.schema import Base, RunRow
from bench.storage.store import Store, problem
from bench.utils.environment import different_data
from bench.utils.files import fingerprint

REPAIR_RUN = "`bench run SUITE --rerun failed` repairs it"
REPAIR_STORE = "`bench ingest` imports it again"
SEPARATE = "move those of the wrong data away, delete the database, and rebuild it with `bench ingest`"

VALID = text("SELECT conname FROM pg_constraint WHERE convalidated AND connamespace = current_schema()::regnamespace")


@dataclass(frozen=True)
class Report:
    """The number of runs in the database, of run folders, and of runs whose folder is elsewhere; and all problems."""

    runs: int
    folders: int
    elsewhere: int
    problems: list[str]


def verify(store: Store, results: Path) -> Report:
    """Compare the database with the run folders, and both with the digests and accuracies that they state.

    The folders are imported into a second database, in memory: runs that have ended must be equal in both.
    """
    damaged, folders, ended = database_damage(store.engine), run_folders(results), set()
    problems = list(damaged)
    environments: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    with Store("sqlite:///:memory:") as rebuilt:
        for folder in folders:
            damage = folder_damage(folder)
            try:
                if not damage:
                    cell = folder.cell()
                    environments[cell["protocol_fingerprint"]][folder.path.name] = cell["environment"]
                    rebuilt.ingest(folder)
                    if folder.result() is not None:
                        ended.add(folder.cell()["fingerprint"])
            except DamagedFile as error:
                damage = [str(error)]
            problems += [f"{sentence}; {REPAIR_RUN}" for sentence in damage]
        for protocol, of_runs in environments.items():
            if different := different_data(of_runs):
                problems.append(f"runs of protocol {protocol[:12]} used different data: {different}; {SEPARATE}")
        if damaged:
            return Report(0, len(folders), 0, problems)
        runs, fresh = ({run.fingerprint: run for run in source.runs(bits=True)} for source in (store, rebuilt))
        for run in runs.values():
            problems += [
                f"the database's run {run.folder}: {sentence}; {REPAIR_STORE}" for sentence in _contradictions(run)
            ]
        for name in sorted(ended):
            if name not in runs:
                problems.append(f"{fresh[name].folder} is not in the database; {REPAIR_STORE}")
            elif (store.show_run(name), _bits(runs[name])) != (rebuilt.show_run(name), _bits(fresh[name])):
                problems.append(f"the database's run {fresh[name].folder} differs from its folder; {REPAIR_STORE}")
    here = {folder.path.name for folder in folders}
    return Report(len(runs), len(folders), sum(Path(run.folder).name not in here for run in runs.values()), problems)


def _contradictions(run: RunRow) -> list[str]:
    """Return where a run's rows contradict each other."""
    problems = []
    if fingerprint(run.protocol.content) != run.protocol_fingerprint:
        problems.append("its protocol does not match its fingerprint")
    for name, checkpoint in run.checkpoints.items():
        for key, outcome in checkpoint.outcomes.items():
            right = outcome.bits.total()
            if (outcome.right, outcome.accuracy) != (right, right / outcome.count):
                problems.append(f"the accuracy of {name} under {key} does not match its {outcome.count} images")
    return problems


def _bits(run: RunRow) -> dict[tuple[str, str], Any]:
    return {
        (name, key): outcome.correct
        for name, checkpoint in run.checkpoints.items()
        for key, outcome in checkpoint.outcomes.items()
    }


# --- one run folder --------------------------------------------------------------------------------------------------


def folder_damage(folder: RunFolder) -> list[str]:
    """Return what is damaged or missing in a run folder, a sentence each. Reads every file, writes nothing."""
    problems = []
    for read in (
        folder.refuse_links,
        folder.cell,
        folder.result,
        folder.incidents,
        folder.origin,
        lambda: load_verified(folder),
    ):
        try:
            read()
        except FileNotFoundError:  # no cell.json
            problems.append(f"{folder.path} is not a run folder: it has no cell.json")
        except (DamagedFile, OSError) as error:
            problems.append(problem(error))
    problems += map(str, folder.damaged_outcomes().values())
    return problems or _missing(folder)


def _missing(folder: RunFolder) -> list[str]:
    """Return what a finished run lacks, or has of other weights."""
    if folder.status() != "finished":
        return []
    if not (folder.checkpoints / INDEX).exists():
        return [f"{folder.checkpoints / INDEX} is missing"]
    entries, outcomes = Checkpoints(folder.checkpoints).entries, folder.read_outcomes()
    problems = []
    for (checkpoint, key), record in outcomes.items():
        if checkpoint not in entries or record["weights_sha256"] != entries[checkpoint].sha256:
            problems.append(f"{folder.outcome_path(checkpoint, key)} is of other weights than those of its checkpoint")
    attacks = len(folder.cell()["cell"]["protocol"]["evaluation"]["final"])
    for name in CHECKPOINTS:
        evaluated = sum(checkpoint == name for checkpoint, _ in outcomes)
        if name in entries and evaluated < attacks:
            problems.append(f"{folder.outcomes} has {evaluated} outcomes of the checkpoint '{name}', not {attacks}")
    return problems


# --- the database ----------------------------------------------------------------------------------------------------


def database_damage(engine: Engine) -> list[str]:
    """Return what is wrong with the database at `engine`, a sentence each, with its repair.

    SQLite checks its pages and foreign keys itself. PostgreSQL checks its pages itself; rows without their parent, and
    constraints that were dropped or disabled, are looked for here. In other databases, only the former.
    """
    sqlite, name = engine.dialect.name == "sqlite", name_of(engine)
    repair = "delete it and run `bench ingest`" if sqlite else "drop its tables and run `bench ingest`"
    try:
        with reported(engine), engine.connect() as connection:
            problems = _of_sqlite(connection) if sqlite else [*_missing_constraints(connection), *_orphans(connection)]
    except BenchError as error:
        return [f"{error}; {repair}"]
    return [f"{name} {problem}; {repair}" for problem in problems]


def _of_sqlite(connection: Connection) -> list[str]:
    pages = [str(line) for (line,) in connection.exec_driver_sql("PRAGMA integrity_check")]
    orphans = {(row[0], row[2]) for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}
    damaged = [] if pages == ["ok"] else [f"is damaged: {pages[0]}"]
    return damaged + [_orphan(*pair) for pair in sorted(orphans)]


def _orphan(child: str, parent: str) -> str:
    return f"has a row in '{child}' whose '{parent}' is missing"


def _orphans(connection: Connection) -> list[str]:
    problems = []
    for child in Base.metadata.sorted_tables:
        for key in child.foreign_key_constraints:
            same = and_(*(element.parent == element.column for element in key.elements))
            if connection.scalar(select(1).select_from(child).where(~exists().where(same)).limit(1)):
                problems.append(_orphan(child.name, key.referred_table.name))
    return problems


def _missing_constraints(connection: Connection) -> list[str]:
    """Return the constraints of the schema that PostgreSQL lacks, or has not validated for all rows."""
    if connection.dialect.name != "postgresql":
        return []
    valid = set(connection.scalars(VALID))
    stated = {str(one.name) for table in Base.metadata.tables.values() for one in table.constraints}
    return [f"has no valid constraint '{name}'" for name in sorted(stated - valid)]
