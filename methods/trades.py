"""TRADES: natural cross-entropy plus the divergence between clean and adversarial outputs.

The attack raises that same divergence, from a start close to the image, with the network in eval mode; the weight
trades clean accuracy for robustness (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, Theoretically Principled Trade-off
between Robustness and Accuracy, ICML 2019). Steps and step size are the protocol's; the released code's own recipe (eps
0.031, step 0.007, weight decay 2e-4, a stop at epoch 76) is not part of it.

Differs from the released code in one point: the start is clamped to [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, CanonicalValue, Method, MethodInfo, MethodParams, hyperparameter, train_mode


class Params(MethodParams):
    """The trade-off."""

    beta: float = hyperparameter(
        6.0, unit="1", provenance="declared", ge=0, note="weight of the divergence; 1 in the code for MNIST",
        by_dataset={"cifar10": CanonicalValue(6.0, "code")},
    )  # fmt: skip
    start: float = hyperparameter(
        0.001, unit="pixel range", provenance="code", ge=0, note="standard deviation of the start"
    )


class TRADES(Method[Params]):
    """KL attack in eval mode, KL regularisation."""

    info = MethodInfo(
        name="trades",
        title="TRADES",
        description="Clean cross-entropy plus the divergence of adversarial outputs",
        paper="Zhang et al., ICML 2019",
        year=2019,
        version=2,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def perturb(self, batch: Batch) -> Tensor:
        with torch.no_grad(), train_mode(self.model, enabled=False):
            clean = F.log_softmax(self.model(batch.images), 1)
        return self.attack(
            batch,
            lambda logits: F.kl_div(F.log_softmax(logits, 1), clean, reduction="sum", log_target=True),
            start=self.gaussian_start(batch.images, self.params.start),
            batch_norm="eval",
        )

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """CE(clean) + beta KL(clean ‖ adversarial), gradients through both.

        Three passes in train mode, as in the released code: clean images pass twice and enter the running batch
        statistics twice.
        """
        natural = F.cross_entropy(self.model(batch.images), batch.targets)
        logits, clean = self.model(adversarial), self.model(batch.images)
        divergence = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(clean, 1), reduction="batchmean", log_target=True)
        return natural + self.params.beta * divergence, logits
