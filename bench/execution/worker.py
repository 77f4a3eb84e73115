"""The worker: one cell, from its request to `done.json`, inside its own run folder and nowhere else."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import registry
from bench.attacks.autoattack import CascadeState
from bench.data.dataset import Dataset, Images, dataset_of
from bench.environment import describe
from bench.errors import DamagedFile
from bench.evaluation import attack_identity, evaluate, evaluated_images, forward_passes
from bench.protocol import FinalAttack
from bench.records import fingerprint, read_record, write_record
from bench.run_folder import CHECKPOINTS, Busy, RunFolder
from bench.spec import Cell
from bench.training.checkpoint import Checkpoints
from bench.training.trainer import Diverged, Trainer, build_evaluated

log = logging.getLogger(__name__)

EXIT_BUSY = 75  # another process holds the run folder (EX_TEMPFAIL of sysexits.h)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: the cell, and where and how to run it."""

    cell: Cell
    results: Path
    device: str
    data: Path | None
    threads: int


def work_in_process(job: Job) -> None:
    """Run `job` as the whole of this process; the exit status is 0, or `EXIT_BUSY`, or 1 for a failure on record."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides; it ends us with SIGTERM
    _end_with_parent()
    folder = RunFolder.of(job.cell, job.results)
    try:
        with folder.hold(), folder.log.open("a", encoding="utf-8") as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            os.dup2(output.fileno(), sys.stderr.fileno())
            logging.basicConfig(
                stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
            )
            status = execute(job)
    except Busy:
        sys.exit(EXIT_BUSY)
    sys.exit(1 if status == "failed" else 0)


def _end_with_parent() -> None:
    """End this process when its parent dies, so that a killed driver leaves no worker behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def execute(job: Job) -> str:
    """Train and evaluate one cell, continuing whatever its folder holds, and return the status it ended with."""
    cell, folder = job.cell, RunFolder.of(job.cell, job.results)
    started = time.monotonic()
    try:
        for plugin in cell.plugins:
            registry.load_plugin(Path(plugin))
        device = torch.device(job.device)
        torch.set_num_threads(job.threads)
        folder.begin(cell, describe(device, job.threads))
        log.info("%s, fingerprint %s, on %s with %d threads", cell, cell.fingerprint, device, job.threads)
        adopt_training(cell, folder)
        folder.progress(force=True, phase="loading")
        dataset = dataset_of(cell.protocol.dataset)
        splits = dataset.splits(job.data)
        trainer = Trainer(cell, dataset, splits.to(device), folder, device)
        trainer.run()
        evaluate_checkpoints(cell, dataset, splits.test.to(device), folder, device)
    except Diverged as error:
        log.warning("%s", error)
        folder.finish("diverged", reason=str(error), epoch=error.epoch, **_cost(folder, job.device))
        return "diverged"
    except Exception as error:  # whatever it is, it ends this cell only
        log.exception("failed")
        folder.finish("failed", reason=f"{type(error).__name__}: {error}", **_cost(folder, job.device))
        return "failed"
    folder.finish("finished", classes=dataset.classes, **_cost(folder, job.device))
    log.info("finished in %.1f s", time.monotonic() - started)
    return "finished"


def _cost(folder: RunFolder, device: str) -> dict[str, Any]:
    """Return what the run took, over all its interruptions; the memory is the last process's."""
    try:
        epochs, outcomes = folder.epochs(), folder.read_outcomes()
    except DamagedFile:
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
    unique = {(record["weights_sha256"], key[1]): record["seconds"] for key, record in outcomes.items()}
    pflop = [record.get("train_pflop") for record in epochs]  # a run begun by an older version has none at first
    return {
        "epochs": len(epochs),
        "train_pflop": None if None in pflop else sum(pflop),
        "train_seconds": sum(record["train_seconds"] for record in epochs),
        "track_seconds": sum(record["seconds"] - record["train_seconds"] for record in epochs),
        "evaluation_seconds": sum(unique.values()),
        "peak_memory_bytes": peak,
    }


def adopt_training(cell: Cell, folder: RunFolder) -> None:
    """Take over the checkpoints of a run that differs in the final attacks alone, so that nothing is trained twice.

    Outcomes under attacks that both ask for come along. Every file is verified; the index, which makes the training
    this folder's own, comes last. A cell that was set aside is wanted anew, and takes over nothing.
    """
    set_aside = list(folder.path.parent.glob(f"{folder.path.name}.aside-*"))
    if set_aside or (folder.checkpoints / "index.json").exists():
        return
    wanted = {attack_key(attack, cell) for attack in cell.protocol.evaluation.final}
    for other in sorted(folder.path.parent.glob(f"*-{cell.training_fingerprint[:12]}-*/cell.json")):
        donor = RunFolder(other.parent)
        if donor.path == folder.path or ".aside-" in donor.path.name:
            continue
        try:
            trained = Checkpoints(donor.checkpoints)
            if donor.cell()["training_fingerprint"] != cell.training_fingerprint or not trained.finished:
                continue
            for (checkpoint, key), record in donor.read_outcomes().items():
                if key in wanted:
                    write_record(folder.outcome_path(checkpoint, key), record)
            folder.replace_epochs(donor.epochs())
            Checkpoints(folder.checkpoints).copy(trained)
        except DamagedFile as error:
            log.warning("not taking over %s: %s", donor.path.name, error)
            continue
        log.info("the same training exists in %s: taken over", donor.path.name)
        return


def attack_key(attack: FinalAttack, cell: Cell) -> str:
    """Return the short name of an attack in file names: its kind and the beginning of its identity's digest."""
    return f"{attack.name}-{fingerprint(attack_identity(attack, cell.protocol.threat))[:8]}"


def evaluate_checkpoints(cell: Cell, dataset: Dataset, test: Images, folder: RunFolder, device: torch.device) -> None:
    """Judge every checkpoint under every final attack, skipping what is on disk already.

    Checkpoints of the same weights are judged once.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    names = [name for name in CHECKPOINTS if name in checkpoints.entries]
    done = folder.read_outcomes()
    known = {(record["weights_sha256"], key): record for (_, key), record in done.items()}
    pairs = [(attack, name) for attack in cell.protocol.evaluation.final for name in names]
    work = [evaluated_images(attack, len(test)) * forward_passes(attack) for attack, _ in pairs]
    for item, (attack, name) in enumerate(pairs):
        key, weights = attack_key(attack, cell), checkpoints.entries[name].sha256
        if (weights, key) not in known:
            model = build_evaluated(cell, dataset, checkpoints.load(name), device)
            place = folder.partial / f"{weights[:16]}.{key}.json"
            outcome = evaluate(
                model, weights, test, attack, cell.protocol.threat,
                tick=_ticker(folder, name, attack.title, sum(work[:item]) / sum(work), work[item] / sum(work)),
                state=_read_place(place), commit=partial(_write_place, place),
            )  # fmt: skip
            log.info("%s under %s: %.4f of %d", name, attack.title, outcome.accuracy, len(outcome.correct))
            known[weights, key] = outcome.to_record()
        if done.get((name, key)) != known[weights, key]:
            write_record(folder.outcome_path(name, key), known[weights, key])
    shutil.rmtree(folder.partial, ignore_errors=True)


def _ticker(folder: RunFolder, checkpoint: str, attack: str, before: float, own: float) -> Callable[[int, int], None]:
    """Return a callback that reports how far an attack is; `share` is the part of all the evaluation that is done."""
    return lambda done, of: folder.progress(
        phase="evaluation", checkpoint=checkpoint, attack=attack, share=before + own * done / of
    )


def _write_place(path: Path, state: CascadeState) -> None:
    write_record(path, state.to_record())


def _read_place(path: Path) -> CascadeState | None:
    """Return where an interrupted AutoAttack stood, or None."""
    try:
        return CascadeState.from_record(read_record(path))
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        log.warning("%s; this evaluation starts again", error)
        return None
