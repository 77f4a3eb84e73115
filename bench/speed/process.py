"""Candidates of a comparison, each built in a process of its own and run on request.

With separate processes, no candidate warms another's caches, holds its memory or changes its memory allocator. Only one
of them runs at a time, so they do not compete for the machine.
"""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from bench.config.cell import Cell
from bench.data.dataset import Dataset, dataset_of
from bench.errors import BenchError
from bench.utils.device import exact_arithmetic, peak_memory
from bench.utils.processes import end_with_parent, ignoring_interrupts, import_no_working_directory

Work = Callable[[Any], Any]
"""The work of a candidate: from a request to a result, both plain data."""


@dataclass(frozen=True)
class Setup:
    """What all candidates share. `images`: number of images for AutoAttack; `eps`: its radius, None to choose one."""

    cell: Cell
    device: str
    threads: int
    images: int
    eps: float | None
    data: Path | None

    @property
    def dataset(self) -> Dataset:
        return dataset_of(self.cell.protocol.dataset)


class Candidate:
    """One candidate in its process; use it as a context manager. With `seconds`, the whole of it may take so long."""

    def __init__(self, build: Callable[[Setup], Work], setup: Setup, seconds: float | None = None) -> None:
        import_no_working_directory()
        self._seconds, self._started = seconds, time.monotonic()
        context = get_context("spawn")
        self._line, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, build, setup), daemon=False)
        with ignoring_interrupts():
            self._process.start()
        remote.close()
        try:
            self._receive()
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Candidate:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._line.close()
        self._process.join(0 if error else 10)
        if self._process.is_alive():
            self._process.kill()

    def work(self, request: Any) -> tuple[float, Any]:
        """Return (seconds, result). Raises BenchError if the candidate fails or the time is over."""
        _send(self._line, request)
        seconds, answer = self._receive()
        return float(seconds), answer

    def peak_memory(self) -> int:
        """Return the peak memory of the process in bytes, on a GPU that of the GPU."""
        _send(self._line, _PEAK)
        return int(self._receive())

    def _receive(self) -> Any:
        if self._seconds is not None and not self._line.poll(
            max(0.0, self._started + self._seconds - time.monotonic())
        ):
            raise BenchError(f"not finished after {self._seconds:.0f} s")
        try:
            kind, answer = self._line.recv()
        except EOFError:
            raise BenchError("a measurement process has died, perhaps because memory was exhausted") from None
        if kind == "failed":
            raise BenchError(answer)
        return answer


_PEAK = "peak memory"


def _send(line: Connection, message: object) -> None:
    """Send a message with its tensors in it; `Connection.send` leaves them to a thread, which a signal can disturb."""
    line.send_bytes(pickle.dumps(message))


def _serve(line: Connection, build: Callable[[Setup], Work], setup: Setup) -> None:
    """Build a candidate and serve requests until the connection closes or the process that measures ends."""
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGHUP):  # sent to the whole group by `timeout`
        signal.signal(number, signal.SIG_IGN)
    device = torch.device(setup.device)
    try:
        torch.set_num_threads(setup.threads)
        work = build(setup)
        _send(line, ("ready", None))
        while True:
            try:
                request = line.recv()
            except EOFError:
                break
            if request == _PEAK:
                _send(line, ("peak", peak_memory(device)))
                continue
            started = time.perf_counter()
            answer = work(request)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            _send(line, ("done", (time.perf_counter() - started, answer)))
    except (BenchError, MemoryError, RuntimeError) as error:
        _send(line, ("failed", f"{type(error).__name__}: {error}" if not isinstance(error, BenchError) else str(error)))


def peak(setup: Setup) -> Work:
    """Return a benchmark of large matrix products: the request is fp32 or bf16, the result the FLOPs."""
    side = 4096 if setup.device != "cpu" else 2048
    device = torch.device(setup.device)
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
