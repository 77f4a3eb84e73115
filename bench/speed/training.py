"""The contenders in training: this harness's step, the loop of public code, and that loop with `torchattacks`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.evaluate import exact_arithmetic
from bench.attacks.pgd import cross_entropy, frozen_parameters, pgd, random_start
from bench.data.batches import Batch, TrainingBatches, to_float
from bench.data.dataset import ImageSet
from bench.speed import reference
from bench.speed.process import Arena, Work
from bench.training.build import build_method
from bench.training.method import Method
from bench.training.step import EpochMetrics, Steps, sgd, train_step
from bench.utils.cuda_graphs import capture_on
from bench.utils.device import keep_memory
from bench.utils.rng import RngStreams, generator

EPOCH = 64
"""Batches that the images to train on fill: enough that none is in a cache when it comes again."""


def _images(arena: Arena) -> ImageSet:
    """Return random images to train on; how fast a step is does not depend on what they show."""
    count = EPOCH * arena.cell.protocol.training.batch_size
    random, dataset = generator(0, "speed"), arena.dataset
    pixels = torch.randint(0, 256, (count, *dataset.shape), generator=random, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, dataset.classes, (count,), generator=random))


def _method(arena: Arena, images: ImageSet) -> tuple[Method[Any], TrainingBatches]:
    device, training = torch.device(arena.device), arena.cell.protocol.training
    random = RngStreams(0, device)
    batches = TrainingBatches(images.to(device), training.batch_size, training.augmentation, random)
    method = build_method(arena.cell, arena.dataset, batches, random, device)
    method.model.train()
    return method, batches


def ours(arena: Arena) -> Work:
    """Return this harness's training: the order is a number of steps."""
    if arena.device == "cpu":
        keep_memory()
    method, batches = _method(arena, _images(arena))

    def endless() -> Iterator[Batch]:
        while True:
            yield from batches

    device = torch.device(arena.device)
    stream, train = endless(), Steps(method, EpochMetrics(device), capture_on(device))

    def work(steps: int) -> None:
        for _ in range(steps):
            train(next(stream))

    return work


def public(arena: Arena) -> Work:
    """Return the loop as public code has it: the order is a number of steps."""
    return changed(arena, ())


def public_with_torchattacks(arena: Arena) -> Work:
    """Return the same loop with the attack of the package `torchattacks`: the order is a number of steps."""
    import torchattacks

    threat, settings = arena.cell.protocol.threat, arena.cell.protocol.training.attack

    def attack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        pgd = torchattacks.PGD(model, eps=threat.eps, alpha=settings.step_size, steps=settings.steps, random_start=True)
        pgd.set_model_training_mode(model_training=True, batchnorm_training=True)
        found: Tensor = pgd(images, labels) - images
        return found

    return changed(arena, (), attack)


CHANGES = ("no needless forwards", "resident images", "input gradients", "channels_last", "memory kept", "bf16")
"""From the public loop to this harness's step, one by one. (What is left then: fused SGD, and a CUDA graph.)"""


def changed(
    arena: Arena, changes: Sequence[str], attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
) -> Work:
    """Return the public loop with some of `CHANGES`, or with another attack: the order is a number of steps."""
    protocol, device, images = arena.cell.protocol, torch.device(arena.device), _images(arena)
    if "memory kept" in changes:
        keep_memory()
    method, batches = _method(arena, images)
    layout = torch.channels_last if "channels_last" in changes else torch.contiguous_format
    model: nn.Module = method.model.to(memory_format=layout)
    settings, needless = protocol.training.optimizer, "no needless forwards" not in changes
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    starts = generator(0, "speed/attack", device=device)

    def with_input_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        recipe, start = protocol.training.attack, random_start(x, protocol.threat, starts)
        with frozen_parameters(model):
            found = pgd(
                model, x, cross_entropy(y),
                threat=protocol.threat, steps=recipe.steps, step_size=recipe.step_size, start=start,
            )  # fmt: skip
        return found - x

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


def difference(arena: Arena) -> Work:
    """Return what tells how far apart the weights of both loops are after the same steps; the order is how many.

    The same initial weights, few images and random starts. In double precision: in fp32 rounding decides the sign of
    gradients near zero, every further step of the attack carries that on, and two right loops part within one step.
    The answer: that distance, and in fp32 the distance between the gradients of both on the same images, without an
    attack; each as a share of what the plain loop has.
    """
    training = arena.cell.protocol.training.model_copy(update={"precision": "fp32", "batch_size": CHECKED_IMAGES})
    protocol = arena.cell.protocol.model_copy(update={"training": training})
    few = replace(arena, cell=arena.cell.model_copy(update={"protocol": protocol}))
    method, batches = _method(few, _images(few))
    device = torch.device(arena.device)

    def work(steps: int) -> tuple[float, float]:
        with exact_arithmetic():
            plain = copy.deepcopy(method.model).to(memory_format=torch.contiguous_format)
            gradients = _apart(
                _gradients(method.model, batches, torch.channels_last),
                _gradients(plain, batches, torch.contiguous_format),
            )
            method.model.double()
            plain.double()
            optimizer, metrics = sgd(plain, training.optimizer), EpochMetrics(device)
            starts = RngStreams(0, device)("attack")
            for batch, _ in zip(batches, range(steps), strict=False):
                images = batch.images.double()
                start = random_start(images, protocol.threat, starts) - images
                found = reference.attack(
                    plain, images.contiguous(), batch.labels, protocol.threat, training.attack, start
                )
                reference.train_step(plain, optimizer, images.contiguous(), batch.labels, found)
                train_step(method, Batch(images, batch.labels, batch.index), method.optimizer, metrics)
        return _apart(_flat(method.model.parameters()), _flat(plain.parameters())), gradients

    return work


def _gradients(model: nn.Module, batches: TrainingBatches, layout: torch.memory_format) -> Tensor:
    pixels, labels = next(batches.images.read([torch.arange(CHECKED_IMAGES)])), batches.images.labels[:CHECKED_IMAGES]
    loss = F.cross_entropy(model(to_float(pixels).contiguous(memory_format=layout)), labels)
    return _flat(torch.autograd.grad(loss, list(model.parameters())))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])
