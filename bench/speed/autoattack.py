"""The contenders in evaluation: AutoAttack by this harness's cascade, and by plain `pyautoattack`."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench import registry
from bench.attacks.autoattack import Cascade
from bench.attacks.evaluate import EVALUATION_SEED, balanced_subset, exact_arithmetic
from bench.attacks.pgd import cross_entropy, pgd
from bench.config.attacks import AutoAttack, Threat
from bench.data.batches import to_float
from bench.errors import NotFound
from bench.models.architecture import Architecture, build_network
from bench.speed.process import Arena, Work
from bench.utils.device import keep_memory
from bench.utils.rng import generator

Order = tuple[float, Tensor, Tensor]
"""Radius, images and labels of one batch, on the CPU."""


def official(arena: Arena) -> Work:
    """Return plain `pyautoattack`: the order is (radius, images, labels), the answer which images stand."""
    from pyautoattack import AutoAttack as Official

    network = _network(arena).to(torch.device(arena.device)).eval()

    def work(order: Order) -> list[bool]:
        eps, images, labels = _on(arena, order)
        norm = {"linf": "Linf", "l2": "L2"}[arena.cell.protocol.threat.norm]
        attack = Official(network, norm=norm, eps=eps, seed=EVALUATION_SEED, device=arena.device)
        found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        with torch.no_grad():
            stands: list[bool] = (network(found).argmax(1) == labels).tolist()
        return stands

    return work


def cascade(arena: Arena, version: Literal["standard", "standard-bf16-confirmed"] = "standard") -> Work:
    """Return the harness's cascade: order and answer as of `official`."""
    if arena.device == "cpu":
        keep_memory()
    network = _network(arena).to(torch.device(arena.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval().requires_grad_(False)

    def work(order: Order) -> list[bool]:
        eps, images, labels = _on(arena, order)
        threat = Threat(norm=arena.cell.protocol.threat.norm, eps=eps)
        settings = AutoAttack(version=version, batch_size=len(images))
        with exact_arithmetic():
            state = Cascade(network, threat, settings, EVALUATION_SEED).run(
                images, labels, None, lambda _state: None, lambda *_place: None
            )
        stands: list[bool] = state.robust.tolist()
        return stands

    return work


confirmed = partial(cascade, version="standard-bf16-confirmed")
"""The cascade that searches in bfloat16."""


def prepare(arena: Arena) -> Work:
    """Return what chooses images, the labels that the network gives them, and the radius; the order is ignored.

    Test images of the dataset where they are there, else random ones. Without a radius of the user's, the one at which
    PGD-20 fools half of them: as with a robust network, one half is soon done and the other stands to the end.
    """
    device, threat = torch.device(arena.device), arena.cell.protocol.threat
    network = _network(arena).to(device).eval().requires_grad_(False)

    def fooled(images: Tensor, labels: Tensor, eps: float) -> int:
        found = pgd(
            network, images, cross_entropy(labels),
            threat=Threat(norm=threat.norm, eps=eps), steps=20, step_size=eps / 4,
        )  # fmt: skip
        with torch.no_grad():
            return int((network(found).argmax(1) != labels).sum())

    def work(_order: Any) -> tuple[str, float, Tensor, Tensor]:
        what, images = _test_images(arena)
        images = images.to(device)
        with torch.no_grad():
            labels = network(images).argmax(1)
        eps = arena.eps
        if eps is None:
            low, high = 0.0, threat.eps
            while high < 0.5 and 2 * fooled(images, labels, high) < len(images):
                low, high = high, 2 * high
            for _ in range(8):
                eps = (low + high) / 2
                low, high = (low, eps) if 2 * fooled(images, labels, eps) > len(images) else (eps, high)
            eps = high
        return what, eps, images.cpu(), labels.cpu()

    return work


def _on(arena: Arena, order: Order) -> Order:
    eps, images, labels = order
    return eps, images.to(arena.device), labels.to(arena.device)


def _network(arena: Arena) -> nn.Module:
    """Return a network to attack: ResNet-18 as `pyautoattack` ships it, trained on CIFAR-10; others are untrained."""
    dataset = arena.dataset
    architecture: Architecture = registry.MODELS.get(arena.cell.protocol.model)
    if arena.cell.protocol.model == "resnet18" and (dataset.classes, *dataset.shape) == (10, 3, 32, 32):
        package = importlib.util.find_spec("pyautoattack")
        assert package is not None
        assert package.origin is not None
        network = architecture.build(10, (3, 32, 32))  # without normalisation: those weights have none
        weights = Path(package.origin).parent / "examples" / "model_test.pt"
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return network
    return build_network(architecture, dataset, seed=0)


def _test_images(arena: Arena) -> tuple[str, Tensor]:
    """Return (what they are, images): float32, [n, channels, height, width], in [0, 1]."""
    dataset = arena.dataset
    try:
        test = dataset.splits(arena.data).test
        few = test.take(balanced_subset(test.labels, arena.images))
        (pixels,) = few.read([torch.arange(len(few))])
        return f"test images of {dataset.name}", to_float(pixels).contiguous()
    except NotFound:
        random = generator(0, "speed/images")
        return "random images", torch.rand(arena.images, *dataset.shape, generator=random)
