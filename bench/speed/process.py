"""Contenders: each is built in a process of its own, and works when it is told to.

One process for each, so that none warms another's caches, holds its memory or changes how its memory is managed; since
only one of them ever works at a time, they do not compete for the machine either.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from bench.attacks.evaluate import exact_arithmetic
from bench.config.cell import Cell
from bench.data.dataset import Dataset, dataset_of
from bench.errors import BenchError
from bench.utils.processes import import_no_working_directory

Work = Callable[[Any], Any]
"""What a contender does when it is told to: from the order to the answer, both plain data."""


@dataclass(frozen=True)
class Arena:
    """What all contenders have in common. `images`: how many AutoAttack sees; `eps`: its radius, None to choose one."""

    cell: Cell
    device: str
    threads: int
    images: int
    eps: float | None
    data: Path | None

    @property
    def dataset(self) -> Dataset:
        return dataset_of(self.cell.protocol.dataset)


class Contender:
    """One contender in its process; use it as a context manager."""

    def __init__(self, build: Callable[[Arena], Work], arena: Arena) -> None:
        import_no_working_directory()
        context = get_context("spawn")
        self._line, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, arena), daemon=False)
        self._process.start()
        other.close()
        self._receive()

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._line.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def work(self, order: Any) -> tuple[float, Any]:
        """Return (seconds, answer). Raises BenchError if the contender fails."""
        self._line.send(order)
        seconds, answer = self._receive()
        return float(seconds), answer

    def peak_memory(self) -> int:
        """Return the most bytes held at once: of the GPU's memory, or on a CPU of the process's."""
        self._line.send(_PEAK)
        return int(self._receive())

    def _receive(self) -> Any:
        try:
            kind, answer = self._line.recv()
        except EOFError:
            raise BenchError("a process that measures has ended; perhaps there was no memory left") from None
        if kind == "failed":
            raise BenchError(answer)
        return answer


_PEAK = "peak memory"


def _serve(line: Connection, build: Callable[[Arena], Work], arena: Arena) -> None:
    """Build a contender and do what comes down the line, until it closes."""
    device = torch.device(arena.device)
    try:
        torch.set_num_threads(arena.threads)
        work = build(arena)
        line.send(("ready", None))
        while True:
            try:
                order = line.recv()
            except EOFError:
                break
            if order == _PEAK:
                line.send(("peak", _peak(device)))
                continue
            started = time.perf_counter()
            answer = work(order)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            line.send(("done", (time.perf_counter() - started, answer)))
    except (BenchError, MemoryError, RuntimeError) as error:
        line.send(("failed", f"{type(error).__name__}: {error}" if not isinstance(error, BenchError) else str(error)))


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak(arena: Arena) -> Work:
    """Return what measures products of large matrices: the order is fp32 or bf16, the answer FLOPs done."""
    side = 4096 if arena.device != "cpu" else 2048
    device = torch.device(arena.device)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    factors = {name: torch.rand(2, side, side, device=device).to(dtype) for name, dtype in types.items()}

    def work(precision: str) -> float:
        a, b = factors[precision]
        times = 20 if device.type == "cuda" else 3
        with exact_arithmetic():
            for _ in range(times):
                a @ b
        return float(times * 2 * side**3)

    return work
