"""WOT: the weights become the best combination of their own past changes, on training images kept for that.

From the first rate drop on, the change of the weights in each interval is kept. After a few intervals they return to
where they were and add the changes again, each block of each change by a factor from 0 to 1 that raises robust accuracy
on images that were not trained on (Huang, Liu, Chen, Fang, Shen, Menkovski, Yin, Pei, Pechenizkiy, Enhancing
Adversarial Training via Reweighting Optimization Trajectory, ECML 2023).

Intervals are whole epochs here: 400 steps of the released code are 1.02 epochs. The changes since the last refinement
are refined once more at the end, as the authors evaluate the last refined network.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import (
    CanonicalValue,
    Method,
    MethodInfo,
    MethodParams,
    cross_entropy,
    hyperparameter,
    recompute_statistics,
    running_statistics_kept,
    train_mode,
)


class Params(MethodParams):
    """What is combined, and how the factors are fitted."""

    blocks: Literal["stages", "whole"] = hyperparameter(
        "stages", unit="-", provenance="code", note="stages (WOT-B): a factor for each stage; whole (WOT-W): one"
    )
    interval: float = hyperparameter(
        0.005, unit="share of training", least_epochs=1, provenance="code", gt=0, le=1,
        note="of one change, an epoch at least: 1 of 200",
    )  # fmt: skip
    changes: int = hyperparameter(4, unit="intervals", provenance="code", ge=1, note="combined in a refinement")
    images: int = hyperparameter(
        1_000, unit="images", provenance="code", ge=1, note="training images kept to fit the factors",
        by_dataset={"digits": CanonicalValue(100, "declared")},
    )  # fmt: skip
    passes: int = hyperparameter(10, unit="passes", provenance="code", ge=1, note="over these images")
    rate: float = hyperparameter(0.1, unit="learning rate", provenance="code", gt=0, note="of the factors")
    momentum: float = hyperparameter(
        0.9, unit="1", provenance="code", ge=0, lt=1, note="of the factors, renewed in each pass"
    )
    batch_statistics: float = hyperparameter(
        0.75, unit="share of training", least_epochs=0, provenance="code", ge=0, le=1,
        note="first epoch that fits the factors in train mode: 150 of 200; before, eval mode",
    )  # fmt: skip

    @property
    def held_out(self) -> int:
        return self.images


class WOT(Method[Params]):
    """PGD-AT whose recent changes of the weights are weighed on held-out training images."""

    info = MethodInfo(
        name="wot",
        title="WOT",
        description="PGD-AT that refits its past weight changes on images of its own",
        paper="Huang et al., ECML 2023",
        year=2023,
    )
    Params = Params

    def begin_training(self) -> None:
        self.origin: list[Tensor] = self.weights()
        self.last, self.kept = self.origin, list[list[Tensor]]()
        names = [name.removeprefix("body.").partition(".")[0] for name, _ in self.model.named_parameters()]
        if self.params.blocks == "whole":
            names = ["all"] * len(names)
        blocks = [name if name.startswith(("layer", "block", "conv1")) else "rest" for name in names]
        self.block_of = [sorted(set(blocks)).index(block) for block in blocks]

    def weights(self) -> list[Tensor]:
        """Return a copy of the parameters."""
        return [weight.detach().clone() for weight in self.model.parameters()]

    def end_epoch(self, epoch: int) -> None:
        """Keep the change of an interval; refine after the last of a group and at the end of training."""
        epochs, first = self.lr_schedule.epochs, self.lr_schedule.first_drop
        if epoch < first:
            self.origin = self.last = self.weights()
            return
        ends = epoch + 1 == epochs
        if (epoch + 1 - first) % self.whole_epochs("interval") == 0 or ends:
            now = self.weights()
            self.kept.append(list(torch._foreach_sub(now, self.last)))
            self.last = now
        if len(self.kept) == self.params.changes or ends:
            self.refine(train=epoch >= self.whole_epochs("batch_statistics"))

    def refine(self, *, train: bool) -> None:
        """Fit the factors, from 0; their combination becomes the network, with fresh statistics and momentum."""
        params, weights = self.params, list(self.model.parameters())
        factors = torch.zeros(len(self.kept), max(self.block_of) + 1, device=self.context.device)
        for _ in range(params.passes):
            speed = torch.zeros_like(factors)
            for batch in self.context.held_out():
                self.combine(factors)
                mode: Literal["train", "eval"] = "train" if train else "eval"
                with self.autocast(), train_mode(self.model, enabled=train), running_statistics_kept(self.model):
                    adversarial = self.attack(batch, cross_entropy(batch.labels), batch_norm=mode)
                    value = F.cross_entropy(self.model(adversarial), batch.labels)
                gradients = torch.autograd.grad(value, weights)
                slope = torch.zeros_like(factors)
                for row, change in zip(slope, self.kept, strict=True):
                    for block, g, d in zip(self.block_of, gradients, change, strict=True):
                        row[block] += (g * d).sum()
                speed.mul_(params.momentum).add_(slope)
                factors.sub_(speed, alpha=params.rate).clamp_(0, 1)
        self.combine(factors)
        with self.autocast():
            recompute_statistics(self.model, (batch.images for batch in self.context.batches))
        self.optimizer.state.clear()
        self.origin = self.last = self.weights()
        self.kept.clear()

    @torch.no_grad()
    def combine(self, factors: Tensor) -> None:
        """Set the weights to origin + the sum over changes of factor[change, block] · change."""
        for place, (weight, origin) in enumerate(zip(self.model.parameters(), self.origin, strict=True)):
            parts = (row[self.block_of[place]] * change[place] for row, change in zip(factors, self.kept, strict=True))
            weight.copy_(sum(parts, origin))

    def state_dict(self) -> dict[str, Any]:
        lists = {"origin": self.origin, "last": self.last, **{f"change{i}": c for i, c in enumerate(self.kept)}}
        return {name: dict(enumerate(tensors)) for name, tensors in lists.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        origin, last, *kept = (
            [tensor.to(self.context.device) for tensor in tensors.values()] for tensors in state.values()
        )
        self.origin, self.last, self.kept = origin, last, kept
