"""What all tests share: one thread, and a suite that trains in about a second."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; torch reads it when imported

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.config.suite import LoadedSuite, load_suite

torch.set_num_threads(1)

# A shell that runs the tests in the background has them ignore Ctrl-C, and so all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_SUITE = """\
name: tiny
dataset: {name: digits, validation: 200}
model: small_cnn
threat: {norm: linf, eps: 0.15}
training:
  epochs: 2
  batch_size: 64
  attack: {name: pgd, steps: 2, step_size: 0.1}
evaluation:
  track: {attack: {name: pgd, steps: 2, step_size: 0.1}}
  final: [clean, {name: pgd, steps: 3, step_size: 0.05}]
methods: [pgd_at]
seeds: [0]
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--slow`."""
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests without `--slow`."""
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run it with --slow"))


@pytest.fixture(scope="session")
def tiny_suite() -> str:
    """The text of a suite of one cell."""
    return TINY_SUITE


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedSuite]:
    """Load the tiny suite with some of its text replaced: `load({"epochs: 2": "epochs: 3"})`, or another text."""

    def load(changes: dict[str, str] | str = "") -> LoadedSuite:
        text = changes if isinstance(changes, str) and changes else TINY_SUITE
        for old, new in changes.items() if isinstance(changes, dict) else ():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "suite.yaml").write_text(text)
        return load_suite(str(tmp_path / "suite.yaml"))

    return load


@pytest.fixture(autouse=True)
def clean_registries() -> Iterator[None]:
    """Forget after each test what it registers."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, which no test undoes
        for one in (registry.METHODS, registry.DATASETS, registry.MODELS):
            patch.setattr(one, "_added", dict(one._added))
        yield


@pytest.fixture
def store_url() -> str | None:
    """The URL of the store, None for the default; the tests of the store give others."""
    return None


class Convolutions(TorchDispatchMode):
    """Counts convolutions: forwards, and backwards by what they compute (input, weight, bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.forwards += func is torch.ops.aten.convolution.default
        if func is torch.ops.aten.convolution_backward.default:
            self.backwards.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def convolutions() -> type[Convolutions]:
    """Return the context that counts convolutions."""
    return Convolutions
