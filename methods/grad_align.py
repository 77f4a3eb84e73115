"""GradAlign: single-step training whose gradient must point the same way all over the ball.

FGSM fails where the gradient at the image says little of the rest of the ball. A penalty on the angle between the
gradient at the image and that at a random point of the ball prevents the collapse (Andriushchenko, Flammarion,
Understanding and Improving Fast Adversarial Training, NeurIPS 2020). The second gradient is differentiated once more,
so a step is 2.2 times the work of one of FGSM. The step is FGSM's whatever the protocol's attack is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Batch, CanonicalValue, Method, MethodInfo, MethodParams, cross_entropy, hyperparameter


class Params(MethodParams):
    """The penalty and the step."""

    weight: float = hyperparameter(
        0.2, unit="1", provenance="declared", ge=0, note="lambda at 8/255: 0.027 at 1/255, 2 at 16/255 on CIFAR-10",
        by_dataset={"cifar10": CanonicalValue(0.2, "code"), "svhn": CanonicalValue(2.5, "code")},
    )  # fmt: skip
    step: float = hyperparameter(
        1.25, unit="eps", provenance="code", gt=0, le=2, note="length of the step, which is projected: 10/255"
    )


class GradAlign(Method[Params]):
    """FGSM without a random start, and a penalty on gradients that turn."""

    info = MethodInfo(
        name="grad_align",
        title="GradAlign",
        description="FGSM with a penalty on gradients that turn inside the ball",
        paper="Andriushchenko, Flammarion, NeurIPS 2020",
        year=2020,
    )
    Params = Params
    accepts_soft_labels = True
    compiled = False  # the penalty is a gradient of a gradient

    def perturb(self, batch: Batch) -> Tensor:
        """Step from the image, and keep the gradient there."""
        images = batch.images.detach().requires_grad_()
        with torch.enable_grad():
            value = cross_entropy(batch.targets)(self.model(images))
        (self.gradient,) = torch.autograd.grad(value, images)
        step_size = self.params.step * self.ball().eps
        return self.ascend(batch.images, batch.images, self.gradient, step_size)

    def loss(self, batch: Batch, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return CE + weight · (1 - mean cosine of both gradients); images with a zero gradient do not count."""
        logits = self.model(adversarial)
        noisy = (batch.images + self.random_perturbation(batch.images)).requires_grad_()  # may leave [0, 1]
        value = cross_entropy(batch.targets)(self.model(noisy))
        (second,) = torch.autograd.grad(value, noisy, create_graph=True)
        first, second = self.gradient.flatten(1), second.flatten(1)
        lengths = first.norm(dim=1) * second.norm(dim=1)
        counts = (lengths > 0).float()
        cosines = (first * second).sum(1) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
        mean = (cosines * counts).sum() / counts.sum().clamp(min=1)
        return F.cross_entropy(logits, batch.targets) + self.params.weight * (1 - mean), logits
