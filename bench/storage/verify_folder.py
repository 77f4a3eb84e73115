"""Is a run folder what its worker left? Every file that a figure rests on is read, and held against its digest."""

from __future__ import annotations

from bench.errors import DamagedFile
from bench.storage.checkpoints import INDEX, Checkpoints, load_verified
from bench.storage.run_folder import CHECKPOINTS, RunFolder


def damage_of(folder: RunFolder) -> list[str]:
    """Return what is damaged or missing in a run folder, a sentence each; nothing is written."""
    found = []
    for look in (folder.refuse_links, folder.cell, folder.result, folder.incidents, lambda: load_verified(folder)):
        try:
            look()
        except FileNotFoundError:  # no cell.json
            found.append(f"{folder.path} is not a run folder: it has no cell.json")
        except DamagedFile as error:
            found.append(str(error))
    found += map(str, folder.damaged_outcomes().values())
    return found or _gaps(folder)


def _gaps(folder: RunFolder) -> list[str]:
    """Return what a run that finished lacks, or has of other weights."""
    if folder.status() != "finished":
        return []
    if not (folder.checkpoints / INDEX).exists():
        return [f"{folder.checkpoints / INDEX} is missing"]
    entries, outcomes = Checkpoints(folder.checkpoints).entries, folder.read_outcomes()
    found = []
    for (checkpoint, key), record in outcomes.items():
        if checkpoint not in entries or record["weights_sha256"] != entries[checkpoint].sha256:
            found.append(f"{folder.outcome_path(checkpoint, key)} judges other weights than those of its checkpoint")
    attacks = len(folder.cell()["cell"]["protocol"]["evaluation"]["final"])
    for name in CHECKPOINTS:
        judged = sum(checkpoint == name for checkpoint, _ in outcomes)
        if name in entries and judged < attacks:
            found.append(f"{folder.outcomes} has {judged} outcomes of the checkpoint '{name}', not {attacks}")
    return found
