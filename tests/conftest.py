"""Shared by all tests: one thread a process, a suite that trains in about a second, and the slow tests' option."""

import os
import shutil
import signal
import sys
import tomllib

os.environ["OMP_NUM_THREADS"] = "1"  # here and in the processes that tests start; torch reads it when imported
os.environ["OMP_WAIT_POLICY"] = "passive"  # workers with several threads do not spin on cores that other tests need

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.config.suite import LoadedSuite, load_suite

# A shell that runs the tests in the background has them ignore Ctrl-C, and so all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An editable installation has the entry points of the day it was made; the tests have those of the checkout.
declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
for one in (registry.METHODS, registry.DATASETS, registry.MODELS, registry.TRACKERS):
    one._entry_points.update(
        {name: EntryPoint(name, value, one._group) for name, value in declared[one._group].items()}
    )

FIRST_RING = {
    *("pgd_at", "early_stopping", "fomo", "dom_re", "dom_augmix", "dom_randaugment", "sat", "aft"),
    *("trades", "mart", "awp", "ema", "swa", "te"),
}
EXPENSIVE = {"test_conformance", "test_captured_steps_equal_eager_steps"}
"""Tests of every method that are slow for the methods outside the first ring."""

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
    """Deselect the slow tests without `--slow`."""
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if params and item.originalname in EXPENSIVE and not FIRST_RING & set(map(str, params.values())):
            item.add_marker("slow")
    slow = [] if config.getoption("--slow") else [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def tiny_suite() -> str:
    """The text of a suite of one cell."""
    return TINY_SUITE


@pytest.fixture(scope="session")
def tiny_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the tiny suite, finished; `copy_of_results` gives a copy to write into."""
    from bench.execution.driver import run_suite
    from bench.execution.worker import Job, execute

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "suite.yaml").write_text(TINY_SUITE)
    loaded = load_suite(str(folder / "suite.yaml"))
    assert execute(Job(loaded.cells[0], folder / "results", ("cpu",), None, 1)) == "finished"
    run_suite(loaded, results=folder / "results")  # into the store
    return folder / "results"


@pytest.fixture
def copy_of_results(tiny_results: Path, tmp_path: Path) -> Path:
    """The finished results of the tiny suite, in `results` of the test's own folder."""
    return Path(shutil.copytree(tiny_results, tmp_path / "results"))


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


@pytest.fixture(scope="module")
def digits_network() -> Any:
    """A network after one natural epoch: right about most digits, robust about few."""
    import torch

    from bench.data.batches import to_float
    from bench.data.datasets.digits import digits, load
    from bench.models.architecture import build_network
    from bench.models.small_cnn import small_cnn

    model = build_network(small_cnn, digits, seed=0)
    images, _ = load()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for index in torch.arange(len(images)).split(64):
        loss = torch.nn.functional.cross_entropy(model(to_float(images.pixels[index])), images.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with two target classes an image, and 40 queries in Square."""
    from pyautoattack.square import SquareAttack

    from bench.attacks import autoattack

    start = SquareAttack.init_hyperparam

    def few_queries(self: SquareAttack, images: Any) -> None:
        start(self, images)
        self.n_queries = 40

    monkeypatch.setattr(SquareAttack, "init_hyperparam", few_queries)
    monkeypatch.setattr(autoattack, "MAX_TARGETS", 2)


@pytest.fixture(autouse=True)
def clean_registries() -> Iterator[None]:
    """Forget after each test what it registers."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, which no test undoes
        for one in (registry.METHODS, registry.DATASETS, registry.MODELS, registry.TRACKERS):
            patch.setattr(one, "_added", dict(one._added))
        yield


@pytest.fixture(autouse=True)
def tracer() -> Iterator[None]:
    """Give the measurement of coverage its tracer back, which `pyautoattack` removes."""
    before = sys.gettrace()
    yield
    sys.settrace(before)


@pytest.fixture
def store_url() -> str | None:
    """The URL of the store, None for the default; the tests of the store give others."""
    return None


@pytest.fixture
def convolutions() -> type:
    """Return a context that counts convolutions: forwards, and backwards by what they compute."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Convolutions(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.forwards, self.backwards = 0, []  # of each backward, whether of the input, weight and bias

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.forwards += func is torch.ops.aten.convolution.default
            if func is torch.ops.aten.convolution_backward.default:
                self.backwards.append(tuple(args[-1]))
            return func(*args, **(kwargs or {}))

    return Convolutions
