"""Which device a run uses, checked before anything starts."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress

import torch

from bench.errors import BenchError


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: `auto` (an NVIDIA GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:1`.

    Raises:
        BenchError: no such device on this machine.
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
    """Raise BenchError if the device cannot compute in `precision`; never fall back to another one."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise BenchError(f"{torch.cuda.get_device_name(device)} has no bfloat16; set 'precision: fp32' in the suite")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device, or the machine, has no memory left."""
    # torch has a type of its own for GPUs alone
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def use_device(device: torch.device, threads: int) -> None:
    """Make this process compute on `device`, and with so many threads on the CPU."""
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_memory()
    else:
        torch.cuda.set_device(device)  # for what is not told: streams, graphs, libraries


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has had so far: on an NVIDIA GPU of its memory, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_memory() -> None:
    """Let this process keep the memory that tensors leave, for the next ones.

    The C library of Linux gives large blocks back to the system at once and gets them again as pages of zeros; a
    training step on a CPU spends a tenth of its time on that (docs/performance.md). Does nothing elsewhere.
    """
    if sys.platform == "linux":
        never_trim, never_map = (-1, 2**31 - 1), (-4, 0)  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        with suppress(AttributeError, OSError):  # another C library than glibc
            for option, value in (never_trim, never_map):
                ctypes.CDLL(None).mallopt(option, value)


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
