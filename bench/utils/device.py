"""The device of a run, its precision, threads and memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress

import torch

from bench.errors import BenchError


def resolve_device(name: str) -> torch.device:
    """Return the device `name`: `auto` (an NVIDIA GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        BenchError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BenchError(f"unknown device '{name:.60}'; write auto, cpu, cuda or cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise BenchError(f"device '{name}' is not supported; write auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchError(f"device '{name}': torch {torch.__version__} sees no NVIDIA GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BenchError(f"device '{name}': there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Raise BenchError if the device does not support `precision`."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise BenchError(f"{torch.cuda.get_device_name(device)} has no bfloat16; set 'precision: fp32' in the suite")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports exhausted memory of the device or the machine."""
    # torch has an exception type for GPUs only
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def use_device(device: torch.device, threads: int) -> None:
    """Make `device` the default of this process, with `threads` threads on the CPU."""
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_memory()
    else:
        torch.cuda.set_device(device)  # for code that takes no device: streams, graphs, libraries


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: GPU memory on an NVIDIA GPU, else main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_memory() -> None:
    """Keep freed memory in this process for the next tensors.

    The C library of Linux returns large blocks to the system at once and gets them back as zeroed pages, which takes a
    tenth of a training step on a CPU (docs/performance.md). Does nothing on other systems.
    """
    if sys.platform == "linux":
        never_trim, never_map = (-1, 2**31 - 1), (-4, 0)  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        with suppress(AttributeError, OSError):  # another C library than glibc
            for option, value in (never_trim, never_map):
                ctypes.CDLL(None).mallopt(option, value)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
