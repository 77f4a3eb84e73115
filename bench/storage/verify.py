"""Is a store what its run folders make, and is either damaged?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.attacks.outcome import unpack
from bench.errors import DamagedFile
from bench.storage.run_folder import run_folders
from bench.storage.schema import RunRow
from bench.storage.store import Store
from bench.storage.verify_folder import damage_of
from bench.utils.files import fingerprint

MEND_RUN = "`bench run SUITE --rerun failed` mends it"
MEND_STORE = "`bench ingest` takes it in again"


@dataclass(frozen=True)
class Verdict:
    """What was looked at: runs in the store, run folders, runs whose folder is elsewhere, and what is amiss."""

    runs: int
    folders: int
    elsewhere: int
    problems: list[str]


def verify(store: Store, results: Path) -> Verdict:
    """Read the whole store and every file of the run folders that a figure rests on, and hold them against each other.

    The folders are taken into a second store, in memory: what has ended must be the same in both.
    """
    damaged, folders, ended = store.damage(), run_folders(results), set()
    problems = list(damaged)
    with Store("sqlite:///:memory:") as rebuilt:
        for folder in folders:
            damage = damage_of(folder)
            try:
                if not damage:
                    rebuilt.ingest(folder)
                    if folder.result() is not None:
                        ended.add(folder.cell()["fingerprint"])
            except DamagedFile as error:
                damage = [str(error)]
            problems += [f"{sentence}; {MEND_RUN}" for sentence in damage]
        if damaged:
            return Verdict(0, len(folders), 0, problems)
        runs, fresh = ({run.fingerprint: run for run in one.runs(bits=True)} for one in (store, rebuilt))
        for run in runs.values():
            problems += [f"the store's run {run.folder}: {sentence}; {MEND_STORE}" for sentence in _contradictions(run)]
        for name in sorted(ended):
            if name not in runs:
                problems.append(f"{fresh[name].folder} is not in the store; {MEND_STORE}")
            elif (store.show_run(name), _bits(runs[name])) != (rebuilt.show_run(name), _bits(fresh[name])):
                problems.append(f"the store's run {fresh[name].folder} is not what the folder holds; {MEND_STORE}")
    here = {folder.path.name for folder in folders}
    return Verdict(len(runs), len(folders), sum(Path(run.folder).name not in here for run in runs.values()), problems)


def _contradictions(run: RunRow) -> list[str]:
    """Return where a run's rows contradict themselves."""
    found = []
    if fingerprint(run.protocol.content) != run.protocol_fingerprint:
        found.append("its protocol is not the one of its fingerprint")
    for name, checkpoint in run.checkpoints.items():
        for key, outcome in checkpoint.outcomes.items():
            right = int(unpack(outcome.correct, outcome.count).sum())
            if (outcome.right, outcome.accuracy) != (right, right / outcome.count):
                found.append(f"the accuracy of {name} under {key} is not that of its {outcome.count} verdicts")
    return found


def _bits(run: RunRow) -> dict[tuple[str, str], Any]:
    return {
        (name, key): outcome.correct
        for name, checkpoint in run.checkpoints.items()
        for key, outcome in checkpoint.outcomes.items()
    }
