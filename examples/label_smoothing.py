"""PGD-AT with label smoothing.

A small share of each label is spread over all classes equally, so that ever larger logits do not lower the loss
(Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, Rethinking the Inception Architecture for Computer Vision, CVPR 2016). The
attack raises the plain cross-entropy.

This file is an example: a complete method outside the benchmark. A suite loads it by `plugins: [label_smoothing.py]`.
"""

import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, hyperparameter


class Params(MethodParams):
    """The parameter of label smoothing."""

    smoothing: float = hyperparameter(
        0.1, unit="share of the label", provenance="paper", ge=0, lt=1, note="spread over all classes equally"
    )


class LabelSmoothing(Method[Params]):
    """Plain PGD adversarial training whose loss has soft labels."""

    info = MethodInfo(
        name="my_label_smoothing",
        title="PGD-AT + LS",
        description="PGD-AT with label smoothing in the loss",
        paper="Szegedy et al., CVPR 2016",
        year=2016,
    )
    Params = Params

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smoothed cross-entropy on the adversarial images, and the logits."""
        logits = self.model(adversarial)
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.params.smoothing), logits


METHODS = {"my_label_smoothing": LabelSmoothing}
