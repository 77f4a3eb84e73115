"""DOM: keep a network from fitting ever harder what it fits too well already.

A sample whose natural loss lies below a fixed threshold is over-memorised. From the first rate drop on, DOM either
removes such samples from the loss (`dom_re`, here) or augments them until they are hard enough (`methods.dom_augment`).
One rule serves natural, single-step and multi-step training (Lin, Yu, Han, Liu, On the Over-Memorization During
Natural, Robust and Catastrophic Overfitting, ICLR 2024).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from bench import Batch, CanonicalValue, Method, MethodInfo, MethodParams, hyperparameter

PAPER = "Lin, Yu, Han, Liu, ICLR 2024"


def by_setting(cifar10: Sequence[Any], cifar100: Sequence[Any], svhn: Sequence[Any]) -> dict[str, CanonicalValue]:
    """Return the published values, each (natural, multi-step, single-step).

    The released code holds those of CIFAR-10 alone; those of CIFAR-100 and SVHN are the paper's. Tiny ImageNet takes
    CIFAR-100's, since a loss grows with the number of classes; other data take CIFAR-10's.
    """
    settings = ("natural", "multi_step", "single_step")
    known = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn}
    published = {
        f"{dataset}/{setting}": CanonicalValue(value, "code" if dataset == "cifar10" else "paper")
        for dataset, values in known.items()
        for setting, value in zip(settings, values, strict=True)
    }
    tiny = {
        f"tiny_imagenet/{setting}": CanonicalValue(value, "declared")
        for setting, value in zip(settings, cifar100, strict=True)
    }
    others = {
        "*/natural": CanonicalValue(cifar10[0], "declared"),
        "*/single_step": CanonicalValue(cifar10[2], "declared"),
    }
    return {**published, **tiny, **others}


class Params(MethodParams):
    """What counts as over-memorised."""

    threshold: float = hyperparameter(
        1.5, unit="nats", provenance="declared", ge=0, note="natural loss below which a sample is over-memorised",
        by_dataset=by_setting((0.2, 1.5, 2.0), (0.45, 4.0, 4.6), (0.02, 0.75, 1.0)),
    )  # fmt: skip


class DOM(Method[Any]):
    """The rule that both variants share: the natural loss of each sample, on clean images, before the attack."""

    Params: ClassVar[type[MethodParams]] = Params

    def begin_epoch(self, epoch: int) -> None:
        self.active = epoch >= self.lr_schedule.first_drop

    def natural_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each clean image with the current weights, in train mode: [n]."""
        return F.cross_entropy(self.model(images).float(), labels, reduction="none")


class DOMRemove(DOM):
    """Leaves over-memorised samples out of the loss; the mean is still over the full batch."""

    info = MethodInfo("dom_re", "DOM-RE", "Drops samples with too small a natural loss", PAPER, 2024)
    data_parallel = True

    def transform(self, batch: Batch) -> Batch:
        if self.active:
            self.mask = self.natural_loss(batch.images, batch.labels) >= self.params.threshold
        return batch

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over the batch of 1[natural loss >= threshold] times the adversarial cross-entropy."""
        if not self.active:
            return super().loss(batch, adversarial)
        logits = self.model(adversarial)
        return (F.cross_entropy(logits, batch.labels, reduction="none") * self.mask).mean(), logits
