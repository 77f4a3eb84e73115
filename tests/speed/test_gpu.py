"""`bench speed --what gpu` on a CPU, where a recording stands for a CUDA graph."""

import json
import time
from dataclasses import replace
from types import MethodType
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from bench import registry
from bench.cli.app import app
from bench.errors import BenchError
from bench.speed import gpu, gpu_parts, gpu_training, measure
from bench.speed.gpu_training import GPUSetup, Line
from bench.speed.process import Candidate
from bench.training import compiled
from bench.training.step import WARM_UP


class InThisProcess:
    """A candidate without a process of its own, always on the CPU."""

    def __init__(self, build, setup, seconds=None):
        self._work = build(replace(setup, device="cpu"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def work(self, request):
        started = time.perf_counter()
        answer = self._work(request)
        return time.perf_counter() - started, answer

    def peak_memory(self):
        return 2**30


@pytest.fixture
def setup(load, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "Candidate", InThisProcess)
    monkeypatch.setattr(measure, "Candidate", InThisProcess)
    monkeypatch.setattr(measure, "MIN_SECONDS", 0)
    monkeypatch.setattr(measure, "measure_peak", lambda *_: {"fp32": 1e12, "bf16": 1e12})
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # set back afterwards
    monkeypatch.setattr(gpu_training, "EPOCHS", 2)
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")  # the others take longer
    cell = load({"batch_size: 64": "batch_size: 16"}).cells[0]
    return GPUSetup(
        cell=cell, device="cpu", threads=1, images=4, eps=None, data=None, methods=(cell,), output=tmp_path
    )  # fmt: skip


def run(name, setup):
    return {line["what"]: line for line in gpu.run_part(name, setup)}


SLOW = ["compiled", "cells", "autoattack"]
CLAIMS = {
    "captured": 1, "refused": 3, "speed": 1, "compiled": 2, "recapture": 1, "resume": 1, "tracking": 2, "cells": 1,
    "autoattack": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in gpu_parts.PARTS]
)
def test_every_part_runs_and_no_claim_fails(setup, name):
    lines = run(name, setup)
    claims = [line["holds"] for line in lines.values() if line["holds"] is not None]
    assert claims == [True] * CLAIMS.get(name, 0), lines
    json.dumps(list(lines.values()), allow_nan=False)
    assert name != "speed" or (setup.output / "profile.txt").read_text()


def test_on_a_gpu_there_is_a_row_with_tf32(setup):
    """Candidates that are on the CPU stand for those on the GPU."""
    lines = run("autoattack", replace(setup, device="cuda"))
    assert list(lines)[:3] == ["reference (fp32)", "reference with TF32 (tf32)", "bench (fp32)"]
    assert [line["holds"] for line in lines.values()] == [None, None, True, None]


def test_the_environment_of_a_gpu(setup, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**33))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    card, device = run("environment", replace(setup, device="cuda")).values()
    assert card["what"] == "a card"
    assert (device["figures"]["GiB"], device["figures"]["capability"]) == (8, "9.0")


def test_captured_steps_that_differ_are_seen(setup, monkeypatch):
    build = gpu_training.Trainer.__init__

    def counting(self, *args, **kwargs):
        """Let the loss count its calls on the host, which a replay does not."""
        build(self, *args, **kwargs)
        loss, calls = self.method.loss, [1]

        def counted(_self, batch, adversarial):
            calls[0] += 1
            value, logits = loss(batch, adversarial)
            return calls[0] * value, logits

        self.method.loss = MethodType(counted, self.method)

    monkeypatch.setattr(gpu_training.Trainer, "__init__", counting)
    (line,) = gpu.run_part("captured", setup)
    assert (line["holds"], line["figures"]["replays"]) == (
        False,
        gpu_training.EPOCHS * (gpu_training.BATCHES - WARM_UP),
    )
    assert line["figures"]["apart"] > 0


def test_a_part_that_raises_is_a_failed_claim(setup, monkeypatch):
    def broken(_setup):
        yield Line("first")
        raise ValueError("no")

    monkeypatch.setitem(gpu_parts.PARTS, "waits", (1, broken))
    first, last = gpu.run_part("waits", setup)
    assert (first["what"], last["holds"], last["figures"]["error"]) == ("first", False, "ValueError: no")


def test_a_part_that_is_too_slow_ends_alone_and_the_rest_goes_on(setup, monkeypatch):
    class Slow(InThisProcess):
        def work(self, request):
            if (answer := super().work(request))[1] is None and self.slow:
                raise BenchError("not finished after 1 s")
            return answer

    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(("one", "two"), (1, lambda _setup: iter([Line("seen", True)]))))
    monkeypatch.setattr(gpu, "_part", lambda setup, name: gpu.lines_of(name, setup))
    monkeypatch.setattr(gpu, "Candidate", Slow)
    Slow.slow = True
    lines = list(gpu.measure_gpu(setup, lambda _text: None))
    assert [(line["part"], line["what"], line["holds"]) for line in lines] == [
        ("one", "seen", True), ("one", "ran to its end", False), ("one", "time", None),
        ("two", "seen", True), ("two", "ran to its end", False), ("two", "time", None),
    ]  # fmt: skip
    assert gpu.failed(lines) == 2
    assert [line["what"] for line in gpu.measure_gpu(setup, lambda _text: None, 0)] == ["not started: no time left"] * 2


def test_a_candidate_has_a_time_limit():
    candidate = Candidate.__new__(Candidate)
    candidate._seconds, candidate._started = 3.0, time.monotonic() - 4
    candidate._line = mock.Mock(poll=lambda left: left > 0)
    with pytest.raises(BenchError, match="not finished after 3 s"):
        candidate.work(None)


def test_all_methods_are_checked_but_those_that_need_teachers(load, setup):
    names = {cell.method.name for cell in gpu.every_method(load(), setup.cell)}
    assert set(registry.METHODS.names()) - names == {"kd_swa"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "holds"), [("captured", True), ("waits", None)])
def test_every_method_is_checked(load, setup, name, holds):
    setup = replace(setup, methods=gpu.every_method(load(), setup.cell))
    lines = gpu.run_part(name, setup)
    assert [(line["what"].split(":")[0], line["holds"]) for line in lines] == [
        (cell.method.name, holds) for cell in setup.methods
    ]


def test_a_method_that_raises_is_a_failed_claim_and_the_others_are_checked(setup):
    (cell,) = setup.methods
    no_method = cell.model_copy(update={"method": cell.method.model_copy(update={"name": "nothing"})})
    first, last = gpu.run_part("waits", replace(setup, methods=(no_method, cell)))
    assert (first["what"], first["holds"]) == ("nothing: no step waits", False)
    assert "unknown method" in first["figures"]["error"]
    assert (last["what"], last["holds"]) == ("pgd_at: no step waits", None)


@pytest.mark.slow
def test_the_command(load, tmp_path, monkeypatch):
    load({"batch_size: 64": "batch_size: 16"})
    monkeypatch.setattr(gpu, "every_method", lambda _loaded, cell: (cell,))
    parts = {name: gpu_parts.PARTS[name] for name in ("environment", "refused", "tracking")}
    monkeypatch.setattr(gpu, "PARTS", parts)  # of this process: each part runs in another, which has them all
    words = ["speed", str(tmp_path / "suite.yaml"), "--what", "gpu", "--device", "cpu", "--threads", "1"]
    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    lines = json.loads((tmp_path / "out" / "gpu.json").read_text())["content"]["lines"]
    assert list(dict.fromkeys(line["part"] for line in lines)) == list(parts)
    assert "0 of 5 claims failed" in done.stdout
    assert {path.stem for path in (tmp_path / "out").glob("*.log")} == set(parts)


def test_bad_input(load, tmp_path):
    load()
    suite = str(tmp_path / "suite.yaml")
    done = CliRunner().invoke(app, ["speed", suite, "--output", "somewhere"])
    assert "--output needs --what gpu" in str(done.exception)
    done = CliRunner().invoke(app, ["speed", suite, "--device", "cpu", "--what", "gpu", "--output", suite])
    assert f"{suite} cannot be written" in str(done.exception)
