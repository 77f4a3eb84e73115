"""Declared: a learning rate from the estimated Lipschitz constant of the gradient.

Gradient descent explores best at a rate of one to two over the Lipschitz constant L of the loss gradient (Sridhar,
Sokolsky, Lee, Weimer, Improving Neural Network Robustness via Persistency of Excitation, ACC 2022). The first epochs
estimate L: after each, the gradients of one batch at the weights of this and of the epoch before are compared. From
then on the protocol's schedule is scaled so that its full rate is 1 / L.

The released code estimates L in one training, from gradients and weights that do not belong together, and trains again;
its gain is within the noise of one seed. All parameters are declared here.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from bench import Batch, Method, MethodInfo, MethodParams, Schedule, hyperparameter, running_statistics_kept


class Params(MethodParams):
    """The estimate and the rate."""

    probe: float = hyperparameter(
        0.1, unit="share of training", least_epochs=1, provenance="declared", gt=0, le=1,
        note="epochs that estimate L: 20 of 200",
    )  # fmt: skip
    factor: float = hyperparameter(
        1.0, unit="1 / L", provenance="declared", gt=0, le=2, note="full rate after them; the paper has 1 and 2"
    )
    bound: float = hyperparameter(
        4.0, unit="1", provenance="declared", ge=1, note="largest change of the protocol's rate, up and down"
    )


class Persistency(Method[Params]):
    """PGD-AT at a rate of factor / L after the first epochs."""

    info = MethodInfo(
        name="persistency",
        title="Persistency",
        description="PGD-AT with the rate from an estimated Lipschitz constant",
        paper="Sridhar, Sokolsky, Lee, Weimer, ACC 2022",
        year=2022,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True
    scale = 1.0

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        rate = protocol_schedule.rate
        return Schedule(protocol_schedule.epochs, lambda t: self.scale * rate(t), protocol_schedule.first_drop)

    def begin_training(self) -> None:
        self.lipschitz, self.before = 0.0, self.weights()

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the parameters by name."""
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def begin_epoch(self, epoch: int) -> None:
        if epoch >= self.whole_epochs("probe"):
            full, bound = self.context.protocol.training.optimizer.lr, self.params.bound
            wanted = self.params.factor / max(self.lipschitz * full, 1e-12)
            self.scale = min(max(wanted, 1 / bound), bound)

    def end_epoch(self, epoch: int) -> None:
        """Compare two gradients on the adversarial images of one batch: the largest ‖Δg‖ / ‖Δw‖ is the estimate."""
        if epoch >= self.whole_epochs("probe"):
            return
        batch, now = next(iter(self.context.batches)), self.weights()
        with self.autocast():
            adversarial = self.perturb(batch)
        gradients = [self.gradient(weights, batch, adversarial) for weights in (now, self.before)]
        apart = torch.linalg.vector_norm(gradients[0] - gradients[1])
        moved = torch.linalg.vector_norm(flat(now.values()) - flat(self.before.values()))
        self.lipschitz, self.before = max(self.lipschitz, (apart / moved.clamp(min=1e-12)).item()), now

    def gradient(self, weights: Mapping[str, Tensor], batch: Batch, images: Tensor) -> Tensor:
        """Return the gradient of the mean cross-entropy on `images` at `weights`, flat."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with self.autocast(), running_statistics_kept(self.model):
            value = F.cross_entropy(functional_call(self.model, leaves, (images,)), batch.targets)
        return flat(self.context.group.all_reduce_mean(torch.autograd.grad(value, list(leaves.values()))))

    def state_dict(self) -> dict[str, Any]:
        return {"lipschitz": self.lipschitz, "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lipschitz = state["lipschitz"]
        self.before = {name: weight.to(self.context.device) for name, weight in state["before"].items()}


def flat(tensors: Any) -> Tensor:
    """Return all tensors as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])
