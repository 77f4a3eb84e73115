"""What `bench speed --what gpu` checks and measures, in parts that yield `Line`s.

On a CPU a recording of operations (`bench.testing.recorded_graph`) stands for a CUDA graph, so that every line here
runs without a GPU.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.attacks.evaluate import correct_under
from bench.attacks.pgd import cross_entropy, frozen_parameters, pgd
from bench.config.attacks import Clean
from bench.models.architecture import build_network, size_of
from bench.speed import measure, training
from bench.speed.gpu_training import (
    GPUSetup,
    Line,
    Part,
    capture_or_record,
    captured,
    captured_and_compiled,
    random_images,
    recapture,
    refused,
    resume,
    waits,
)
from bench.speed.process import Candidate
from bench.training.compiled import Compiled
from bench.training.step import WARM_UP
from bench.utils.cuda_graphs import Capture
from bench.utils.device import exact_arithmetic
from bench.utils.environment import describe
from bench.utils.rng import generator

BORDERLINE = 0.02
"""Share of the images on which AutoAttack may differ from the package on a GPU, whose kernels depend on the batch."""

SMALL_SUITE = """\
name: gpu
dataset: {name: digits, validation: 200}
model: small_cnn
threat: {norm: linf, eps: 0.15}
training: {epochs: 2, batch_size: 64, attack: {name: pgd, steps: 2, step_size: 0.1}}
evaluation: {track: {attack: {name: pgd, steps: 2, step_size: 0.1}}, final: [clean]}
methods: [pgd_at, fomo]
seeds: [0]
"""
"""Whose cells run at the same time."""


def environment(setup: GPUSetup) -> Iterator[Line]:
    """State card, driver and versions."""
    known = describe(setup.where, setup.threads)
    (setup.output / "environment.json").write_text(json.dumps(known, indent=1), encoding="utf-8")
    yield Line(known["gpu"] or known["cpu"], figures={**known["versions"], "cuda": known["cuda"]})
    if setup.on_gpu:
        free, total = torch.cuda.mem_get_info(setup.where)
        with suppress(OSError):
            smi = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False).stdout
            (setup.output / "nvidia-smi.txt").write_text(smi, encoding="utf-8")
        cudnn: Any = torch.backends.cudnn
        capability = ".".join(map(str, torch.cuda.get_device_capability(setup.where)))
        yield Line("device", figures={"cudnn": cudnn.version(), "capability": capability, "GiB": total / 2**30,
                                      "free GiB": free / 2**30})  # fmt: skip


def speed(setup: GPUSetup) -> Iterator[Line]:
    """Measure a step of training: the reference, by default and in true fp32, and this harness, eager and captured."""
    precision = setup.cell.protocol.training.precision
    builds: measure.Builds = {
        "reference": ("tf32" if setup.on_gpu else "fp32", training.public),
        "reference in true fp32": ("fp32", partial(training.public, exact=True)),
        "eager": (precision, partial(training.harness, capture=None)),
        "bench": (precision, partial(training.harness, capture=capture_or_record)),
    }
    peaks = measure.measure_peak(setup, 2)
    *_, result = measure.interleaved(setup, builds, 3, peaks, _quiet)
    for row in result["contenders"]:
        yield Line(f"{row['name']} ({row['precision']})", figures=_step(row, result["batch_size"]))
    weights, gradients = training.difference(setup)(measure.CHECKED_STEPS)
    yield Line(
        "fast and plain steps compute the same",
        max(weights, gradients) <= measure.SAME,
        {"weights apart": weights, "gradients apart": gradients},
    )
    yield from _profile(setup)


def compiled(setup: GPUSetup) -> Iterator[Line]:
    """Measure a step of the compiled network against the eager one, both captured, and compare their gradients."""
    protocol = setup.cell.protocol
    builds: measure.Builds = {}
    for name, compile in (("reference", False), ("bench", True)):
        build = partial(training.harness, capture=capture_or_record, compile=compile)
        builds[name] = (protocol.training.precision, build)
    *_, result = measure.interleaved(setup, builds, 3, {}, _quiet)
    for name, row in zip(("eager", "compiled"), result["contenders"], strict=True):
        yield Line(f"{name} ({row['precision']})", figures=_step(row, result["batch_size"]))
    network = build_network(registry.MODELS.get(protocol.model), setup.dataset, 0).to(setup.where).double().train()
    images = torch.rand(8, *setup.dataset.shape, dtype=torch.float64, device=setup.where)
    labels, passes, gradients = torch.arange(8, device=setup.where) % setup.dataset.classes, Compiled(network), []
    for used in (nullcontext(), passes.used()):
        with used:
            parts = torch.autograd.grad(cross_entropy(labels)(network(images)), [*network.parameters()])
        gradients.append(torch.cat([part.flatten() for part in parts]))
    apart = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    holds = apart <= measure.SAME and not passes.failed
    yield Line("the network compiles, and differs in rounding only", holds, {"gradients apart": apart})
    yield from captured_and_compiled(setup)


def _step(row: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return the figures of a candidate of training."""
    seconds = 1 / row["images_per_second"]
    return {
        "ms a step": 1e3 * batch * seconds,
        "s an epoch of 50,000": 5e4 * seconds,
        "ratio": row["ratio"],
        "TFLOP/s": row["tflops"],
        "peak GiB": row["peak_memory_bytes"] / 2**30,
    }


def _profile(setup: GPUSetup, steps: int = 3, shown: int = 8) -> Iterator[Line]:
    """State the kernels in which captured steps spend their time; the whole list goes into profile.txt."""
    work = training.harness(setup, capture=capture_or_record)
    work(WARM_UP + 2)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds + [torch.profiler.ProfilerActivity.CUDA] * setup.on_gpu) as profile:
        work(steps)
        _wait(setup)
    key, events = f"self_{'device' if setup.on_gpu else 'cpu'}_time_total", profile.key_averages()
    table = events.table(sort_by=key, row_limit=60, max_name_column_width=90)
    (setup.output / "profile.txt").write_text(table, encoding="utf-8")
    kind = "CUDA" if setup.on_gpu else "CPU"  # kernels, and not the calls that start them
    times = {event.key: getattr(event, key) / 1e3 / steps for event in events if event.device_type.name == kind}  # ms
    whole = sum(times.values()) or 1.0
    for name in sorted(times, key=lambda name: -times[name])[:shown]:
        yield Line(f"kernel {name[:60]}", figures={"ms a step": times[name], "%": 100 * times[name] / whole})


def layout(setup: GPUSetup) -> Iterator[Line]:
    """Measure an attack step of the final attacks, in both layouts and several precisions."""
    protocol, device = setup.cell.protocol, setup.where
    architecture = registry.MODELS.get(protocol.model)
    work = 2 * size_of(architecture, (setup.dataset.classes, *setup.dataset.shape))[1]
    for batch in (256, 1024) if setup.on_gpu else (8,):
        for name, kind, exact, bf16 in (
            ("exact fp32, channels_last", torch.channels_last, True, False),
            ("exact fp32, NCHW", torch.contiguous_format, True, False),
            ("TF32, channels_last", torch.channels_last, False, False),
            ("TF32, NCHW", torch.contiguous_format, False, False),
            ("bf16, channels_last", torch.channels_last, False, True),
        ):
            network = build_network(architecture, setup.dataset, 0).to(device, memory_format=kind).eval()  # type: ignore[call-overload]
            x = torch.rand(batch, *setup.dataset.shape, device=device).contiguous(memory_format=kind)
            y = torch.zeros(batch, dtype=torch.int64, device=device)

            def step(network: Any = network, x: Tensor = x, y: Tensor = y) -> Tensor:
                return pgd(network, x, cross_entropy(y), threat=protocol.threat, steps=1, step_size=0.01)

            low = torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)
            with exact_arithmetic() if exact else nullcontext(), frozen_parameters(network), low:
                capture = capture_or_record(device)
                step()
                _, replay = capture(step, [])
                seconds = _median(setup, replay)
            yield Line(
                f"{name}, {batch} images", figures={"ms": 1e3 * seconds, "TFLOP/s": work * batch / seconds / 1e12}
            )


def tracking(setup: GPUSetup) -> Iterator[Line]:
    """Captured tracking gives the results of eager tracking."""
    protocol, device = setup.cell.protocol, setup.where
    network = build_network(registry.MODELS.get(protocol.model), setup.dataset, 0)
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = random_images(setup, 10_000 if setup.on_gpu else 2_500, "tracking")
    attacks = {"clean": Clean(), protocol.evaluation.track.attack.name: protocol.evaluation.track.attack}
    for name, attack in attacks.items():
        seconds, correct = [], []
        for capture in (None, capture_or_record(device)):

            def work(attack: Any = attack, capture: Capture | None = capture) -> Tensor:
                random = generator(0, "tracking", device=device)
                with torch.autocast(device.type, torch.bfloat16, enabled=setup.on_gpu, cache_enabled=False):
                    return correct_under(network, images, attack, protocol.threat, random, capture=capture)

            correct.append(work())
            seconds.append(_median(setup, work, 1))
        figures = {"s eager": seconds[0], "s captured": seconds[1]}
        yield Line(f"{name}: captured tracking equals eager tracking", torch.equal(*correct), figures)


def cells(setup: GPUSetup) -> Iterator[Line]:
    """Measure two trainings at once, and run a suite whose cells share the device."""
    build = partial(training.harness, capture=capture_or_record)
    steps = 60 if setup.on_gpu else 2
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        pair = [stack.enter_context(Candidate(build, setup)) for _ in range(2)]
        for candidate in pair:
            candidate.work(WARM_UP + 2)
        alone = pair[0].work(steps)[0]
        together = max(seconds for seconds, _ in threads.map(lambda candidate: candidate.work(steps), pair))
    yield Line("two trainings at once", figures={"throughput of both / of one": 2 * alone / together})
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.yaml"
        suite.write_text(SMALL_SUITE, encoding="utf-8")
        words = [sys.executable, "-m", "bench", "run", str(suite), "--results", folder, "--device", setup.device]
        words += ["--jobs-per-gpu" if setup.on_gpu else "--jobs", "2", "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=50 if setup.on_gpu else 500, check=False)
        logs = [path.read_text(errors="replace") for path in Path(folder).glob("runs/*/log.txt")]
        eager = sum("running eagerly" in log or "not captured" in log for log in logs)
        figures = {"cells": len(logs), "eager": eager, "error": done.stderr[-300:] if done.returncode else ""}
        yield Line("a suite of two cells at once finishes, captured", done.returncode == 0 and not eager, figures)


def autoattack(setup: GPUSetup) -> Iterator[Line]:
    """AutoAttack gives the results of pyautoattack, but for a few borderline images."""
    *_, result = measure.measure_autoattack(setup, 1, _quiet)
    for row in result["contenders"]:
        differing = result["differing"][row["name"]]
        figures = {"ratio": row["ratio"], "s an image": row["seconds_per_image"][0], "differing": differing}
        exact = row["precision"] == "fp32" and row["name"] != "reference"
        allowed = BORDERLINE * result["images"] if setup.on_gpu else 0
        yield Line(f"{row['name']} ({row['precision']})", differing <= allowed if exact else None, figures)
    what = f"{result['images']} {result['what']}, {result['standing']} robust"
    yield Line(what, figures={"radius": result["eps"]})


def _quiet(_text: str) -> None:
    """Report nothing."""


def _wait(setup: GPUSetup) -> None:
    if setup.on_gpu:
        torch.cuda.synchronize(setup.where)


def _median(setup: GPUSetup, work: Callable[[], Any], times: int = 3) -> float:
    """Return the median seconds of `work`."""
    seconds = []
    for _ in range(times):
        _wait(setup)
        started = time.perf_counter()
        work()
        _wait(setup)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


PARTS: dict[str, tuple[int, Part]] = {
    "environment": (30, environment),
    "captured": (200, captured),
    "refused": (40, refused),
    "speed": (150, speed),
    "compiled": (150, compiled),
    "layout": (40, layout),
    "waits": (50, waits),
    "recapture": (30, recapture),
    "resume": (40, resume),
    "tracking": (30, tracking),
    "cells": (90, cells),
    "autoattack": (160, autoattack),
}
"""Time limit in seconds, and what yields the lines, of each part; in order of worth."""
