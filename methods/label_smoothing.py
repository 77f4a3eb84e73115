"""Label smoothing: PGD-AT whose loss asks for less than certainty.

Each label gives a share of its weight to all classes equally, so that larger and larger logits gain nothing (Szegedy,
Vanhoucke, Ioffe, Shlens, Wojna, Rethinking the Inception Architecture for Computer Vision, CVPR 2016; as a cure of
robust overfitting: Chen et al., ICLR 2021). The attack raises the plain cross-entropy.
"""

import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, hyperparameter


class Params(MethodParams):
    """The smoothing."""

    smoothing: float = hyperparameter(
        0.1, unit="share of the label", provenance="paper", ge=0, lt=1,
        note="spread over all K classes: s/K each; single-step code uses up to 0.4",
    )  # fmt: skip


class LabelSmoothing(Method[Params]):
    """PGD-AT with soft labels in the loss."""

    info = MethodInfo(
        name="label_smoothing",
        title="Label smoothing",
        description="PGD-AT with label smoothing in the loss",
        paper="Szegedy et al., CVPR 2016",
        year=2016,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(adversarial)
        return F.cross_entropy(logits, batch.targets, label_smoothing=self.params.smoothing), logits
