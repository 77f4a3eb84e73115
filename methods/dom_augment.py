"""DOM by augmentation: over-memorised samples are augmented until the network finds them hard enough again.

The rule of `methods.dom` selects the samples. Each is augmented up to a few times: a try that brings its natural loss
to the threshold is taken, one that does not is blended into the image, and the last try is taken as it is. The attack
then runs on the result (Lin, Yu, Han, Liu, On the Over-Memorization During Natural, Robust and Catastrophic
Overfitting, ICLR 2024).

Differs from the released code in one point: there, a try is judged in a batch of the selected samples alone; here the
others stay in that batch as they are, so that all batches have one size and no batch statistics rest on a few images.
"""

from dataclasses import replace
from typing import ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from bench import Batch, MethodInfo, hyperparameter
from methods.dom import DOM, PAPER, Params, by_setting


class DOMAugment(DOM):
    """Augments over-memorised samples until their natural loss reaches the threshold, or the tries are used up."""

    def augmented(self, images: Tensor) -> Tensor:
        """Augment a batch with torchvision's defaults; the operations are drawn once for the whole batch."""
        from torchvision.transforms import autoaugment, v2  # imported by methods that need it alone

        augment = getattr(autoaugment, self.operation)()
        random, group = self.context.random.cpu(f"{self.info.name}/augmentation"), self.context.group
        # AugMix draws for every image, so that the parts of a batch must be together.
        pixels = group.all_gather(images.mul(255).round().to(torch.uint8))
        # The older `equalize` reads from the device once for every channel of an image; v2's has the same bits.
        equalize = patch.object(autoaugment.F, "equalize", v2.functional.equalize)
        with torch.random.fork_rng(devices=[]), equalize:
            torch.manual_seed(int(torch.randint(2**62, (), generator=random)))
            changed: Tensor = group.shard(augment(pixels))
        return changed.to(images.dtype).div(255).contiguous(memory_format=torch.channels_last)

    operation: ClassVar[str]

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.captured_transform = not self.active  # torchvision draws its operations on the host

    def transform(self, batch: Batch) -> Batch:
        if not self.active:
            return batch
        images, labels, threshold = batch.images, batch.labels, self.params.threshold
        selected = self.natural_loss(images, labels) <= threshold
        for attempt in range(self.params.tries):
            tried = self.augmented(images)
            mask = selected[:, None, None, None]
            if attempt == self.params.tries - 1:
                images = torch.where(mask, tried, images)
                break
            accepted = selected & (self.natural_loss(torch.where(mask, tried, images), labels) >= threshold)
            blended = torch.lerp(images, tried, self.params.blend)
            images = torch.where(mask, torch.where(accepted[:, None, None, None], tried, blended), images)
            selected = selected & ~accepted
        return replace(batch, images=images)


BLEND = "share of a rejected try that stays in the image"
TRIES = "the last one is taken as it is"


class AugMixParams(Params):
    """How over-memorised samples are augmented."""

    blend: float = hyperparameter(
        0.5, unit="1", provenance="declared", ge=0, le=1, note=BLEND,
        by_dataset=by_setting((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )  # fmt: skip
    tries: int = hyperparameter(
        2, unit="tries", provenance="declared", ge=1, note=TRIES, by_dataset=by_setting((3, 2, 5), (2, 2, 5), (3, 4, 4))
    )


class RandAugmentParams(Params):
    """How over-memorised samples are augmented."""

    blend: float = hyperparameter(
        0.0, unit="1", provenance="declared", ge=0, le=1, note=BLEND,
        by_dataset=by_setting((0.1, 0.0, 0.1), (0.1, 0.0, 0.1), (0.5, 0.25, 0.1)),
    )  # fmt: skip
    tries: int = hyperparameter(
        2, unit="tries", provenance="declared", ge=1, note=TRIES, by_dataset=by_setting((3, 2, 3), (2, 2, 3), (3, 2, 4))
    )


class DOMAugMix(DOMAugment):
    """With AugMix (Hendrycks et al., 2020)."""

    info = MethodInfo("dom_augmix", "DOM-AugMix", "AugMix on samples with too small a natural loss", PAPER, 2024)
    Params = AugMixParams
    data_parallel = True
    operation = "AugMix"


class DOMRandAugment(DOMAugment):
    """With RandAugment (Cubuk et al., 2020)."""

    info = MethodInfo(
        "dom_randaugment", "DOM-RandAugment", "RandAugment on samples with too small a natural loss", PAPER, 2024
    )
    Params = RandAugmentParams
    data_parallel = True
    operation = "RandAugment"
