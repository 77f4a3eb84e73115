"""CutMix with weight averaging: TRADES on mixed images and labels, evaluated at the moving average of the weights.

CutMix alone gives little robustness, and so does averaging; together they raise it and keep it from falling (Rebuffi,
Gowal, Calian, Stimberg, Wiles, Mann, Data Augmentation Can Improve Robustness, NeurIPS 2021). The attack raises the
divergence from the mixed labels. Running batch statistics are those of the adversarial pass alone.

Differs from the released code: every image has a rectangle and a share of its own, where those of a batch are the same
there; the attack takes the protocol's sign steps, as in the PyTorch version of Rade (2021), where there it is Adam;
batch size, Nesterov momentum, warm-up and cosine are the protocol's, and so is the length.
"""

from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from bench import Batch, MethodInfo, Mix, cross_entropy, hyperparameter, mix, running_statistics_kept
from methods.averaging import EMA, EMAParams


class Params(EMAParams):
    """The mix, the trade-off and the average."""

    alpha: float = hyperparameter(
        1.0, unit="1", provenance="code", gt=0, note="of the Beta distribution of the share that an image keeps"
    )
    beta: float = hyperparameter(6.0, unit="1", provenance="code", ge=0, note="weight of the divergence")
    memory: float | None = hyperparameter(
        200 / 19_200, unit="share of training", provenance="code", gt=0, le=1,
        note="decay 0.995 in 400 epochs of 48 steps: decay = 1 - 1/(memory steps)",
    )  # fmt: skip
    recipe: Literal["rebat", "deepmind"] = hyperparameter(
        "deepmind", unit="-", provenance="code",
        note="deepmind: step t (from 0) keeps min((1 + t) / (10 + t), decay), batch statistics copied",
    )  # fmt: skip


class CutMixEMA(EMA):
    """TRADES with CutMix, evaluated at the EMA."""

    info = MethodInfo(
        name="cutmix_ema",
        title="CutMix + EMA",
        description="TRADES on mixed images, evaluated at the moving average",
        paper="Rebuffi et al., NeurIPS 2021",
        year=2021,
    )
    Params = Params
    data_parallel = True
    params: Any

    def transform(self, batch: Batch) -> Batch:
        """Replace a rectangle of every image by that of another one, and its label by both in proportion."""
        cutmix, random = Mix(name="cutmix", alpha=self.params.alpha), self.context.random("cutmix_ema")
        images, labels, soft = mix(cutmix, batch.images, batch.labels, self.context.classes, random, self.context.group)
        return replace(batch, images=images, labels=labels, soft_labels=soft)

    def perturb(self, batch: Batch) -> Tensor:
        """Raise the cross-entropy with the mixed labels: their divergence, up to a constant."""
        with running_statistics_kept(self.model):
            return self.attack(batch, cross_entropy(batch.targets))

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return CE(clean, mixed labels) + beta KL(clean ‖ adversarial)."""
        with running_statistics_kept(self.model):
            clean = self.model(batch.images).float().log_softmax(1)
        logits = self.model(adversarial)
        divergence = F.kl_div(logits.float().log_softmax(1), clean, reduction="batchmean", log_target=True)
        return -(batch.targets * clean).sum(1).mean() + self.params.beta * divergence, logits
