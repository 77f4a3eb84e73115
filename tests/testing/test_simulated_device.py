"""The simulated GPU refuses what a GPU refuses, and what the harness computes on it has the bits of the CPU."""

import pytest
import torch
import torch.nn.functional as F

from bench.attacks import evaluate as evaluation
from bench.attacks.evaluate import correct_under, evaluate
from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Clean, Threat
from bench.data.datasets.digits import digits, load
from bench.execution import worker
from bench.execution.worker import Job, execute
from bench.models.architecture import build_network
from bench.models.small_cnn import small_cnn
from bench.registry import MODELS
from bench.testing.conformance import curve, keeping_trainer_of, same, small_cell
from bench.testing.recorded_graph import CountedCapture, record
from bench.testing.simulated_device import SIMULATED, simulated_device
from bench.utils.rng import generator


@pytest.fixture
def device():
    with simulated_device() as device:
        yield device


# --- the simulation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: there.mul_(here),
        lambda here, there: torch.cat((here, there)),
        lambda here, there: torch.where(here > 0, here, there),
        lambda here, there: F.linear(here[None], there[None]),
        lambda here, there: there[here.argsort()],
        lambda here, there: here.gather(0, there.argsort()),
        lambda here, there: torch.stack((here.sum(), there.sum())),
        lambda here, there: torch._foreach_add([here], [there]),
        lambda here, there: here.uniform_(generator=generator(0, "t")),
        lambda here, there: torch.rand(3, generator=generator(0, "t", device=here.device)),
        lambda here, there: torch.rand(3, generator=generator(0, "t"), device=here.device),
    ],
    ids=["add", "in_place", "cat", "where", "linear", "index", "gather", "stack", "foreach", "draw", "cpu", "device"],
)
def test_two_devices_are_refused(device, mixed):
    with pytest.raises(RuntimeError, match=r"same device|a generator on"):
        mixed(torch.arange(3.0, device=device), torch.arange(3.0))


def test_numbers_and_indices_are_moved_as_by_torch(device):
    values = torch.arange(3.0, device=device)
    assert (values * torch.tensor(2.0)).tolist() == [0, 2, 4]
    assert values[torch.tensor([2, 0])].tolist() == [2, 0]
    values[torch.tensor([1])] = 7
    assert values.cpu().tolist() == [0, 7, 2]
    assert torch.zeros(3).copy_(values).tolist() == [0, 7, 2]
    assert torch.tensor([4.0], device=device).device == device
    assert torch.rand(3, generator=generator(0, "t", device=device), device=device).device == device


def test_numpy_is_refused(device):
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        torch.zeros(3, device=device).numpy()


@pytest.mark.parametrize(
    "copied",
    [
        lambda values: values + torch.tensor(1.0, device=values.device),
        lambda values: values.cpu(),
        lambda values: values.copy_(torch.zeros(3)),
        lambda values: values[torch.tensor([0])],
    ],
    ids=["made", "to_cpu", "copy", "index"],
)
def test_copies_between_host_and_device_are_not_captured(device, copied):
    values = torch.zeros(3, device=device)
    with pytest.raises(RuntimeError, match="copies between host and device"):
        record(lambda: copied(values), [])


def test_torch_is_as_before_it():
    with simulated_device():
        pass
    assert type(torch.Generator()) is torch._C.Generator
    assert not torch.is_autocast_enabled("cpu")
    assert torch.zeros(1, device=SIMULATED).is_meta


# --- the harness on it -----------------------------------------------------------------------------------------------


def trained(cell, folder, device="cpu", capture=None):
    """Return the weights after each epoch."""
    trainer = keeping_trainer_of(cell, folder, torch.device(device))
    trainer.capture = capture
    trainer.run()
    return trainer.kept


COLOURS = [
    *({"name": name, "factors": [0.5, 1.5]} for name in ("brightness", "contrast", "saturation", "sharpness")),
    *({"name": name} for name in ("autocontrast", "equalize")),
]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "augmentation": [
                *({"name": "crop", "padding": 1}, {"name": "flip"}, {"name": "rotate"}, {"name": "random_erasing"}),
                *({"name": "cutout", "size": 3}, {"name": "cutmix"}),
            ]
        },
        pytest.param({"augmentation": [*COLOURS, {"name": "mixup"}]}, marks=pytest.mark.slow),
        pytest.param(
            {"optimizer": {"name": "adam"}, "schedule": {"name": "cosine", "warmup": 1}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"optimizer": {"name": "adamw", "weight_decay_on": "weights"}, "schedule": {"name": "cyclic"}},
            marks=pytest.mark.slow,
        ),
        {"optimizer": {"name": "lamb"}, "last_batch": "keep", "clean_pass": "after_step"},
    ],
    ids=["moves", "colours", "adam", "adamw", "lamb"],
)
def test_protocol_settings(tmp_path, changes):
    cell = small_cell("pgd_at")
    training = type(cell.protocol.training).model_validate({**cell.protocol.training.model_dump(), **changes})
    cell = cell.model_copy(update={"protocol": cell.protocol.model_copy(update={"training": training})})
    expected, count = trained(cell, tmp_path / "cpu"), CountedCapture()
    with simulated_device() as device:
        found = trained(cell, tmp_path / "device", device, count)
    assert same(found, expected)
    assert count.replays
    assert not count.refusals


ATTACKS = [
    Clean(), FGSM(), PGD(steps=2, step_size=0.05, restarts=2), CW(steps=2, step_size=0.05),
    AutoAttack(images=12, batch_size=10),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.usefixtures("short_autoattack")
def test_final_attacks(digits_network, attack, norm):
    threat = Threat(norm=norm, eps={"linf": 0.1, "l2": 0.4}[norm])
    images = load()[1].take(torch.arange(100))
    expected = evaluate(digits_network, "weights", images, attack, threat)
    with simulated_device() as device:
        moved = build_network(small_cnn, digits, seed=0).to(device)
        moved.load_state_dict(digits_network.state_dict())
        found = evaluate(moved, "weights", images.to(device), attack, threat)
    assert (found.correct == expected.correct).all()
    assert found.detail == expected.detail
    assert 0 < expected.correct.mean() < 1


def test_final_attacks_captured(digits_network, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 64)
    monkeypatch.setattr(evaluation, "MIN_CAPTURED_IMAGES", 128)
    attack, threat = PGD(steps=2, step_size=0.05), Threat(norm="linf", eps=0.1)
    images = load()[1].take(torch.arange(300))
    expected = correct_under(digits_network, images, attack, threat, generator(0, "t"))
    count = CountedCapture()
    with simulated_device() as device:
        moved = build_network(small_cnn, digits, seed=0).to(device)
        moved.load_state_dict(digits_network.state_dict())
        random = generator(0, "t", device=device)
        found = correct_under(moved, images.to(device), attack, threat, random, capture=count)
        assert torch.equal(found.cpu(), expected)
    assert count.replays
    assert not count.refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("small_cnn", "preact_resnet8_32", "preact_resnet14_16", "resnet18", "vit_small"),
        *("wide_resnet/10-1", "timm/resnet18", "timm/vit_tiny_patch16_224"),
    ],
)
def test_architectures(name):
    shape = (1, 8, 8) if name == "small_cnn" else (3, 32, 32)
    torch.manual_seed(0)
    built, images, labels = MODELS.get(name).build(5, shape), torch.rand(4, *shape), torch.tensor([0, 1, 2, 4])

    def gradients(network, images, labels):
        images = images.clone(memory_format=torch.channels_last).requires_grad_()
        F.cross_entropy(network.to(images.device, memory_format=torch.channels_last)(images), labels).backward()
        return [images.grad, *(parameter.grad for parameter in network.parameters())]

    state = {key: value.clone() for key, value in built.state_dict().items()}
    expected = gradients(built, images, labels)
    with simulated_device() as device:
        other = MODELS.get(name).build(5, shape).to(device)
        other.load_state_dict(state)
        found = [value.cpu() for value in gradients(other, images.to(device), labels.to(device))]
    torch.testing.assert_close(found, expected)  # torch chooses other kernels by device, for attention for example


@pytest.mark.slow
def test_a_whole_cell(load, tmp_path, monkeypatch):
    """A cell as a worker trains and evaluates it: the same records but for times."""
    monkeypatch.setattr(worker, "use_device", lambda _device, threads: torch.set_num_threads(threads))
    final = "{name: corruptions, severity: 3, kinds: [contrast]}, {name: autoattack, attacks: [apgd-ce]}, {name: joint}"
    (cell,) = load({"step_size: 0.05}]": f"step_size: 0.05}}, {final}]"}).cells
    results = []
    for device in ("cpu", SIMULATED.type):
        job = Job(cell, tmp_path / device, (device,), None, 1)
        with simulated_device():
            assert execute(job) == "finished"
        outcomes = {key: {**record, "seconds": 0} for key, record in job.folder.read_outcomes().items()}
        results.append((curve(job.folder.epochs()), outcomes))
    assert results[0] == results[1]
    assert {checkpoint for checkpoint, _ in outcomes} == {"best", "last", "best_on_test"}
