"""Training on a coreset: a weighted part of the training images, chosen anew from time to time.

Images are chosen, a batch at a time, so that the gradients of the last layer on adversarial images sum to about those
of all images: by facility location (CRAIG) or by orthogonal matching pursuit (GradMatch). After a first phase on all
images this halves the work (Dolatabadi, Erfani, Leckie, l-infinity-Robustness and Beyond: Unleashing Efficient
Adversarial Training, ECCV 2022). Epochs in which the released code does nothing are left out; the learning rate goes on
where it would be after them.

The gradients are those of the logits for CRAIG, and of the last linear layer for GradMatch, as in the released code.

Differs from it: the order of the chosen images is random. There, a training batch is one of the chosen batches, so that
its images have one weight, which cancels; here the weights count.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import (
    Batch,
    Method,
    MethodParams,
    Schedule,
    cross_entropy,
    hyperparameter,
    running_statistics_kept,
    to_float,
    train_mode,
)

PAPER = "Dolatabadi, Erfani, Leckie, ECCV 2022"


class Params(MethodParams):
    """The share of the images, and when they are chosen."""

    share: float = hyperparameter(0.5, unit="share of images", provenance="code", gt=0, le=1, note="that are chosen")
    warm_up: float = hyperparameter(
        0.5, unit="share of training", least_epochs=0, provenance="code", ge=0, lt=1,
        note="budget of the first phase: all images, in `share` of its epochs; 60 of 120",
    )  # fmt: skip
    renewal: float = hyperparameter(
        1 / 6, unit="share of training", least_epochs=1, provenance="code", gt=0, le=1,
        note="time between two choices: 20 of 120 epochs",
    )  # fmt: skip


class Coreset(Method[Params]):
    """PGD-AT on all images, then on chosen ones; subclasses choose."""

    Params: ClassVar[type[MethodParams]] = Params
    features: ClassVar[bool]
    """Whether the gradients are those of the last layer's weights, or those of the logits."""

    def choose(self, gradients: Tensor, count: int) -> Tensor:
        """Return a weight for each of the batches, zero for those left out; `gradients`: float64, [batches, d]."""
        raise NotImplementedError

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        """Leave out the epochs without training between both phases."""
        whole = protocol_schedule.epochs
        end = self.params.whole_epochs("warm_up", whole)
        self.warm = min(end, max(1, round(end * self.params.share)))
        idle = end - self.warm

        def rate(t: float) -> float:
            return protocol_schedule.rate(t if t <= self.warm else t + idle)

        drop = protocol_schedule.first_drop
        first_drop = drop if drop < self.warm else max(self.warm, drop - idle)
        self.period = self.params.whole_epochs("renewal", whole)
        return Schedule(whole - idle, rate, first_drop)

    def begin_training(self) -> None:
        self.chosen: tuple[Tensor, Tensor] | None = None

    def select(self, epoch: int) -> tuple[Tensor, Tensor | None] | None:
        if epoch < self.warm:
            return None
        if (epoch - self.warm) % self.period == 0 or self.chosen is None:
            size, images = self.context.protocol.training.batch_size, self.context.batches.images
            whole = self.context.batches.own // size
            index = torch.arange(whole * size, device=images.labels.device).view(whole, size)
            gradients = torch.stack(list(self.gradients(list(index)))).double().cpu()
            weights = self.choose(gradients, max(1, math.ceil(self.params.share * whole))).to(index.device)
            kept = weights.nonzero()[:, 0]
            self.chosen = index[kept].flatten(), weights[kept].float().repeat_interleave(size)
        return self.chosen

    def gradients(self, index: list[Tensor]) -> Any:
        """Yield each batch's mean gradient on adversarial images, in train mode: [d]."""
        images, inputs = self.context.batches.images, list[Tensor]()
        last = [module for module in self.model.modules() if isinstance(module, nn.Linear)][-1]
        handle = last.register_forward_hook(lambda _module, given, _result: inputs.append(given[0]))
        with self.autocast(), train_mode(self.model, enabled=True), running_statistics_kept(self.model):
            for places, pixels in zip(index, images.read(index), strict=True):
                batch = Batch(to_float(pixels), images.labels[places], places)
                adversarial = self.attack(batch, cross_entropy(batch.labels))
                inputs.clear()
                with torch.no_grad():
                    labels = F.one_hot(batch.labels, self.context.classes)
                    difference = self.model(adversarial).float().softmax(1) - labels
                    of_weights = torch.einsum("nk,nf->kf", difference, inputs[0].float().flatten(1)) / len(batch)
                    of_logits = difference.mean(0)
                yield torch.cat((of_weights.flatten(), of_logits)) if self.features else of_logits
        handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.chosen is None else dict(zip(("index", "weights"), self.chosen, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            device = self.context.batches.images.labels.device
            self.chosen = state["index"].to(device), state["weights"].to(device)
