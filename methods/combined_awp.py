"""AWP with the losses of TRADES and MART in place of the cross-entropy.

The attack on the images and the loss are those of the other method; the weights climb that loss, and the gradient is
taken where it is worst (Wu, Xia, Wang, Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020).
"""

from bench import CanonicalValue, MethodInfo, hyperparameter
from methods import awp, mart, trades

PAPER = "Wu, Xia, Wang, NeurIPS 2020"


class TRADESParams(trades.Params, awp.Params):
    """Those of TRADES and of AWP."""

    beta: float = hyperparameter(
        6.0, unit="1", provenance="declared", ge=0, note="weight of the divergence",
        by_dataset={"cifar10": CanonicalValue(6.0, "code"), "cifar100": CanonicalValue(6.0, "code")},
    )  # fmt: skip
    gamma: float = hyperparameter(
        0.005, unit="share of the tensor's norm", provenance="code", gt=0, lt=1, note="size of the step"
    )
    warm_up: float = hyperparameter(
        0.05, unit="share of training", least_epochs=0, provenance="code", ge=0, le=1,
        note="plain TRADES at first: 10 of 200 epochs",
    )  # fmt: skip


class TRADESAWP(awp.AWP, trades.TRADES):
    """TRADES whose gradient is taken at perturbed weights."""

    info = MethodInfo("trades_awp", "TRADES-AWP", "TRADES with an adversarial step on the weights", PAPER, 2020)
    Params = TRADESParams
    data_parallel = True


class MARTParams(mart.Params, awp.Params):
    """Those of MART and of AWP."""

    gamma: float = hyperparameter(
        0.005, unit="share of the tensor's norm", provenance="declared", gt=0, lt=1, note="size of the step: TRADES'"
    )
    warm_up: float = hyperparameter(
        0.05, unit="share of training", least_epochs=0, provenance="declared", ge=0, le=1,
        note="plain MART at first, as with TRADES",
    )  # fmt: skip


class MARTAWP(awp.AWP, mart.MART):
    """MART whose gradient is taken at perturbed weights."""

    info = MethodInfo("mart_awp", "MART-AWP", "MART with an adversarial step on the weights", PAPER, 2020)
    Params = MARTParams
    data_parallel = True
