"""A plug-in: a network without batch statistics, and methods whose processes come to grief."""

import errno
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from torch import nn

from bench.models.architecture import Architecture
from methods.pgd_at import PGDAT

MARK = Path(__file__).with_name("mark")  # beside the copy of this file that a test makes


def build_plain(classes, shape):
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * shape[1] * shape[2], classes),
    )  # fmt: skip


class Unlucky(PGDAT):
    """The second process is killed in the second epoch, once."""

    info = replace(PGDAT.info, name="unlucky")
    data_parallel = True

    def begin_epoch(self, epoch):
        if self.context.group.rank == 1 and epoch == 1 and not MARK.exists():
            MARK.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Full(PGDAT):
    """The disk is full when the first process wants to write."""

    info = replace(PGDAT.info, name="full")
    data_parallel = True

    def end_epoch(self, epoch):
        if self.context.group.is_main:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")


class Slow(PGDAT):
    """Every process says who it is, and takes its time."""

    info = replace(PGDAT.info, name="slow")
    data_parallel = True

    def begin_epoch(self, epoch):
        MARK.with_name(f"{MARK.name}.{os.getpid()}").touch()

    def after_step(self):
        time.sleep(60)


class Heir(PGDAT):
    """Does not say of itself that it trains on several devices."""

    info = replace(PGDAT.info, name="heir")


METHODS = {"unlucky": Unlucky, "full": Full, "slow": Slow, "heir": Heir}
MODELS = {"plain": Architecture("plain", "Without batch statistics", "-", build_plain)}
