"""MLCAT with loss scaling: no image may have too small an adversarial loss.

Images whose adversarial cross-entropy lies below a threshold are those that a network overfits (Yu, Han, Shen, Yu,
Gong, Gong, Liu, Understanding Robust Overfitting of Adversarial Training and Beyond, ICML 2022). Their loss is scaled
up to the threshold. `methods.rwp` holds the variant with weight perturbation.

In the released code the scale is differentiated too. The scaled loss is then a constant: such images have no gradient,
as if they were left out. The formula, with a constant scale, is the parameter `detached`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, CanonicalValue, Method, MethodInfo, MethodParams, hyperparameter


class Params(MethodParams):
    """What is scaled, and how."""

    threshold: float = hyperparameter(
        1.5, unit="nats", provenance="declared", gt=0, note="adversarial loss below which an image is scaled",
        by_dataset={"cifar10": CanonicalValue(1.5, "code")},
    )  # fmt: skip
    detached: bool = hyperparameter(
        False, unit="-", provenance="code", note="whether the scale is a constant, as the formula reads"
    )


class MLCATLossScaling(Method[Params]):
    """PGD-AT with small losses scaled to a threshold."""

    info = MethodInfo(
        name="mlcat_ls",
        title="MLCAT-LS",
        description="PGD-AT with small adversarial losses scaled to a threshold",
        paper="Yu et al., ICML 2022",
        year=2022,
    )
    Params = Params
    data_parallel = True

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over the batch of the loss, times threshold / loss where the loss is below it."""
        logits, threshold = self.model(adversarial), self.params.threshold
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        scale = threshold / losses.clamp(min=1e-12)
        if self.params.detached:
            scale = scale.detach()
        # Not where a sure answer rounds the loss to zero: its gradient is not zero, and the scale would be 1e12.
        scaled = (losses > 0) & (losses < threshold)
        return torch.where(scaled, losses * scale, losses).mean(), logits
