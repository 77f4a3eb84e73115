"""FOMO: forget some weights on purpose, relearn with the guidance of a stable model, keep what is general.

From the first rate drop on, a random share of the later layers' weights is re-initialised every few epochs
(forgetting); the following epochs train on adversarial images while the outputs of a stable model guide those of the
working one (relearning); the stable model, a moving average of the working one's weights (consolidation), is evaluated
(Ramkumar, Arani, Zonooz, ICLR 2024).

Uncertain: when and how often to forget, and the share; the paper's text could not be read in full. Layers, fresh
values, averaging and consistency are those of the laboratory's code for related methods, where the stable model has
batch statistics of its own in train mode; here it copies those of the working model.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import AverageParams, Batch, Method, MethodInfo, frozen_copy, hyperparameter, move_towards


class Params(AverageParams):
    """The phases of FOMO."""

    memory: float | None = hyperparameter(
        5_000 / 76_400, unit="share of training", provenance="secondary", gt=0, le=1,
        note="decay 0.999 in 76,400 steps: decay = 1 - 1/(memory steps consolidation); "
        "step t (from 1) keeps min(1 - 1/(t+1), decay)",
    )  # fmt: skip
    fraction: float = hyperparameter(
        0.035, unit="share of weights", provenance="declared", gt=0, lt=1,
        note="re-initialised at each forgetting; 3.5 % and 5 % are both quoted",
    )  # fmt: skip
    later_parts: int = hyperparameter(
        3, unit="parts", provenance="secondary", ge=1,
        note="last parts of the network that forget: two stages and the classifier",
    )  # fmt: skip
    relearning: float = hyperparameter(
        0.025, unit="share of training", least_epochs=1, provenance="declared", gt=0, le=1,
        note="time between forgettings: 5 of 200 epochs, one epoch at least",
    )  # fmt: skip
    consolidation: float = hyperparameter(
        0.2, unit="probability", provenance="secondary", gt=0, le=1, note="of averaging after a step"
    )
    clean_consistency: float = hyperparameter(
        1.0, unit="1", provenance="secondary", ge=0, note="weight of KL(stable, working), clean"
    )
    robust_consistency: float = hyperparameter(
        1.0, unit="1", provenance="secondary", ge=0, note="the same on adversarial images"
    )
    evaluate: Literal["stable", "working"] = hyperparameter(
        "stable", unit="-", provenance="declared", note="model that is reported"
    )

    def averagings(self, steps: int) -> float:
        return steps * self.consolidation


class FOMO(Method[Params]):
    """Forgetting, relearning and consolidation around plain adversarial training."""

    info = MethodInfo(
        name="fomo",
        title="FOMO",
        description="Forgets part of the later layers, relearns under a stable model's guidance",
        paper="Ramkumar, Arani, Zonooz, ICLR 2024",
        year=2024,
        version=2,
    )
    Params = Params
    data_parallel = True

    def begin_training(self) -> None:
        self.stable, self.steps, self.epoch = frozen_copy(self.model), 0, 0
        self.decay = self.params.decay_in(self.training_steps)

    @property
    def relearning(self) -> bool:
        """Whether a forgetting has taken place: from then on the stable model guides the working one."""
        return self.epoch >= self.lr_schedule.first_drop

    def begin_epoch(self, epoch: int) -> None:
        """Forget at the first rate drop, and then whenever the time for relearning is over."""
        self.epoch = epoch
        if self.relearning and (epoch - self.lr_schedule.first_drop) % self.whole_epochs("relearning") == 0:
            forget(self.model, self.params, self.context.random.seed("fomo/forgetting"))

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy on adversarial images; while relearning, plus the divergence from the stable model."""
        loss, logits = super().loss(batch, adversarial)
        if self.relearning:
            clean, robust = self.params.clean_consistency, self.params.robust_consistency
            for images, own, weight in ((batch.images, None, clean), (adversarial, logits, robust)):
                if weight:
                    with torch.no_grad():
                        guide = F.log_softmax(self.stable(images), 1)
                    output = F.log_softmax(self.model(images) if own is None else own, 1)
                    loss = loss + weight * F.kl_div(output, guide, reduction="batchmean", log_target=True)
        return loss, logits

    def after_step(self) -> None:
        """Consolidate: average with the stated probability, batch statistics copied."""
        self.steps += 1
        draw = torch.rand((), generator=self.context.random.cpu("fomo/consolidation")).item()
        if draw < self.params.consolidation:
            decay = min(1 - 1 / (self.steps + 1), self.decay)
            move_towards(self.stable, self.model, 1 - decay, buffers="copy")

    def evaluated_model(self) -> nn.Module:
        return self.stable if self.params.evaluate == "stable" else self.model

    def state_dict(self) -> dict[str, Any]:
        return {"stable": self.stable.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stable.load_state_dict(state["stable"])
        self.steps = state["steps"]


def later_layers(model: nn.Module, parts: int) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers of the last `parts` parts of the network, by name.

    A part is a direct child of the architecture that holds such layers: a stage of a residual network, its classifier.
    """
    body = getattr(model, "body", model)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    layers_of = [
        [(f"{name}.{inner}".rstrip("."), layer) for inner, layer in child.named_modules() if isinstance(layer, kinds)]
        for name, child in body.named_children()
    ]
    return [layer for part in [part for part in layers_of if part][-parts:] for layer in part]


@torch.no_grad()
def forget(model: nn.Module, params: Params, seed: int) -> None:
    """Give `params.fraction` of each later weight tensor, at random places, fresh values from its layer's default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, layer in later_layers(model, params.later_parts):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            drawn = copy.deepcopy(layer).cpu()
            drawn.reset_parameters()  # type: ignore[operator]
            fresh: Tensor = drawn.weight  # type: ignore[assignment]
            chosen = torch.randperm(weight.numel()).view(weight.shape) < round(params.fraction * weight.numel())
            weight.copy_(torch.where(chosen.to(weight.device), fresh.to(weight.device), weight))
