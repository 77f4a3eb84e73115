import gc
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.attacks.pgd import random_start
from bench.data.batches import Batch, TrainingBatches
from bench.data.dataset import dataset_of
from bench.data.datasets.digits import digits
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.registry import METHODS
from bench.testing.recorded_graph import record
from bench.training.build import build_method
from bench.training.step import EpochMetrics, Steps, compute_gradients, train_step, transform
from bench.utils.cuda_graphs import capture_on
from bench.utils.rng import RngStreams, derive_seed

CPU = torch.device("cpu")


ATTACK = "{name: pgd, steps: 10, step_size: 0.02}"


@pytest.fixture
def start(load):
    """Return the method and the batches of the tiny suite with a training attack, ready for the first step."""

    def start(attack=ATTACK):
        cell = load({"{name: pgd, steps: 2, step_size: 0.1}\neval": f"{attack}\neval"}).cells[0]
        random = RngStreams(cell.seed)
        batches = TrainingBatches(dataset_of(cell.protocol.dataset).splits(None).train, 64, (), random)
        method = build_method(cell, digits, batches, random, CPU)
        method.model.train()
        return method, batches

    return start


def steps(method, batches, count):
    metrics = EpochMetrics(CPU)
    for batch in islice(batches, count):
        train_step(method, batch, method.optimizer, metrics)
    return metrics


def by_hand(network, batches, random, threat):
    """PGD-AT as one would write it down: weight gradients everywhere, cleared before the update, plain SGD."""
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    losses, right = [], 0
    for batch in batches:
        x = random_start(batch.images, threat, random)
        for _ in range(10):
            x = x.detach().requires_grad_()
            F.cross_entropy(network(x), batch.labels).backward()
            x = x + 0.02 * x.grad.sign()
            x = torch.min(torch.max(x, batch.images - threat.eps), batch.images + threat.eps).clamp(0, 1)
        network.zero_grad()
        logits = network(x.detach())
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        with torch.no_grad():
            for parameter, moving in zip(parameters, velocity, strict=True):
                moving.mul_(0.9).add_(parameter.grad + 5e-4 * parameter)
                parameter -= 0.1 * moving
        losses.append(loss.item())
        right += int((logits.argmax(1) == batch.labels).sum())
    return sum(losses) / len(batches), right / sum(map(len, batches))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_five_steps_equal_pgd_at_written_by_hand(start, dtype, tolerance):
    method, made = start()
    method.model.to(dtype)
    batches = [Batch(batch.images.to(dtype), batch.labels, batch.index) for batch in islice(made, 5)]
    network = build_network(small_cnn, digits, derive_seed(0, "weights")).train()
    network.to(dtype=dtype, memory_format=torch.channels_last)
    expected = by_hand(network, batches, RngStreams(0)("attack"), method.context.protocol.threat)
    metrics = steps(method, batches, 5)
    for part in (torch.nn.Module.parameters, torch.nn.Module.buffers):
        ours, theirs = (
            torch.cat([value.detach().double().flatten() for value in part(m)]) for m in (method.model, network)
        )
        assert torch.linalg.vector_norm(ours - theirs) <= tolerance * torch.linalg.vector_norm(theirs)
    assert metrics.read() == pytest.approx(expected, rel=1e-6)


def test_a_step_moves_every_parameter_and_leaves_no_gradient(start):
    method, batches = start()
    before = {name: parameter.detach().clone() for name, parameter in method.model.named_parameters()}
    steps(method, batches, 1)
    for name, parameter in method.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None
        assert parameter.requires_grad


def test_the_attack_leaves_no_gradient(start, monkeypatch):
    method, batches = start()
    perturb, found = method.perturb, []

    def watched(batch):
        adversarial = perturb(batch)
        found.append([parameter.grad for parameter in method.model.parameters() if parameter.grad is not None])
        assert not any(parameter.requires_grad for parameter in method.model.parameters())
        assert not adversarial.requires_grad
        return adversarial

    monkeypatch.setattr(method, "perturb", watched)
    steps(method, batches, 2)
    assert found == [[], []]


def test_hooks_are_called_in_their_order(start, monkeypatch):
    method, batches = start("{steps: 1}")
    called = []
    for name in ("transform", "perturb", "backward", "loss", "after_step"):
        hook = getattr(method, name)
        monkeypatch.setattr(method, name, lambda *args, name=name, hook=hook: (called.append(name), hook(*args))[1])
    weights = method.model.get_parameter("body.linear.weight")
    before, after = weights.detach().clone(), []
    monkeypatch.setattr(method, "after_step", lambda: (called.append("after_step"), after.append(weights.clone())))
    steps(method, batches, 1)
    assert called == ["transform", "perturb", "backward", "loss", "after_step"]
    assert not torch.equal(after[0], before)


@pytest.mark.parametrize(
    ("attack", "passes"),
    [(ATTACK, 10), ("{steps: 3, step_size: 0.02}", 3), ("{steps: 3, batch_norm: eval}", 3), ("none", 0)],
)
def test_the_work_of_a_step(start, convolutions, attack, passes):
    method, batches = start(attack)
    with convolutions() as work:
        steps(method, batches, 1)
    assert work.forwards == (passes + 1) * 3  # three convolutions; the last pass is the update's
    crafting, update = work.backwards[: passes * 3], work.backwards[passes * 3 :]
    assert crafting == [(True, False, False)] * (passes * 3)
    assert update == [(True, True, False), (True, True, False), (False, True, False)]  # the images need no gradient


@pytest.mark.parametrize(("attack", "updates"), [("{steps: 3}", 3), ("{steps: 3, batch_norm: eval}", 0), ("none", 0)])
def test_running_statistics_see_the_attack_in_train_mode_only(start, attack, updates):
    method, batches = start(attack)
    tracked = method.model.get_buffer("body.bn1.num_batches_tracked")
    method.perturb(next(iter(batches)))
    assert tracked == updates
    assert all(module.training for module in method.model.modules())
    steps(method, batches, 1)
    assert tracked == 2 * updates + 1


def test_without_an_attack_the_images_are_clean(start):
    method, batches = start("none")
    batch = next(iter(batches))
    assert method.perturb(batch) is batch.images


def test_a_random_start_is_a_setting(start):
    method, batches = start("{steps: 1, step_size: 0.03, random_start: false}")
    batch = next(iter(batches))
    moved = (method.perturb(batch) - batch.images).abs()
    assert moved.max() == pytest.approx(0.03, abs=1e-6)
    method, _ = start("{steps: 1, step_size: 0.03}")
    assert (method.perturb(batch) - batch.images).abs().max() > 0.1


def test_totals_weigh_batches_by_their_size():
    metrics = EpochMetrics(CPU)
    metrics.add(torch.tensor(1.0), torch.eye(4), torch.arange(4))
    metrics.add(torch.tensor(4.0), torch.eye(2), torch.tensor([1, 1]))
    assert metrics.read() == (pytest.approx((4 * 1 + 2 * 4) / 6), pytest.approx(5 / 6))
    assert EpochMetrics(CPU).read() == (0, 0)


# --- captured steps ---------------------------------------------------------------------------------------------------


EXECUTION = [
    ("bf16", "eval"),
    *(pytest.param(*how, marks=pytest.mark.slow) for how in (("fp32", "train"), ("bf16", "train"), ("fp32", "eval"))),
]


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize(("precision", "batch_norm"), EXECUTION)
def test_captured_steps_equal_eager_steps(load, name, precision, batch_norm):
    """Two epochs, so that methods which wait for the rate to drop have begun."""
    changes = {
        "methods: [pgd_at]": f"methods: [{name}]",
        "training:\n": f"training:\n  precision: {precision}\n",
        "steps: 2, step_size: 0.1}\neval": f"steps: 2, step_size: 0.1, batch_norm: {batch_norm}}}\neval",
    }

    def trained(capture):
        cell = load(changes).cells[0]
        random, replayed = RngStreams(cell.seed), []
        images = dataset_of(cell.protocol.dataset).splits(None).train.take(torch.arange(6 * 64))
        batches = TrainingBatches(images, 64, (), random)
        method = build_method(cell, digits, batches, random, CPU)
        results = []
        for epoch in range(2):
            random.start_epoch(epoch)
            method.begin_epoch(epoch)
            method.model.train()
            metrics = EpochMetrics(CPU)
            train = Steps(method, metrics, capture)
            for batch in batches:
                train(batch)
            replayed.append(train._replay is not None)
            train.end()
            method.end_epoch(epoch)
            results.append(metrics.read())
            assert all(parameter.grad is None for parameter in method.model.parameters())
        weights = torch.cat([value.double().flatten() for value in method.evaluated_model().state_dict().values()])
        return weights, results, replayed

    eager, captured = trained(None), trained(record)
    assert torch.equal(eager[0], captured[0])
    assert eager[1] == captured[1]
    assert (eager[2], captured[2]) == ([False, False], [True, True])


def test_captured_steps_read_the_soft_labels_of_each_batch(start):
    def trained(capture):
        method, batches = start("{steps: 1, step_size: 0.02}")
        train = Steps(method, EpochMetrics(CPU), capture)
        for batch in islice(batches, 6):
            shares = F.one_hot(batch.labels, 10) * 0.7 + F.one_hot(batch.index % 10, 10) * 0.3
            train(replace(batch, soft_labels=shares))
        assert (train._replay is not None) == (capture is not None)
        return torch.cat([value.double().flatten() for value in method.model.state_dict().values()])

    assert torch.equal(trained(record), trained(None))


@pytest.mark.parametrize("name", ["pgd_at", "dom_augmix"])
def test_clean_passes_and_a_last_batch_run_beside_the_graph(load, name):
    changes = {
        "methods: [pgd_at]": f"methods: [{name}]",
        "training:\n": "training:\n  clean_pass: after_step\n  last_batch: keep\n",
    }

    def trained(capture):
        cell = load(changes).cells[0]
        random, replayed = RngStreams(cell.seed), []
        images = dataset_of(cell.protocol.dataset).splits(None).train.take(torch.arange(5 * 64 + 3))
        batches = TrainingBatches(images, 64, (), random, keep_last=True)
        method = build_method(cell, digits, batches, random, CPU)
        random.start_epoch(1)
        method.begin_epoch(1)  # DOM is active, and transforms outside the graph
        method.model.train()
        train = Steps(method, EpochMetrics(CPU), capture)
        for batch in batches:
            train(batch)
            replayed.append(train._replay is not None)
        return torch.cat([value.double().flatten() for value in method.model.state_dict().values()]), replayed

    eager, captured = trained(None), trained(record)
    assert torch.equal(eager[0], captured[0])
    assert captured[1] == [False] * 3 + [True] * 2 + [False]


def refused(_compute, _generators):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("declared", [True, False])
def test_steps_that_cannot_be_captured_run_eagerly(load, caplog, declared):
    cell = load().cells[0]
    random = RngStreams(0)
    batches = TrainingBatches(dataset_of(cell.protocol.dataset).splits(None).train, 64, (), random)
    method = build_method(cell, digits, batches, random, CPU)
    method.captured = not declared
    method.model.train()
    metrics = EpochMetrics(CPU)
    train = Steps(method, metrics, refused)
    for batch in islice(batches, 6):
        train(batch)
    assert metrics._images == 6 * 64
    assert caplog.text.count("CUDA graph capture failed") == (not declared)


def test_a_captured_step_adds_to_all_counters_of_batches_at_once(start):
    found = []

    class Additions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            into = args[0][0] if args and isinstance(args[0], list) else args[0] if args else None
            if "add" in func._schema.name and getattr(into, "dtype", None) == torch.int64:
                found.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    def capture(compute, _generators):
        with Additions():
            return compute(), lambda: None

    method, batches = start("{steps: 3}")
    train = Steps(method, EpochMetrics(CPU), capture)
    for batch in islice(batches, 4):
        train(batch)
    assert found == ["aten::_foreach_add_"]
    assert method.model.get_buffer("body.bn1.num_batches_tracked") == 4 * (3 + 1)


def test_a_draw_on_the_host_is_not_captured(start, caplog, monkeypatch):
    method, batches = start("{steps: 1}")
    transform = method.transform

    def deciding(batch):
        method.context.random.cpu("mine")
        return transform(batch)

    monkeypatch.setattr(method, "transform", deciding)
    train = Steps(method, EpochMetrics(CPU), lambda compute, _generators: (compute(), None))
    for batch in islice(batches, 6):
        train(batch)
    assert "CUDA graph capture failed, running eagerly: 'mine' is decided on the host" in caplog.text
    method.context.random.cpu("mine")


def test_a_step_that_waits_for_the_device_is_not_captured(start, caplog, monkeypatch):
    watched = []

    @contextmanager
    def host_waits(device):
        watched.append(device)
        yield ["methods/mine.py:7: called a synchronizing CUDA operation"]

    monkeypatch.setattr("bench.training.step.host_waits", host_waits)
    method, batches = start("{steps: 1}")
    train = Steps(method, EpochMetrics(CPU), lambda _compute, _generators: pytest.fail("captured"))
    for batch in islice(batches, 6):
        train(batch)
    assert watched == [CPU]
    assert "is not captured: methods/mine.py:7: called a synchronizing CUDA operation" in caplog.text
    assert all(parameter.grad is None for parameter in method.model.parameters())


def test_a_cpu_captures_nothing():
    assert capture_on(CPU) is None


def test_memory_does_not_grow_over_steps(start):
    """Counts the tensors that are alive, not bytes, which the system gives and takes as it likes."""
    method, batches = start("{steps: 2}")
    metrics, alive = EpochMetrics(CPU), []
    gc.freeze()  # leaves out what there is by now, which takes long to go through
    for batch in islice(batches, 6):
        train_step(method, batch, method.optimizer, metrics)
        del batch
        gc.collect()
        alive.append(sum(type(thing) in (torch.Tensor, torch.nn.Parameter) for thing in gc.get_objects()))
    gc.unfreeze()
    assert len(set(alive[1:])) == 1, alive


class Reads(TorchDispatchMode):
    """Counts the operations that wait for the device: those that bring a number to the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["pgd_at", "dom_re", "fomo", "sat", "trades", "mart", "awp", "te", "ema", "swa"])
def test_no_step_waits_for_the_device(load, name):
    cell = load({"methods: [pgd_at]": f"methods: [{name}]"}).cells[0]
    random = RngStreams(0)
    batches = TrainingBatches(dataset_of(cell.protocol.dataset).splits(None).train, 64, (), random)
    method = build_method(cell, digits, batches, random, CPU)
    method.begin_epoch(1)
    method.model.train()
    some, metrics = list(islice(batches, 2)), EpochMetrics(CPU)
    train_step(method, some[0], method.optimizer, metrics)
    with Reads() as reads:
        compute_gradients(method, transform(method, some[1]))
    assert reads.found == []


def test_every_step_lets_the_device_time_its_kernels(start, monkeypatch):
    timed = []

    @contextmanager
    def note(device):
        timed.append(device)
        yield

    monkeypatch.setattr("bench.training.step.timed_convolutions", note)
    method, batches = start("none")
    train = Steps(method, EpochMetrics(CPU))
    for batch in islice(batches, 2):
        train(batch)
    assert timed == [CPU, CPU]
