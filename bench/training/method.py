"""The Method interface: what one training recipe may change.

The trainer owns the loop. For every batch, the step (`bench.training.step`) calls, in this order,

    transform -> perturb -> backward (which calls loss) -> the optimiser -> after_step

and the trainer calls `begin_epoch` and `end_epoch` around them. A subclass overrides some hooks and inherits the rest,
which is plain PGD adversarial training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.pgd import (
    Objective,
    ascend,
    cross_entropy,
    pgd,
    project,
    random_perturbation,
    random_start,
    train_mode,
)
from bench.config.attacks import Threat
from bench.config.hyperparameters import MethodInfo, MethodParams
from bench.config.optimization import Piecewise
from bench.config.protocol import Protocol
from bench.data.batches import Batch, TrainingBatches
from bench.training.lr_schedule import Schedule, protocol_schedule
from bench.utils.distributed import ProcessGroup
from bench.utils.rng import RngStreams

ParamsT = TypeVar("ParamsT", bound=MethodParams)

EpochRecord = Mapping[str, Any]
"""One line of `epochs.jsonl`.

`epoch` (from 0), `lr`, `train` (`loss`, and `robust` under the training attack), `validation` and `test` (`clean`, and
`robust` under the tracking attack, or None if not measured), `train_pflop`, and `train_seconds` and `seconds` of the
epoch without and with tracking. Accuracies are shares in [0, 1]."""


@dataclass(frozen=True)
class Context:
    """The run that a method is part of.

    `classes`: of the dataset; `batches`: the training images, of which `batches.images` has all; `device`: of the
    network and the batches. `random(purpose)` is the run's generator for a purpose, on the run's device, seeded again
    every epoch. A method draws from purposes that begin with its own name, never from torch's global state.
    """

    protocol: Protocol
    classes: int
    batches: TrainingBatches
    random: RngStreams
    device: torch.device
    teachers: Mapping[str, nn.Module]
    """The networks of the cells that the method's parameters name, in eval mode and frozen, by parameter."""

    @property
    def group(self) -> ProcessGroup:
        """The processes that share the batches; see `Method.data_parallel`."""
        return self.batches.group

    def held_out(self) -> Iterator[Batch]:
        """Yield batches of the images that `MethodParams.held_out` excludes from training, not augmented.

        The images that select checkpoints are never among them.
        """
        return self.batches.held_out()


class Method(Generic[ParamsT]):
    """Plain PGD adversarial training, and the hooks by which a method changes it.

    A subclass defines `info` and `Params`. The trainer sets `model` (what `build` returned), `optimizer` and the
    effective `lr_schedule` (what `schedule` returned) before it calls `begin_training`.
    """

    info: ClassVar[MethodInfo]
    Params: ClassVar[type[MethodParams]] = MethodParams

    captured: bool = True
    """Whether `transform`, `perturb`, `loss` and `backward` may be captured as a CUDA graph, once per epoch.

    Set it to False if Python code in `perturb`, `loss` or `backward` decides or counts from step to step. Read at the
    start of every epoch, after `begin_epoch`."""

    captured_transform: bool = True
    """Whether `transform` may be a part of that graph. If False, it runs eagerly before every replay."""

    compiled: bool = True
    """Whether `model` may be compiled (`bench run --compile`). Set it to False if a gradient of a gradient passes
    through it, which torch does not compile."""

    data_parallel: ClassVar[bool] = False
    """Whether one cell may train on several devices, each with a shard of every batch. Not inherited.

    Requirement: the gradient of a batch is the mean of those of its shards, and what the method draws, decides or
    stores does not depend on the shard. Draws and stored values per image go through `context.group`."""

    accepts_soft_labels: ClassVar[bool] = False
    """Whether batches may have soft labels: `perturb` and `loss` read `batch.targets`. Not inherited."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_schedule: Schedule

    def __init__(self, params: ParamsT, context: Context) -> None:
        self.params, self.context = params, context

    @property
    def training_steps(self) -> int:
        """The number of steps from the first to the last epoch; 0 without training images."""
        return self.lr_schedule.epochs * len(self.context.batches)

    # --- before training ---------------------------------------------------------------------------------------------

    def build(self, network: nn.Module) -> nn.Module:
        """Return the network to train, given the protocol's freshly initialised one."""
        return network

    def initialise(self, network: nn.Module) -> None:
        """Set the initial weights of what `build` returned, unless they are the freshly drawn ones.

        Not called if trained weights are loaded next: on resuming and for the evaluation.
        """

    def no_weight_decay(self) -> Iterable[nn.Parameter]:
        """Return the parameters of `model` that the optimiser's weight decay leaves out."""
        return ()

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        """Return the learning-rate schedule; its `epochs` is the length of training."""
        return protocol_schedule

    def begin_training(self) -> None:
        """Called once, with the model on the device and before any state is loaded; copy the model here."""

    # --- every epoch -------------------------------------------------------------------------------------------------

    def select(self, epoch: int) -> tuple[Tensor, Tensor | None] | None:
        """Select the images of an epoch; called before `begin_epoch`, with the network in train or eval mode.

        Returns:
            None for all images; or their positions in `context.batches.images` (int64, [k], less than
            `context.batches.own`, so without extra images) and their weights in the loss (float, [k], not negative, or
            None for equal weights). Both are on the device, and the same in all processes.
        """
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of `epoch` (from 0)."""

    def end_epoch(self, epoch: int) -> None:
        """Called after the last batch of `epoch`, before the accuracies are measured."""

    def should_stop(self, history: Sequence[EpochRecord]) -> bool:
        """Return whether to end training; called after a tracked epoch, with those so far."""
        return False

    # --- every batch -------------------------------------------------------------------------------------------------

    def transform(self, batch: Batch) -> Batch:
        """Return the batch to train on, of the same shapes; called in train mode, before the attack."""
        return batch

    def perturb(self, batch: Batch) -> Tensor:
        """Return adversarial images, [n, channels, height, width], in [0, 1]; called with frozen parameters."""
        return self.attack(batch, cross_entropy(batch.targets))

    def attack(
        self,
        batch: Batch,
        objective: Objective,
        *,
        start: Tensor | None = None,
        batch_norm: Literal["train", "eval"] | None = None,
        radius: float = 1.0,
        steps: int | None = None,
        step_size: float | None = None,
    ) -> Tensor:
        """Run the protocol's training attack on `objective`; return the images unchanged if there is no attack.

        Arguments that are None take the protocol's value; a method whose definition includes one states it.

        Args:
            batch: its images are attacked.
            objective: the scalar to maximise, as a function of the logits: a sum over the batch.
            start: first iterate, [n, channels, height, width], inside the ball.
            batch_norm: mode of the network during the attack.
            radius: of the ball, as a multiple of eps, at most the `training_radius` of the parameters.
            steps: number of gradient steps.
            step_size: length of a step in units of the pixel range [0, 1]; see `bench.pgd`.
        """
        settings, threat = self.context.protocol.training.attack, self.ball(radius)
        if settings.name == "none":
            return batch.images
        if start is None and settings.random_start:
            start = self.random_start(batch.images, radius)
        with train_mode(self.model, enabled=(batch_norm or settings.batch_norm) == "train"):
            return pgd(
                self.model, batch.images, objective,
                threat=threat, steps=steps or settings.steps, step_size=step_size or settings.step_size, start=start,
            )  # fmt: skip

    def ball(self, radius: float = 1.0) -> Threat:
        """Return the protocol's threat with `radius` times its eps."""
        threat = self.context.protocol.threat
        return threat.model_copy(update={"eps": radius * threat.eps})

    def random_start(self, images: Tensor, radius: float = 1.0) -> Tensor:
        """Return `images` plus a `random_perturbation` in the ball of `radius` times eps, clipped to [0, 1]."""
        return random_start(images, self.ball(radius), self.context.random("attack"), self.context.group)

    def random_perturbation(self, images: Tensor) -> Tensor:
        """Return a random point of the ball for each of `images`, of their shape; see `bench.attacks.pgd`.

        Linf: uniform in the cube. L2: a uniform direction with a uniform radius. The sum with the image may leave
        [0, 1].
        """
        return random_perturbation(images, self.ball(), self.context.random("attack"), self.context.group)

    def ascend(self, images: Tensor, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Return `adversarial` after a step along `gradient`, projected onto the ball around `images` and [0, 1].

        Linf: along the sign of the gradient, `step_size` per pixel. L2: along the gradient, `step_size` in L2 norm.
        All tensors are [n, channels, height, width].
        """
        return ascend(images, adversarial, gradient, self.ball(), step_size)

    def gaussian_start(self, images: Tensor, deviation: float) -> Tensor:
        """Return `images` plus Gaussian noise, projected onto the ball and clipped to [0, 1].

        The start of TRADES (Zhang et al., ICML 2019, released code) and related methods. `deviation`: standard
        deviation in units of the pixel range [0, 1].
        """
        random = self.context.random("attack")
        noise = self.context.group.draw_like(images, lambda noise: noise.normal_(std=deviation, generator=random))
        return (images + project(noise, self.context.protocol.threat)).clamp_(0, 1)

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a mean over the batch, and the logits on the adversarial images, [n, classes]."""
        logits = self.model(adversarial)
        if batch.weights is None:
            return F.cross_entropy(logits, batch.targets), logits
        return (batch.weights * F.cross_entropy(logits, batch.targets, reduction="none")).mean(), logits

    def backward(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Compute gradients into `parameter.grad`, and return what `loss` returned.

        Override it to wrap the computation, as an attack on the weights does. With several devices, the gradients are
        those of this process's shard; the step then averages them.
        """
        with self.autocast():
            loss, logits = self.loss(batch, adversarial)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, logits

    def after_step(self) -> None:
        """Called after each step of the optimiser; average weights here."""

    # --- afterwards --------------------------------------------------------------------------------------------------

    def evaluated_model(self) -> nn.Module:
        """Return the network to evaluate and save: the trained one, or an average of it."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs beyond the model and the optimiser: nested dicts of tensors and scalars."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def whole_epochs(self, name: str) -> int:
        """Return the share of training that the parameter `name` states, in whole epochs."""
        return self.params.whole_epochs(name, self.lr_schedule.epochs)

    def piecewise_schedule(self, milestones: Sequence[float], factor: float) -> Schedule:
        """Return the protocol's rate and length, the rate multiplied by `factor` at each milestone, shares of training.

        For a method whose definition includes the time or size of its rate drops. The protocol's warm-up stays.
        """
        training = self.context.protocol.training
        warmup = getattr(training.schedule, "warmup", None)
        drops = Piecewise(milestones=tuple(milestones), factor=factor, warmup=warmup)
        return protocol_schedule(training.model_copy(update={"schedule": drops}))

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes have the protocol's precision."""
        enabled = self.context.protocol.training.precision == "bf16"
        # No cache: it would keep casts of weights that an attack on the weights has changed.
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
