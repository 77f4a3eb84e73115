"""Compiled networks. A compiler takes seconds, so most of these tests are slow; the others replace it."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from bench.attacks.pgd import cross_entropy, frozen_parameters
from bench.data.batches import TrainingBatches
from bench.data.dataset import dataset_of
from bench.data.datasets.cifar import cifar10
from bench.data.datasets.digits import digits
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings
from bench.models.architecture import build_network
from bench.registry import MODELS
from bench.testing.recorded_graph import record
from bench.training import compiled, step
from bench.training.build import build_method
from bench.training.compiled import Compiled
from bench.training.step import EpochMetrics, Steps
from bench.utils.rng import RngStreams

CPU = torch.device("cpu")


@pytest.fixture
def compiler(monkeypatch):
    """Choose the compiler, and forget what it compiled afterwards."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda backend: monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()


def trained(cell, *, compile, capture=None, count=6, dtype=torch.float32):
    """Return the method after `count` steps, and their mean loss."""
    random = RngStreams(cell.seed)
    images = dataset_of(cell.protocol.dataset).splits(None).train.take(torch.arange(count * 64))
    batches = TrainingBatches(images, 64, (), random)
    method = build_method(cell, digits, batches, random, CPU)
    method.begin_epoch(0)
    method.model.to(dtype).train()
    metrics = EpochMetrics(CPU)
    train = Steps(method, metrics, capture, compile=compile)
    for batch in batches:
        train(type(batch)(batch.images.to(dtype), *batch.tensors[1:]))
    replayed = train._replay is not None
    train.end()
    return method, metrics.read(), replayed


def weights(method):
    return torch.cat([value.double().flatten() for value in method.model.state_dict().values()])


# --- without a compiler -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Unsupported", "FailOnRecompileLimitHit"])
def test_a_network_that_does_not_compile_runs_eagerly(monkeypatch, caplog, kind):
    def refuse(function, **_options):
        def call(*_args):
            raise getattr(torch._dynamo.exc, kind)("a graph break")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    model, images = nn.Linear(3, 2), torch.randn(4, 3)
    passes = Compiled(model)
    with passes.used():
        assert torch.equal(model(images), model.forward(images))
        model(images)
        assert copy.deepcopy(model)._compiled_call_impl is None
    assert model._compiled_call_impl is None
    assert caplog.text.count("the network does not compile, running eagerly: a graph break") == 1


def test_an_error_of_the_network_is_not_one_of_compiling(monkeypatch):
    def fail(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda _function, **_options: fail)
    model = nn.Linear(3, 2)
    with pytest.raises(torch.OutOfMemoryError), Compiled(model).used():
        model(torch.randn(4, 3))


@pytest.fixture
def uses(monkeypatch):
    """Replace the compiler by a list that gets one entry for each step with compiled passes."""
    noted = []

    class Fake:
        def __init__(self, model):
            pass

        @contextmanager
        def used(self):
            noted.append(self)
            yield

    monkeypatch.setattr(step, "Compiled", Fake)
    return noted


@pytest.mark.parametrize("declared", [True, False])
def test_all_steps_but_the_first_run_compiled_passes_unless_the_method_forbids_it(load, monkeypatch, uses, declared):
    stances = []
    monkeypatch.setattr("methods.pgd_at.PGDAT.compiled", declared, raising=False)

    @contextmanager
    def set_stance(stance):
        stances.append(stance)
        yield

    monkeypatch.setattr(torch.compiler, "set_stance", set_stance)
    _, _, replayed = trained(load().cells[0], compile=True, capture=record)
    assert (len(uses), replayed, stances) == (5 * declared, True, ["fail_on_recompile", "force_eager"])


def test_a_smaller_last_batch_runs_eagerly(load, uses):
    trained(load({"batch_size: 64": "batch_size: 65"}).cells[0], compile=True, count=3)
    assert uses == []


# --- with one ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_and_captured_steps_equal_eager_steps(load, compiler, caplog, precision):
    """With a compiler that keeps the operations, so that only the passes through it differ."""
    compiler("aot_eager")
    cell = load({"training:\n": f"training:\n  precision: {precision}\n"}).cells[0]
    eager, loss, _ = trained(cell, compile=False)
    alone, alone_loss, _ = trained(cell, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # for the attack and for the update
    captured, captured_loss, replayed = trained(cell, compile=True, capture=record)
    assert replayed
    assert torch.equal(weights(alone), weights(eager))
    assert torch.equal(weights(captured), weights(eager))
    assert loss == alone_loss == captured_loss
    assert eager.model.state_dict().keys() == alone.model.state_dict().keys()
    assert "eagerly" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["preact_resnet8_32", "preact_resnet18", "resnet18", "resnet50", "vit_small", "wide_resnet/10-1", "timm/resnet10t"],
)
def test_every_architecture_compiles_whole_and_its_attack_computes_no_weight_gradients(compiler, caplog, name):
    masks = []

    def inspect(graph, _inputs):
        masks.append([node.args[-1] for node in graph.graph.nodes if "convolution_backward" in str(node.target)])
        return graph

    compiler(aot_autograd(fw_compiler=lambda graph, _inputs: graph, bw_compiler=inspect))
    model = build_network(MODELS.get(name), cifar10, 0).train()
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with Compiled(model).used():
        with frozen_parameters(model):
            x = images.clone().requires_grad_()
            torch.autograd.grad(cross_entropy(labels)(model(x)), x)
        F.cross_entropy(model(images), labels).backward()
    attack, update = masks
    assert all(mask == [True, False, False] for mask in attack)
    assert all(mask[1] for mask in update)
    assert attack
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "eagerly" not in caplog.text


@pytest.mark.slow
def test_torchs_compiler_changes_the_rounding_only(load, compiler):
    """Two steps in double precision, as rounding decides the sign of gradients near zero."""
    compiler("inductor")
    cell = load().cells[0]
    eager, loss, _ = trained(cell, compile=False, count=2, dtype=torch.float64)
    compiled, compiled_loss, _ = trained(cell, compile=True, count=2, dtype=torch.float64)
    assert torch.linalg.vector_norm(weights(compiled) - weights(eager)) <= 1e-12 * torch.linalg.vector_norm(
        weights(eager)
    )
    assert compiled_loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.slow
def test_a_worker_trains_a_compiled_network(load, tmp_path):
    (state,) = run_suite(load({"epochs: 2": "epochs: 1"}), results=tmp_path, settings=ExecutorSettings(compile=True))
    assert state.status == "finished"
    assert state.folder.cell()["environment"]["kernels"] == "compiled"
    assert "eagerly" not in state.folder.log.read_text()
