"""The device of a run, its precision, threads and memory."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch

from bench.errors import BenchError

OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch's plain RuntimeErrors say on a CPU, and on a GPU outside its allocator."""


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
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise BenchError(f"{torch.cuda.get_device_name(device)} has no bfloat16; set 'precision: fp32' in the suite")


def emulates_bf16(device: torch.device) -> bool:
    """Return whether `device` is a CPU without bfloat16: products are then 80 times slower than in fp32.

    x86 processors need AVX512-BF16, others what oneDNN asks for. (80 times: AVX2 alone, torch 2.12; convolutions were
    9 times slower.)
    """
    if device.type != "cpu":
        return False
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return not torch.cpu._is_avx512_bf16_supported()
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports exhausted memory of the device or the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)
    )


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute products and convolutions on NVIDIA GPUs in full fp32 precision (TF32 off)."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    settings: tuple[Any, ...] = (matmul, cudnn)
    name, exact = "allow_tf32", cast("bool | str", False)
    try:
        before = [getattr(setting, name) for setting in settings]
    except RuntimeError:  # others set single precisions by the newer interface
        settings, name, exact = (matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "ieee"
        before = [getattr(setting, name) for setting in settings]
    try:
        for setting in settings:
            setattr(setting, name, exact)
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(setting, name, value)


@contextmanager
def timed_convolutions(device: torch.device) -> Iterator[None]:
    """Have cuDNN time its kernels at the first convolution of a shape and take the fastest, on an NVIDIA GPU.

    Other processes may take others, so not where someone asked torch for deterministic algorithms.
    """
    cudnn: Any = torch.backends.cudnn
    deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    before, cudnn.benchmark = cudnn.benchmark, device.type == "cuda" and not deterministic
    try:
        yield
    finally:
        cudnn.benchmark = before


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
