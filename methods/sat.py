"""SAT: smooth adversarial training, with every ReLU replaced by a smooth function.

ReLU's kink gives the attack poor gradients and the weights a poor answer to it; a smooth activation, in the forward and
the backward pass, for attack and training, gains robustness at no cost in accuracy (Xie, Tan, Gong, Yuille, Le, Smooth
Adversarial Training, 2020). Here it runs under the common protocol, by default with SiLU; the paper's own
ImageNet recipe (Nesterov, warm-up, label smoothing, a single-step attack) is not part of it. As in the released code,
every activation has a SmoothReLU of its own, whose sharpness has no weight decay.
"""

from typing import Literal

from torch import nn

from bench import ACTIVATIONS, Method, MethodInfo, MethodParams, SmoothReLU, hyperparameter, replace_relu


class Params(MethodParams):
    """Which smooth function."""

    activation: Literal["silu", "gelu", "elu", "softplus", "mish", "smooth_relu"] = hyperparameter(
        "silu", unit="-", provenance="code",
        note="SiLU: the best trade-off on ImageNet; gelu: tanh form; softplus: beta 10 (secondary)",
    )  # fmt: skip


class SAT(Method[Params]):
    """PGD-AT on a network without ReLU."""

    info = MethodInfo(
        name="sat",
        title="SAT",
        description="PGD-AT with smooth activations in the place of ReLU",
        paper="Xie, Tan, Gong, Yuille, Le, Smooth Adversarial Training, 2020",
        year=2020,
        version=2,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def build(self, network: nn.Module) -> nn.Module:
        replace_relu(network, ACTIVATIONS[self.params.activation])
        return network

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Return SmoothReLU's sharpnesses: the released code decays weights only."""
        return [module.raw for module in self.model.modules() if isinstance(module, SmoothReLU)]
