"""The worker: one cell, from its request to `done.json`, inside its own run folder and nowhere else."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from bench import registry
from bench.attacks.autoattack import CascadeState
from bench.attacks.evaluate import attack_identity, evaluate, evaluated_images, forward_passes
from bench.config.attacks import FinalAttack
from bench.config.cell import Cell, ExternalModel
from bench.data.dataset import Dataset, Images, dataset_of
from bench.errors import BenchError, DamagedFile
from bench.execution.distributed import ProcessDied, train_together
from bench.models.architecture import Network
from bench.models.external import load_foreign
from bench.storage.checkpoints import Checkpoints, load_latest_valid
from bench.storage.run_folder import ARCHIVED, CHECKPOINTS, RunFolder, RunFolderLocked
from bench.training.build import build_evaluated
from bench.training.trainer import LAST_EPOCH, Diverged, Trainer
from bench.utils.device import check_precision, out_of_memory, peak_memory, use_device
from bench.utils.environment import describe
from bench.utils.files import fingerprint, read_record, write_atomically, write_record
from bench.utils.progress import ProgressCallback

log = logging.getLogger(__name__)

WATCH_SECONDS = 1  # between a worker's looks whether its driver is alive

PATIENCE_SECONDS = 4 * WATCH_SECONDS  # with another worker, whose driver may have been killed a moment ago

LOG_BYTES = 2**20  # of the log that are kept when a worker begins

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a disk that no file can be written to."""

DISK = FULL | {errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENFILE, errno.EMFILE}
"""Errors of the machine and not of the cell: it can go on when they are mended."""


class WorkerResult(NamedTuple):
    """How a worker ended, and why.

    Beyond the statuses of a run that has ended there are: `busy`, another process holds the folder; `lost`, the worker
    died through no fault of its own that is known, and can be tried again; `interrupted` and `full`, the folder or the
    whole disk cannot be written, so that the cell can go on when that is mended.
    """

    status: Literal["finished", "diverged", "failed", "busy", "lost", "interrupted", "full"]
    reason: str = ""


class WorkerLost(Exception):
    """The cell has no memory to go on, or lost a process of its own; its folder stays as it is."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: the cell, and where and how to run it.

    `devices`: one, or several on which processes share the cell's batches; `threads`: CPU threads of each process.
    """

    cell: Cell
    results: Path
    devices: tuple[str, ...]
    data: Path | None
    threads: int

    @property
    def device(self) -> torch.device:
        """The first device, which evaluates."""
        return torch.device(self.devices[0])

    @property
    def folder(self) -> RunFolder:
        """The cell's run folder."""
        return RunFolder.of(self.cell, self.results)


def work_in_process(job: Job, tell: Connection) -> None:
    """Run `job` as the whole of this process, and send a `WorkerResult` through `tell`.

    The message needs no disk, which may be full.
    """
    tell.send(work(job))


def work(job: Job) -> WorkerResult:
    """Run `job` as the whole of this process, whose output goes into the run's log from now on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides; it ends us with SIGTERM
    _end_with_parent()
    folder = job.folder
    try:
        with folder.lock(PATIENCE_SECONDS):
            folder.progress(force=True, phase="starting")  # so that others can say who works here
            _shorten(folder.log)
            with folder.log.open("a", encoding="utf-8") as output:
                os.dup2(output.fileno(), sys.stdout.fileno())
                os.dup2(output.fileno(), sys.stderr.fileno())
            logging.basicConfig(
                stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
            )
            status = execute(job)
            return WorkerResult(status, (folder.result() or {}).get("reason", ""))
    except RunFolderLocked as error:
        return WorkerResult("busy", str(error))
    except WorkerLost as error:
        return WorkerResult("lost", str(error))
    except DamagedFile as error:
        return WorkerResult("failed", str(error))
    except OSError as error:
        if error.errno not in DISK:
            raise
        reason = f"{error.filename or folder.path}: {error.strerror}"
        return WorkerResult("full" if error.errno in FULL else "interrupted", reason)


def _shorten(log_file: Path) -> None:
    """Keep the end of a long log, so that a run folder does not grow without bounds."""
    with suppress(FileNotFoundError):
        if log_file.stat().st_size > LOG_BYTES:
            write_atomically(log_file, log_file.read_bytes()[-LOG_BYTES:])


def _end_with_parent() -> None:
    """End this process when its parent dies, so that a killed driver leaves no worker behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def execute(job: Job) -> Literal["finished", "diverged", "failed"]:
    """Train and evaluate one cell, continuing whatever its folder holds, and return the status it ended with.

    Raises:
        WorkerLost: there was no memory, or a process that trained was killed.
        OSError: the folder cannot be written; see `DISK`.
    """
    cell, folder, device = job.cell, job.folder, job.device
    if folder.status() == "finished":  # by another process, since the driver looked
        return "finished"
    started, peak = time.monotonic(), 0
    try:
        for plugin in cell.plugins:
            registry.load_plugin(Path(plugin))
        use_device(device, job.threads)
        check_precision(cell.protocol.training.precision, device)
        folder.begin(cell, describe(device, job.threads))
        log.info("%s, fingerprint %s, on %s with %d threads", cell, cell.fingerprint, device, job.threads)
        reuse_training(cell, folder)
        folder.progress(force=True, phase="loading")
        dataset = dataset_of(cell.protocol.dataset)
        network = import_external(cell, cell.network, dataset, folder) if cell.network else None
        if network is None and len(job.devices) > 1 and not load_latest_valid(folder)[0].finished:
            peak = train_together(cell, job.results, job.devices, job.data, job.threads)
        splits = dataset.splits(job.data)
        if network is None:
            Trainer(cell, dataset, splits.to(device), folder, device).run()
        evaluate_checkpoints(cell, dataset, splits.test.to(device), folder, device, network)
    except Diverged as error:
        log.warning("%s", error)
        folder.finish("diverged", reason=str(error), epoch=error.epoch, **_cost(folder, job, peak))
        return "diverged"
    except Exception as error:  # whatever it is, it ends this cell only
        log.exception("failed")
        if isinstance(error, OSError) and error.errno in DISK:
            raise
        if isinstance(error, ProcessDied):
            raise WorkerLost(str(error)) from error
        if out_of_memory(error):
            advice = "run fewer cells at a time (--jobs); the batch size is the protocol's, and is not reduced"
            raise WorkerLost(f"out of memory: {str(error).partition(chr(10))[0]:.200}; {advice}") from error
        folder.finish("failed", reason=f"{type(error).__name__}: {error}", **_cost(folder, job, peak))
        return "failed"
    folder.finish("finished", classes=dataset.classes, **_cost(folder, job, peak))
    log.info("finished in %.1f s", time.monotonic() - started)
    return "finished"


def _cost(folder: RunFolder, job: Job, peak: int) -> dict[str, Any]:
    """Return what the run took, over all its interruptions; the memory is the last process's.

    `peak`: bytes that the processes took which trained for this one.
    """
    try:
        epochs, outcomes = folder.epochs(), folder.read_outcomes()
    except DamagedFile:
        return {}
    unique = {(record["weights_sha256"], key[1]): record["seconds"] for key, record in outcomes.items()}
    pflop = [record.get("train_pflop") for record in epochs]  # a run begun by an older version has none at first
    trained = job.cell.network is None  # what training took elsewhere is not known
    return {
        "epochs": len(epochs),
        "train_pflop": sum(pflop) if trained and None not in pflop else None,
        "train_seconds": sum(record["train_seconds"] for record in epochs) if trained else None,
        "track_seconds": sum(record["seconds"] - record["train_seconds"] for record in epochs) if trained else None,
        "evaluation_seconds": sum(unique.values()),
        "peak_memory_bytes": max(peak, peak_memory(job.device)),
    }


def reuse_training(cell: Cell, folder: RunFolder) -> None:
    """Take over the checkpoints of a run that differs in the final attacks alone, so that nothing is trained twice.

    Outcomes under attacks that both ask for come along. Every file is verified; the index, which makes the training
    this folder's own, comes last. A cell that was set aside is wanted anew, and takes over nothing.
    """
    set_aside = list(folder.path.parent.glob(f"{folder.path.name}{ARCHIVED}*"))
    if set_aside or (folder.checkpoints / "index.json").exists():
        return
    wanted = {attack_key(attack, cell) for attack in cell.protocol.evaluation.final}
    for other in sorted(folder.path.parent.glob(f"*-{cell.training_fingerprint[:12]}-*/cell.json")):
        donor = RunFolder(other.parent)
        if donor.path == folder.path or ARCHIVED in donor.path.name:
            continue
        try:
            trained = Checkpoints(donor.checkpoints)
            if donor.cell()["training_fingerprint"] != cell.training_fingerprint or not trained.finished:
                continue
            donor.refuse_links()
            curve = donor.committed_epochs(trained.finished_epochs, trained.curve_sha256)
            for (checkpoint, key), record in donor.read_outcomes().items():
                if key in wanted:
                    write_record(folder.outcome_path(checkpoint, key), record)
            folder.replace_epochs(curve)
            Checkpoints(folder.checkpoints).copy(trained)
        except DamagedFile as error:
            log.warning("not taking over %s: %s", donor.path.name, error)
            continue
        log.info("the same training exists in %s: taken over", donor.path.name)
        return


def attack_key(attack: FinalAttack, cell: Cell) -> str:
    """Return the short name of an attack in file names: its kind and the beginning of its identity's digest."""
    return f"{attack.name}-{fingerprint(attack_identity(attack, cell.protocol.threat))[:8]}"


def import_external(cell: Cell, where: ExternalModel, dataset: Dataset, folder: RunFolder) -> nn.Module:
    """Return the network of a cell that is only evaluated, its weights kept as the run's one checkpoint, `last`.

    Raises:
        BenchError: as `load_foreign`, or it is another network than the cell states.
    """
    found = load_foreign(where, dataset, cell.protocol)
    if found.params != cell.method.params:
        raise BenchError(f"{where.source}: not the network that the cell states; it has changed since")
    checkpoints = Checkpoints(folder.checkpoints)
    if not checkpoints.finished:
        entry = checkpoints.write("weights", 0, found.network.state_dict())
        checkpoints.commit({"last": entry}, finished_epochs=0, finished=True)
    return found.network


def evaluate_checkpoints(
    cell: Cell,
    dataset: Dataset,
    test: Images,
    folder: RunFolder,
    device: torch.device,
    network: nn.Module | None = None,
) -> None:
    """Judge every checkpoint under every final attack, skipping what is on disk already.

    Checkpoints of the same weights are judged once. `network` takes their weights, where it is not the cell's method
    that builds one.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    names = [name for name in CHECKPOINTS if name in checkpoints.entries]
    done = _sound_outcomes(folder)
    known = {(record["weights_sha256"], key): record for (_, key), record in done.items()}
    pairs = [(attack, name) for attack in cell.protocol.evaluation.final for name in names]
    work = [evaluated_images(attack, len(test)) * forward_passes(attack) for attack, _ in pairs]
    told = _Evaluation(folder)
    for item, (attack, name) in enumerate(pairs):
        key, weights = attack_key(attack, cell), checkpoints.entries[name].sha256
        if (weights, key) not in known:
            state = checkpoints.load(name)
            model = _with_weights(network, state, device) if network else build_evaluated(cell, dataset, state, device)
            model.register_forward_pre_hook(lambda *_: folder.heartbeat())  # one batch of AutoAttack can take an hour
            place = folder.partial / f"{weights[:16]}.{key}.json"
            outcome = evaluate(
                model, weights, test, attack, cell.protocol.threat,
                progress=told.ticker(name, attack.title, sum(work[:item]) / sum(work), work[item] / sum(work)),
                state=_read_place(place), commit=partial(_write_place, place),
            )  # fmt: skip
            log.info("%s under %s: %.4f of %d", name, attack.title, outcome.accuracy, len(outcome.correct))
            known[weights, key] = outcome.to_record()
        if done.get((name, key)) != known[weights, key]:
            write_record(folder.outcome_path(name, key), known[weights, key])
    shutil.rmtree(folder.partial, ignore_errors=True)


def _with_weights(network: nn.Module, state: dict[str, Any], device: torch.device) -> nn.Module:
    """Return `network`, which is in eval mode with frozen parameters, with the weights `state` and on `device`."""
    network.load_state_dict(state)
    # The layout of networks that are trained here; others may hold tensors that have none.
    layout = torch.channels_last if isinstance(network, Network) else torch.preserve_format
    moved: nn.Module = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return moved


def _sound_outcomes(folder: RunFolder) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the outcomes on disk; a damaged one is put on record and judged again."""
    damage = folder.damaged_outcomes()
    for path, error in damage.items():
        folder.record_incident(f"{error}; it was judged again")
        path.unlink()
    return folder.read_outcomes()


class _Evaluation:
    """Tells whoever watches how far the evaluation is, and how many seconds are left, as the share done suggests."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._began = folder, time.monotonic()
        self._at_first: float | None = None
        self._last = {
            key: value for record in folder.epochs()[-1:] for key, value in record.items() if key in LAST_EPOCH
        }

    def ticker(self, checkpoint: str, attack: str, before: float, own: float) -> ProgressCallback:
        """Return what an attack is to call; it is `own` of all the evaluation's work, and `before` was done before."""
        self._tell(before, checkpoint=checkpoint, attack=attack, force=True)

        def tick(done: int, of: int, robust: float | None = None) -> None:
            self._tell(before + own * done / of, checkpoint=checkpoint, attack=attack, robust=robust)

        return tick

    def _tell(self, share: float, *, robust: float | None = None, force: bool = False, **where: str) -> None:
        if self._at_first is None:
            self._at_first = share
        gained, passed = share - self._at_first, time.monotonic() - self._began
        left = (1 - share) * passed / gained if gained > 0 else None
        self._folder.progress(
            force=force, phase="evaluation", share=share, robust=robust, left=left, last=self._last, **where
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
