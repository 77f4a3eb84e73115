"""Declared, from the abstract alone: GAAT, which replaces the attack by a Taylor series of the loss.

The adversarial loss is close to the first terms of its Taylor series around the clean image, whose largest value in the
ball is known without an attack (Gong, Reducing Adversarial Training Cost with Gradient Approximation, 2023). Here the
series ends with the first derivative: eps times the dual norm of the input gradient, which is differentiated once more.

Uncertain: the number of terms and their weights are declared here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, cross_entropy, hyperparameter


class Params(MethodParams):
    """The first-order term."""

    weight: float = hyperparameter(
        1.0, unit="1", provenance="declared", ge=0, note="of the first-order term; 1 is the Taylor series"
    )


class GAAT(Method[Params]):
    """Clean cross-entropy plus its largest first-order increase in the ball; no attack."""

    info = MethodInfo(
        name="gaat",
        title="GAAT",
        description="The first-order Taylor term of the loss in place of an attack",
        paper="Gong, 2023",
        year=2023,
    )
    Params = Params
    compiled = False  # the first-order term is a gradient of a gradient
    accepts_soft_labels = True

    def perturb(self, batch: Batch) -> Tensor:
        return batch.images

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean(CE + weight · eps · ‖gradient of CE‖), the 1-norm under Linf and the 2-norm under L2."""
        images, ball = adversarial.detach().requires_grad_(), self.ball()
        logits = self.model(images)
        value = cross_entropy(batch.targets)(logits)
        (gradient,) = torch.autograd.grad(value, images, create_graph=True)
        increase = ball.eps * gradient.flatten(1).norm(p=1 if ball.norm == "linf" else 2, dim=1)
        return F.cross_entropy(logits, batch.targets) + self.params.weight * increase.mean(), logits
