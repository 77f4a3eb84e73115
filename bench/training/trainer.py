"""The training loop: epochs of steps, tracking after each, checkpoints, an exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from statistics import fmean
from typing import Any

import torch

from bench.attacks.evaluate import correct_under
from bench.config.attacks import PGD, Clean
from bench.config.cell import Cell
from bench.config.suite import params_of
from bench.data.batches import Extra, TrainingBatches, hold_out
from bench.data.dataset import Dataset, Images, Splits
from bench.models.sync_batchnorm import shared_statistics
from bench.storage.checkpoints import Entry, load_latest_valid, pack
from bench.storage.run_folder import RunFolder
from bench.training.build import build_method
from bench.training.flops import CountedFlops
from bench.training.lr_schedule import tracked_epochs
from bench.training.step import EpochMetrics, Steps
from bench.training.teachers import load_teachers
from bench.utils.cuda_graphs import capture_on
from bench.utils.device import exact_arithmetic
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import RngStreams

log = logging.getLogger(__name__)


LAST_EPOCH = ("train", "validation", "test", "seconds")
"""Keys of the last epoch that the progress file repeats; the accuracies are those that were tracked last."""


class Diverged(Exception):
    """The training loss is not finite. This is a result, not a failure; `epoch` is counted from 0."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the training loss is not finite in epoch {epoch}")
        self.epoch = epoch

    def __reduce__(self) -> tuple[type[Diverged], tuple[int]]:
        return Diverged, (self.epoch,)


class Trainer:
    """Trains one cell inside its run folder, from the start or from the last finished epoch.

    If a file of that epoch is damaged, training resumes from the epoch before, and the run records an incident. Every
    process of a group has its own trainer; only the main process writes into the folder.
    """

    def __init__(
        self,
        cell: Cell,
        dataset: Dataset,
        splits: Splits,
        folder: RunFolder,
        device: torch.device,
        group: ProcessGroup = SINGLE_PROCESS,
        *,
        compile: bool = False,
    ) -> None:
        """Raises DamagedFile if the epoch before is damaged too, BenchError as `build_method` and `load_teachers`."""
        self.cell, self.folder, self.device, self.group = cell, folder, device, group
        self.training = cell.protocol.training
        self.validation, self.test = splits.validation, splits.test
        # Not with several processes: if the capture fails in one, the others wait for it for ever.
        self.capture = capture_on(device) if group.size == 1 else None
        self.compile = compile
        self.random = RngStreams(cell.seed, device)
        train, held_out = hold_out(splits.train, params_of(cell).held_out, cell.protocol.dataset.split_seed)
        extra = None
        if splits.extra is not None and self.training.extra_data:
            extra = Extra(splits.extra, self.training.extra_images, self.training.extra_data.label_smoothing)
        self.batches = TrainingBatches(
            train,
            self.training.batch_size,
            self.training.augmentation,
            self.random,
            group,
            dataset.classes,
            keep_last=self.training.last_batch == "keep",
            held_out=held_out,
            extra=extra,
        )
        self.checkpoints, damage = load_latest_valid(folder)
        if damage is not None and group.is_main:
            self.checkpoints.save()
            folder.record_incident(
                f"{damage}; training went back to the end of epoch {self.checkpoints.finished_epochs - 1}"
            )
        fresh = not self.checkpoints.entries
        teachers = load_teachers(cell, dataset, folder, device)
        self.method = build_method(
            cell, dataset, self.batches, self.random, device, initialise=fresh, teachers=teachers
        )
        self.lr_schedule = self.method.lr_schedule
        self.tracked = tracked_epochs(self.lr_schedule, cell.protocol.evaluation.track)
        self.optimizer = self.method.optimizer
        self.history: list[dict[str, Any]] = []
        self._resume_file: Future[Entry]

    def run(self, epochs: int | None = None) -> None:
        """Train to the end, or until `epochs` are done; a later trainer of the same folder resumes from there.

        Raises:
            Diverged: the loss of an epoch is not finite.
        """
        if self.checkpoints.finished:
            self.checkpoints.sweep()
            return
        self._resume()
        with exact_arithmetic() if self.training.tf32 is False else nullcontext():
            for epoch in range(len(self.history), self.lr_schedule.epochs):
                if self._stops():
                    log.info("stopped by the method after epoch %d", epoch - 1)
                    break
                if epochs is not None and epoch >= epochs:
                    return
                self._epoch(epoch)
        self._finish()

    def _stops(self) -> bool:
        """Return whether the method ends training; it decides by tracked epochs, after one of them."""
        tracked = [record for record in self.history if record["validation"]]
        return bool(tracked) and tracked[-1] is self.history[-1] and self.method.should_stop(tracked)

    # --- one epoch ---------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> None:
        started = time.monotonic()
        beginning = self.begin_epoch(epoch)
        metrics, steps, rate = EpochMetrics(self.device, self.group), len(self.batches), 0.0
        counted = CountedFlops()  # of the first step; the work of the others is proportional to their images
        train = Steps(self.method, metrics, self.capture, compile=self.compile)
        forked = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=forked), shared_statistics(self.group):
            # For layers that draw from the global generator, such as dropout: every process draws its own numbers.
            torch.manual_seed(self.random.seed("global" if self.group.is_main else f"global/{self.group.rank}"))
            for step, batch in enumerate(self.batches):
                rate = self.lr_schedule.rate(epoch + (step + 1) / steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                with counted if step == 0 else nullcontext():
                    train(batch)
                self._progress(epoch, step + 1)
            train.end()
            with CountedFlops() as ending:
                self.method.end_epoch(epoch)
        loss, robust = metrics.read()
        train_seconds = time.monotonic() - started
        if not math.isfinite(loss):
            raise Diverged(epoch)
        with self._writing_resume_file(epoch):
            validation, test = self._tracked() if epoch in self.tracked else (None, None)
        work = counted.flops * (self.batches.used / self.training.batch_size) + beginning + ending.flops
        record = {
            "epoch": epoch,
            "lr": rate,
            "train": {"loss": loss, "robust": robust},
            "validation": validation or test,
            "test": test,
            "train_pflop": work * self.group.size / 1e15,
            "train_seconds": train_seconds,
            "seconds": time.monotonic() - started,
        }
        self._check_equal()
        self._save(record)
        self._progress(epoch + 1, 0, force=True)

    def begin_epoch(self, epoch: int) -> float:
        """Begin an epoch: its random numbers, images and phase; return the FLOPs of the method's hooks."""
        self.random.start_epoch(epoch)
        with CountedFlops() as counted:
            selected = self.method.select(epoch)
            self.batches.select(*(selected or (None,)))
            self.method.begin_epoch(epoch)
        self.method.model.train()
        return float(counted.flops)

    def _progress(self, epoch: int, done: int, *, force: bool = False) -> None:
        if self.group.is_main:
            epochs, steps, last, left = self.lr_schedule.epochs, len(self.batches), {}, None
            if self.history:
                tracked = next((one for one in reversed(self.history) if one["validation"]), self.history[-1])
                shown = self.history[-1] | {key: tracked[key] for key in ("validation", "test")}
                last = {key: shown[key] for key in LAST_EPOCH}
                recent = self.history[-(self.cell.protocol.evaluation.track.every or 1) :]
                left = (epochs - epoch - done / steps) * fmean(record["seconds"] for record in recent)
            self.folder.progress(
                force=force, phase="training", epoch=epoch, epochs=epochs, done=done, of=steps, left=left, last=last
            )

    def _beat(self, done: int, of: int, robust: float | None = None) -> None:
        if self.group.is_main:
            self.folder.heartbeat()

    def _check_equal(self) -> None:
        """Raise RuntimeError unless the weights and statistics of all processes have equal sums of bytes."""
        if self.group.size > 1:
            values = self.method.model.state_dict().values()
            sums = [value.flatten().view(torch.uint8).sum(dtype=torch.int64) for value in values]
            gathered = self.group.all_gather(torch.stack(sums)[None])
            if not torch.equal(gathered, gathered[:1].expand_as(gathered)):
                raise RuntimeError(
                    "the networks of the processes differ: something in them depends on the shard of the batch"
                )

    def _tracked(self) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Return the accuracies on the validation images, if there are any, and on the test images, if needed."""
        track = self.cell.protocol.evaluation.track
        validation = self._track(self.validation, "validation") if len(self.validation) else None
        return validation, self._track(self.test, "test") if track.test or validation is None else None

    def _track(self, images: Images, purpose: str) -> dict[str, float]:
        """Return the clean and the robust accuracy of the evaluated model on `images`."""
        track, threat = self.cell.protocol.evaluation.track.attack, self.cell.protocol.threat
        model, accuracies = self.method.evaluated_model(), {}
        attacks: dict[str, Clean | PGD] = {"clean": Clean(), "robust": track}
        with self.method.autocast():
            for name, attack in attacks.items():
                random = self.random(f"track/{purpose}")
                correct = correct_under(
                    model, images, attack, threat, random, self._beat, group=self.group, capture=self.capture
                )
                accuracies[name] = correct.double().mean().item()
        return accuracies

    @contextmanager
    def _writing_resume_file(self, epoch: int) -> Iterator[None]:
        """Write the state of training during the block, in a thread: a large file is digested and flushed to disk."""
        if not self.group.is_main:
            yield
            return
        state = {
            "model": self.method.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
        }
        with ThreadPoolExecutor(1) as thread:  # waits for the thread at the end, whatever happens
            self._resume_file = thread.submit(self.checkpoints.write_packed, "resume", epoch, pack(state))
            yield

    # --- history and checkpoints -------------------------------------------------------------------------------------

    def _save(self, record: dict[str, Any]) -> None:
        """Append the epoch to the history and commit its checkpoints."""
        epoch = record["epoch"]
        better = [
            name
            for name, images in (("best", "validation"), ("best_on_test", "test"))
            if record[images]
            and all(record[images]["robust"] > past[images]["robust"] for past in self.history if past[images])
        ]
        self.history.append(record)
        if not self.group.is_main:
            return
        self.folder.append_epoch(record)
        entries: dict[str, Entry] = {}
        if better:
            weights = self.checkpoints.write("weights", epoch, self.method.evaluated_model().state_dict())
            entries = dict.fromkeys(better, weights)
        entries["resume"] = self._resume_file.result()
        self._commit(entries)

    def _resume(self) -> None:
        """Continue after the last committed epoch, if there is one."""
        if self.group.is_main:
            self.history = self.folder.truncate_epochs(self.checkpoints.finished_epochs)
        else:
            self.history = self.folder.committed_epochs(self.checkpoints.finished_epochs, None)
        if "resume" not in self.checkpoints.entries:
            return
        state = self.checkpoints.load("resume")
        self.method.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, state_of in self.optimizer.state.items():
            for name, value in state_of.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state_of[name] = torch.empty_like(parameter).copy_(value)  # the parameter's strides
        self.method.load_state_dict(state["method"])
        log.info("resumed after epoch %d", self.history[-1]["epoch"])

    def _finish(self) -> None:
        """Save the final weights as `last` and delete the resume state."""
        if not self.group.is_main:
            return
        last = self.history[-1]["epoch"]
        if self.method.info.final_is_best:
            entry = self.checkpoints.entries["best"]
        else:
            entry = self.checkpoints.write("weights", last, self.method.evaluated_model().state_dict())
        self._commit({"last": entry}, finished=True)

    def _commit(self, entries: dict[str, Entry], *, finished: bool = False) -> None:
        """Commit the history so far and `entries`."""
        epochs = len(self.history)
        self.checkpoints.commit(
            entries, finished_epochs=epochs, finished=finished, curve_sha256=self.folder.curve_sha256(epochs)
        )
