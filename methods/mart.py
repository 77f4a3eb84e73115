"""MART: adversarial training that looks harder at images which are misclassified even when clean.

The adversarial cross-entropy is boosted by a margin on the most likely wrong class, and the divergence between clean
and adversarial outputs is weighted by how little the network believes in the true class of the clean image (Wang, Zou,
Yi, Bailey, Ma, Gu, Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020). Steps and
step size are the protocol's; the released ResNet-18 recipe (rate 0.01, weight decay 3.5e-3, 120 epochs) is not part of
it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, cross_entropy, hyperparameter


class Params(MethodParams):
    """The trade-off."""

    beta: float = hyperparameter(5.0, unit="1", provenance="code", ge=0, note="weight of the divergence")
    start: float = hyperparameter(
        0.001, unit="pixel range", provenance="code", ge=0, note="standard deviation of the start"
    )


class MART(Method[Params]):
    """Cross-entropy attack in eval mode, boosted cross-entropy and weighted divergence."""

    info = MethodInfo(
        name="mart",
        title="MART",
        description="Boosted cross-entropy, divergence weighted by misclassification",
        paper="Wang et al., ICLR 2020",
        year=2020,
    )
    Params = Params
    data_parallel = True

    def perturb(self, batch: Batch) -> Tensor:
        start = self.gaussian_start(batch.images, self.params.start)
        return self.attack(batch, cross_entropy(batch.labels), start=start, batch_norm="eval")

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """CE(adv) - log(1.0001 - max wrong p(adv)) + beta KL(clean ‖ adv) (1.0000001 - p_true(clean))."""
        clean, logits = self.model(batch.images).float(), self.model(adversarial)
        return mart_loss(clean, logits.float(), batch.labels, self.params.beta), logits


def mart_loss(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Return the mean loss of a batch from both logits, [n, classes]; constants as in the released code."""
    log_clean, p_adversarial = clean.log_softmax(1), adversarial.softmax(1)
    p_clean = log_clean.exp()
    wrong = p_adversarial.scatter(1, labels[:, None], -1.0).amax(1)
    boosted = F.cross_entropy(adversarial, labels) - torch.log(1.0001 - wrong + 1e-12).mean()
    # Not F.kl_div: its gradient is NaN where a probability of the clean image underflows to zero.
    divergence = (p_clean * (log_clean - torch.log(p_adversarial + 1e-12))).sum(1)
    doubt = 1.0000001 - p_clean.gather(1, labels[:, None]).squeeze(1)
    return boosted + beta * (divergence * doubt).mean()
