"""The worker: trains and evaluates one cell, and writes into its run folder only."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bench import registry
from bench.attacks.identity import attack_key
from bench.config.cell import Cell, ExternalModel
from bench.config.suite import teachers_of
from bench.data.dataset import Dataset, dataset_of
from bench.data.extra import load_splits
from bench.data.streaming import ImageStream
from bench.errors import BenchError, DamagedFile
from bench.execution.data_identity import identify_data
from bench.execution.distributed import ProcessDied, train_together
from bench.execution.final_evaluation import evaluate_checkpoints
from bench.execution.parallel_autoattack import Devices
from bench.models.external import load_external, same_network
from bench.storage.checkpoints import INDEX, Checkpoints, load_latest_valid
from bench.storage.run_folder import ARCHIVED, CellStatus, RunFolder, RunFolderLocked
from bench.training.teachers import teacher_folder
from bench.training.trainer import Diverged, Trainer
from bench.utils.device import check_precision, out_of_memory, peak_memory, use_device
from bench.utils.environment import code_digest, describe, other_code
from bench.utils.files import write_atomically, write_record
from bench.utils.processes import end_with_parent

log = logging.getLogger(__name__)

LOCK_SECONDS = 4  # to wait for another worker, whose driver may have been killed a moment ago

LOG_BYTES = 2**20  # kept of the log when a worker starts

DISK_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a disk on which no file can be written."""

DISK_ERRORS = DISK_FULL_ERRORS | {errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENFILE, errno.EMFILE}
"""Errors of the machine and not of the cell, which can resume once they are fixed."""


class WorkerResult(NamedTuple):
    """The status with which a worker ended, and why: final, locked, lost, interrupted or disk_full."""

    status: CellStatus
    reason: str = ""


class WorkerLost(Exception):
    """The cell ran out of memory, or lost one of its processes; its run folder stays as it is."""


@dataclass(frozen=True)
class Job:
    """The input of a worker: the cell, and where and how to run it.

    `devices`: one, or several whose processes share the cell's batches; `threads`: CPU threads of each process;
    `compile`: whether the network is compiled for training; `preview`: whether a short attack precedes AutoAttack;
    `code`, `plugins`: the digests of the driver's sources and plug-ins, which the worker must import too.
    """

    cell: Cell
    results: Path
    devices: tuple[str, ...]
    data: Path | None
    threads: int
    compile: bool = False
    preview: bool = False
    code: str = field(default_factory=code_digest)
    plugins: dict[str, str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", self.cell.plugin_digests())  # of the driver, for the worker

    @property
    def device(self) -> torch.device:
        """The first device, which evaluates; the batches of AutoAttack run on all."""
        return torch.device(self.devices[0])

    @property
    def folder(self) -> RunFolder:
        """The cell's run folder."""
        return RunFolder.of(self.cell, self.results)


def work_in_process(job: Job, pipe: Connection) -> None:
    """Run `job` as the whole of this process, and send the `WorkerResult` through `pipe`: the disk may be full.

    The process ends with its driver.
    """
    end_with_parent()
    pipe.send(work(job))


def work(job: Job) -> WorkerResult:
    """Run `job` as the whole of this process, whose output goes into the run's log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends workers with SIGTERM
    folder = job.folder
    if job.code != code_digest():
        where = Path(__file__).parents[1]
        return WorkerResult(CellStatus.FAILED, f"the worker imports other code than the driver: {where}")
    try:
        with folder.lock(LOCK_SECONDS):
            folder.progress(force=True, phase="starting")  # states the process that has locked the folder
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
        return WorkerResult(CellStatus.LOCKED, str(error))
    except WorkerLost as error:
        return WorkerResult(CellStatus.LOST, str(error))
    except BenchError as error:
        return WorkerResult(CellStatus.FAILED, str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        reason = f"{error.filename or folder.path}: {error.strerror}"
        full = error.errno in DISK_FULL_ERRORS
        return WorkerResult(CellStatus.DISK_FULL if full else CellStatus.INTERRUPTED, reason)


def _shorten(log_file: Path) -> None:
    """Keep the end of a long log."""
    with suppress(FileNotFoundError):
        if log_file.stat().st_size > LOG_BYTES:
            write_atomically(log_file, log_file.read_bytes()[-LOG_BYTES:])


def execute(job: Job) -> CellStatus:
    """Train and evaluate one cell, resuming from what its folder holds, and return its final status.

    Raises:
        BenchError: a plug-in cannot be loaded, or has changed since the suite was loaded.
        WorkerLost: there was too little memory, or a process that trained was killed.
        OSError: the folder cannot be written; see `DISK_ERRORS`.
    """
    cell, folder, device = job.cell, job.folder, job.device
    if folder.status() is CellStatus.FINISHED:  # by another process, since the cell was planned
        return CellStatus.FINISHED
    started, peak = time.monotonic(), 0
    for plugin in cell.plugins:
        registry.load_plugin(Path(plugin))
    if cell.plugin_digests() != job.plugins:
        raise BenchError("a plug-in has changed since the suite was loaded")
    try:
        use_device(device, job.threads)
        check_precision(cell.protocol.training.precision, device)
        folder.begin(cell, describe(device, job.threads, job.plugins, compiled=job.compile))
        log.info("%s, fingerprint %s, on %s with %d threads", cell, cell.fingerprint, device, job.threads)
        folder.progress(force=True, phase="loading")
        dataset = dataset_of(cell.protocol.dataset)
        splits = load_splits(cell.protocol, dataset, job.data)
        reuse_training(cell, folder, identify_data(cell, folder, splits))
        network = import_external(cell, cell.network, dataset, folder) if cell.network else None
        if network is None and len(job.devices) > 1 and not load_latest_valid(folder)[0].finished:
            peak = train_together(cell, job.results, job.devices, job.data, job.threads)
        if network is None:
            Trainer(cell, dataset, splits.to(device), folder, device, compile=job.compile).run()
        with ExitStack() as stack:
            several = None
            if network is None and len(job.devices) > 1:
                several = stack.enter_context(Devices(cell, job.results, job.devices, job.data, job.threads)).attack
            test = splits.test.to(device)
            evaluate_checkpoints(cell, dataset, test, folder, device, network, several, job.data, preview=job.preview)
        if isinstance(splits.test, ImageStream):  # it was read all the time, and must be what it was
            identify_data(cell, folder, dataset.splits(job.data))
    except Diverged as error:
        log.warning("%s", error)
        folder.finish(CellStatus.DIVERGED, reason=str(error), epoch=error.epoch, **_cost(folder, job, peak))
        return CellStatus.DIVERGED
    except Exception as error:  # any error ends this cell only
        log.exception("failed")
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        if isinstance(error, ProcessDied):
            raise WorkerLost(str(error)) from error
        if out_of_memory(error):
            advice = "run fewer cells at a time (--jobs); the batch size is the protocol's, and is not reduced"
            raise WorkerLost(f"out of memory: {str(error).partition(chr(10))[0]:.200}; {advice}") from error
        folder.finish(CellStatus.FAILED, reason=f"{type(error).__name__}: {error}", **_cost(folder, job, peak))
        return CellStatus.FAILED
    folder.finish(CellStatus.FINISHED, classes=dataset.classes, **_cost(folder, job, peak))
    log.info("finished in %.1f s", time.monotonic() - started)
    return CellStatus.FINISHED


def _cost(folder: RunFolder, job: Job, peak: int) -> dict[str, Any]:
    """Return the cost of the run, over all interruptions; the memory is that of the last process.

    The training of teachers is a part of it. `peak`: bytes that the processes of a data-parallel training used.
    """
    try:
        epochs, outcomes = folder.epochs(), folder.read_outcomes()
        teachers = {
            teacher.fingerprint: teacher_folder(teacher, folder).result() or {}
            for teacher, _ in teachers_of(job.cell).values()
        }.values()
    except DamagedFile:
        return {}
    unique = {(record["weights_sha256"], key[1]): record["seconds"] for key, record in outcomes.items()}
    pflop = [record.get("train_pflop") for record in (*epochs, *teachers)]  # none in epochs of older versions
    seconds = [record["train_seconds"] for record in epochs] + [record.get("train_seconds") or 0 for record in teachers]
    trained = job.cell.network is None  # the cost of an external training is unknown
    return {
        "epochs": len(epochs),
        "train_pflop": sum(pflop) if trained and None not in pflop else None,
        "train_seconds": sum(seconds) if trained else None,
        "track_seconds": sum(record["seconds"] - record["train_seconds"] for record in epochs) if trained else None,
        "evaluation_seconds": sum(unique.values()),
        "peak_memory_bytes": max(peak, peak_memory(job.device)),
    }


def reuse_training(cell: Cell, folder: RunFolder, data: dict[str, Any]) -> None:
    """Copy the checkpoints of a run that differs only in the final attacks, so that nothing is trained twice.

    That run must record the same code, and the digests `data` of its images and teachers. Outcomes under common attacks
    are copied, too. Every file is verified. The index, which makes the training valid, comes last. A cell with an
    archived run is to be trained again, and reuses nothing.
    """
    archived = list(folder.path.parent.glob(f"{folder.path.name}{ARCHIVED}*"))
    if archived or (folder.checkpoints / INDEX).exists():
        return
    wanted = {attack_key(attack, cell) for attack in cell.protocol.evaluation.final}
    for other in sorted(folder.path.parent.glob(f"*-{cell.training_fingerprint[:12]}-*/cell.json")):
        donor = RunFolder(other.parent)
        if donor.path == folder.path or ARCHIVED in donor.path.name:
            continue
        try:
            trained = Checkpoints(donor.checkpoints)
            record = donor.cell()
            if record["training_fingerprint"] != cell.training_fingerprint or not trained.finished:
                continue
            if code := other_code(record["environment"], cell.plugin_digests()):
                log.warning("not reusing %s: it was trained by %s", donor.path.name, code)
                continue
            used = record["environment"].get("data") or {}
            if any(used.get(part) != digest for part, digest in data.items()):
                log.warning("not reusing %s: it used other data, or does not say which", donor.path.name)
                continue
            donor.refuse_links()
            curve = donor.committed_epochs(trained.finished_epochs, trained.curve_sha256)
            for (checkpoint, key), record in donor.read_outcomes().items():
                if key in wanted:
                    write_record(folder.outcome_path(checkpoint, key), record)
            folder.replace_epochs(curve)
            Checkpoints(folder.checkpoints).copy(trained)
        except DamagedFile as error:
            log.warning("not reusing %s: %s", donor.path.name, error)
            continue
        log.info("reused the same training from %s", donor.path.name)
        return


def import_external(cell: Cell, where: ExternalModel, dataset: Dataset, folder: RunFolder) -> nn.Module:
    """Return the network of a cell that is only evaluated, and keep its weights as the checkpoint `last`.

    Raises:
        BenchError: as `load_external`, or the network has changed since the cell was planned.
    """
    external = load_external(where, dataset, cell.protocol, keep_imports=True)
    if not same_network(external, cell.method.params, where.outputs):
        raise BenchError(f"{where.source} has changed since the cell was planned")
    checkpoints = Checkpoints(folder.checkpoints)
    if not checkpoints.finished:
        entry = checkpoints.write("weights", 0, external.network.state_dict())
        checkpoints.commit({"last": entry}, finished_epochs=0, finished=True)
    return external.network
