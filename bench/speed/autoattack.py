"""The candidates of evaluation: this harness's AutoAttack cascade, and plain `pyautoattack`."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench import registry
from bench.attacks.autoattack import Cascade
from bench.attacks.evaluate import EVALUATION_SEED, balanced_subset
from bench.attacks.pgd import cross_entropy, pgd
from bench.config.attacks import AutoAttack, Threat
from bench.data.batches import to_float
from bench.errors import NotFound
from bench.models.architecture import Architecture, build_network
from bench.speed.process import Setup, Work
from bench.utils.cuda_graphs import capture_in_one_pool
from bench.utils.device import exact_arithmetic, keep_memory
from bench.utils.rng import generator

Request = tuple[float, Tensor, Tensor]
"""Radius, images and labels of one batch, on the CPU."""


def official(setup: Setup, *, exact: bool = True) -> Work:
    """Return plain `pyautoattack`: the request is (radius, images, labels), the result which images are robust.

    In exact fp32 as the harness's cascade, or in torch's default, which on a GPU is TF32 in convolutions.
    """
    from pyautoattack import AutoAttack as Official

    network = _network(setup).to(torch.device(setup.device)).eval()

    def work(request: Request) -> list[bool]:
        eps, images, labels = _on(setup, request)
        norm = {"linf": "Linf", "l2": "L2"}[setup.cell.protocol.threat.norm]
        attack = Official(network, norm=norm, eps=eps, seed=EVALUATION_SEED, device=setup.device)
        with exact_arithmetic() if exact else nullcontext():
            adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
            with torch.no_grad():
                robust: list[bool] = (network(adversarial).argmax(1) == labels).tolist()
        return robust

    return work


def cascade(setup: Setup, version: Literal["standard", "standard-bf16-confirmed"] = "standard") -> Work:
    """Return the harness's cascade; request and result as in `official`."""
    if setup.device == "cpu":
        keep_memory()
    network = _network(setup).to(torch.device(setup.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval().requires_grad_(False)
    capture = capture_in_one_pool(torch.device(setup.device))

    def work(request: Request) -> list[bool]:
        eps, images, labels = _on(setup, request)
        threat = Threat(norm=setup.cell.protocol.threat.norm, eps=eps)
        settings = AutoAttack(version=version, batch_size=len(images))
        with exact_arithmetic():
            state = Cascade(network, threat, settings, EVALUATION_SEED, capture).run(
                images, labels, None, lambda _state: None, lambda *_place: None
            )
        robust: list[bool] = state.robust.tolist()
        return robust

    return work


confirmed = partial(cascade, version="standard-bf16-confirmed")
"""The cascade that searches in bfloat16."""


def prepare(setup: Setup) -> Work:
    """Return the choice of images, of the network's labels for them, and of the radius; the request is ignored.

    Test images if the dataset is available, else random ones. The default radius is the one at which PGD-20 breaks half
    of them: as for a robust network, one half is broken early and the other remains robust.
    """
    device, threat = torch.device(setup.device), setup.cell.protocol.threat
    network = _network(setup).to(device).eval().requires_grad_(False)

    def fooled(images: Tensor, labels: Tensor, eps: float) -> int:
        adversarial = pgd(
            network, images, cross_entropy(labels),
            threat=Threat(norm=threat.norm, eps=eps), steps=20, step_size=eps / 4,
        )  # fmt: skip
        with torch.no_grad():
            return int((network(adversarial).argmax(1) != labels).sum())

    def work(_order: Any) -> tuple[str, float, Tensor, Tensor]:
        what, images = _test_images(setup)
        images = images.to(device)
        with torch.no_grad():
            labels = network(images).argmax(1)
        eps = setup.eps
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


def _on(setup: Setup, request: Request) -> Request:
    eps, images, labels = request
    return eps, images.to(setup.device), labels.to(setup.device)


def _network(setup: Setup) -> nn.Module:
    """Return a network to attack: ResNet-18 as `pyautoattack` ships it, trained on CIFAR-10; others are untrained."""
    dataset = setup.dataset
    architecture: Architecture = registry.MODELS.get(setup.cell.protocol.model)
    if setup.cell.protocol.model == "resnet18" and (dataset.classes, *dataset.shape) == (10, 3, 32, 32):
        package = importlib.util.find_spec("pyautoattack")
        assert package is not None
        assert package.origin is not None
        network = architecture.build(10, (3, 32, 32))  # without normalisation: those weights have none
        weights = Path(package.origin).parent / "examples" / "model_test.pt"
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return network
    return build_network(architecture, dataset, seed=0)


def _test_images(setup: Setup) -> tuple[str, Tensor]:
    """Return (what they are, images): float32, [n, channels, height, width], in [0, 1]."""
    dataset = setup.dataset
    try:
        test = dataset.splits(setup.data).test
        subset = test.take(balanced_subset(test.labels, setup.images))
        (pixels,) = subset.read([torch.arange(len(subset))])
        return f"test images of {dataset.name}", to_float(pixels).contiguous()
    except NotFound:
        random = generator(0, "speed/images")
        return "random images", torch.rand(setup.images, *dataset.shape, generator=random)
