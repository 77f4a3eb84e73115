"""The candidates in training: this harness's step, the loop of public code, and that loop with `torchattacks`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.pgd import cross_entropy, frozen_parameters, pgd, random_start
from bench.config.optimization import SGD
from bench.data.batches import Batch, TrainingBatches, to_float
from bench.data.dataset import ImageSet
from bench.speed import reference
from bench.speed.process import Setup, Work
from bench.training.build import build_method
from bench.training.method import Method
from bench.training.optimizers import make_optimizer
from bench.training.step import EpochMetrics, Steps, train_step
from bench.utils.cuda_graphs import Capture, capture_on
from bench.utils.device import exact_arithmetic, keep_memory
from bench.utils.rng import RngStreams, generator

EPOCH = 64
"""Batches that the images to train on fill: enough that none is in a cache when it comes again."""


def _images(setup: Setup) -> ImageSet:
    """Return random training images; the speed of a step does not depend on their content."""
    count = EPOCH * setup.cell.protocol.training.batch_size
    random, dataset = generator(0, "speed"), setup.dataset
    pixels = torch.randint(0, 256, (count, *dataset.shape), generator=random, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, dataset.classes, (count,), generator=random))


def _method(setup: Setup, images: ImageSet) -> tuple[Method[Any], TrainingBatches]:
    device, training = torch.device(setup.device), setup.cell.protocol.training
    random = RngStreams(0, device)
    batches = TrainingBatches(
        images.to(device), training.batch_size, training.augmentation, random, classes=setup.dataset.classes
    )
    method = build_method(setup.cell, setup.dataset, batches, random, device)
    method.model.train()
    return method, batches


def harness(
    setup: Setup, capture: Callable[[torch.device], Capture | None] | None = capture_on, *, compile: bool = False
) -> Work:
    """Return the training of this harness, eager if `capture` is None: the request is a number of steps."""
    if setup.device == "cpu":
        keep_memory()
    method, batches = _method(setup, _images(setup))

    def endless() -> Iterator[Batch]:
        while True:
            yield from batches

    device = torch.device(setup.device)
    stream, train = endless(), Steps(method, EpochMetrics(device), capture and capture(device), compile=compile)

    def work(steps: int) -> None:
        for _ in range(steps):
            train(next(stream))

    return work


def public(setup: Setup, *, exact: bool = False) -> Work:
    """Return the loop of public code: the request is a number of steps.

    In torch's default precision, on a GPU with TF32 in convolutions, or in full fp32 (`exact`).
    """
    work = changed(setup, ())

    def exactly(steps: int) -> None:
        with exact_arithmetic():
            work(steps)

    return exactly if exact else work


def public_with_torchattacks(setup: Setup) -> Work:
    """Return the same loop with the attack of the package `torchattacks`: the request is a number of steps."""
    import torchattacks

    threat, settings = setup.cell.protocol.threat, setup.cell.protocol.training.attack

    def attack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        pgd = torchattacks.PGD(model, eps=threat.eps, alpha=settings.step_size, steps=settings.steps, random_start=True)
        pgd.set_model_training_mode(model_training=True, batchnorm_training=True)
        perturbation: Tensor = pgd(images, labels) - images
        return perturbation

    return changed(setup, (), attack)


CHANGES = ("no needless forwards", "resident images", "input gradients", "channels_last", "memory kept", "bf16")
"""From the public loop to this harness's step, one by one. (What is left then: fused SGD, and a CUDA graph.)"""


def changed(
    setup: Setup, changes: Sequence[str], attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
) -> Work:
    """Return the public loop with some of `CHANGES`, or with another attack: the request is a number of steps."""
    protocol, device, images = setup.cell.protocol, torch.device(setup.device), _images(setup)
    if "memory kept" in changes:
        keep_memory()
    method, batches = _method(setup, images)
    layout = torch.channels_last if "channels_last" in changes else torch.contiguous_format
    model: nn.Module = method.model.to(memory_format=layout)
    settings = protocol.training.optimizer
    assert isinstance(settings, SGD)  # `measure` refuses others
    needless = "no needless forwards" not in changes
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    starts = generator(0, "speed/attack", device=device)

    def with_input_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        recipe, start = protocol.training.attack, random_start(x, protocol.threat, starts)
        with frozen_parameters(model):
            adversarial = pgd(
                model, x, cross_entropy(y),
                threat=protocol.threat, steps=recipe.steps, step_size=recipe.step_size, start=start,
            )  # fmt: skip
        return adversarial - x

    if attack is None:
        plain = partial(reference.attack, threat=protocol.threat, settings=protocol.training.attack, needless=needless)
        attack = with_input_gradients if "input gradients" in changes else plain

    def resident() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from ((batch.images, batch.labels) for batch in batches)

    loader = reference.batches(reference.AugmentedImages(images.pixels, images.labels), protocol.training.batch_size)
    stream = resident() if "resident images" in changes else loader

    def work(steps: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in changes, cache_enabled=False):
            for _ in range(steps):
                x, y = next(stream)
                x, y = x.to(device, memory_format=layout), y.to(device)
                reference.train_step(model, optimizer, x, y, attack(model, x, y), needless=needless)

    return work


CHECKED_IMAGES = 4


def difference(setup: Setup) -> Work:
    """Return the distance between the weights of both loops after the same steps; the request is a number of steps.

    With equal initial weights, images and random starts, in double precision: in fp32, rounding decides the sign of
    gradients near zero, the attack amplifies it, and two correct loops diverge within one step. The result is that
    distance, and the distance between the gradients in fp32 without an attack, both relative to the plain loop.
    """
    training = setup.cell.protocol.training.model_copy(update={"precision": "fp32", "batch_size": CHECKED_IMAGES})
    protocol = setup.cell.protocol.model_copy(update={"training": training})
    few = replace(setup, cell=setup.cell.model_copy(update={"protocol": protocol}))
    method, batches = _method(few, _images(few))
    device = torch.device(setup.device)

    def work(steps: int) -> tuple[float, float]:
        with exact_arithmetic():
            plain = copy.deepcopy(method.model).to(memory_format=torch.contiguous_format)
            gradients = _distance(
                _gradients(method.model, batches, torch.channels_last),
                _gradients(plain, batches, torch.contiguous_format),
            )
            method.model.double()
            plain.double()
            optimizer, metrics = make_optimizer(plain.parameters(), training.optimizer), EpochMetrics(device)
            starts = RngStreams(0, device)("attack")
            for batch, _ in zip(batches, range(steps), strict=False):
                images = batch.images.double()
                start = random_start(images, protocol.threat, starts) - images
                perturbation = reference.attack(
                    plain, images.contiguous(), batch.labels, protocol.threat, training.attack, start
                )
                reference.train_step(plain, optimizer, images.contiguous(), batch.labels, perturbation)
                train_step(method, Batch(images, batch.labels, batch.index), method.optimizer, metrics)
        return _distance(_flat(method.model.parameters()), _flat(plain.parameters())), gradients

    return work


def _gradients(model: nn.Module, batches: TrainingBatches, layout: torch.memory_format) -> Tensor:
    pixels, labels = next(batches.images.read([torch.arange(CHECKED_IMAGES)])), batches.images.labels[:CHECKED_IMAGES]
    loss = F.cross_entropy(model(to_float(pixels).contiguous(memory_format=layout)), labels)
    return _flat(torch.autograd.grad(loss, list(model.parameters())))


def _distance(fast: Tensor, plain: Tensor) -> float:
    return float((fast - plain).norm() / plain.norm())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])
