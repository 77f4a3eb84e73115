"""Natural training, alone or as the first phase of adversarial training.

Without an attack a step costs one forward and one backward pass, and robustness is near zero: the reference that
adversarial training is compared with (Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR
2018). Natural training in place of the first adversarial epochs saves most of their cost at about equal accuracy
(Gupta, Dube, Verma, Improving the Affordability of Robustness Training for DNNs, CVPR Workshops 2020).

Uncertain: of the second paper only the abstract could be read. The epoch of the change is declared here.
"""

from torch import Tensor

from bench import Batch, Method, MethodInfo, MethodParams, hyperparameter


class Natural(Method[MethodParams]):
    """Cross-entropy on clean images."""

    info = MethodInfo(
        name="natural",
        title="Natural",
        description="Cross-entropy on clean images; no attack",
        paper="Madry et al., ICLR 2018",
        year=2018,
    )
    data_parallel = True
    accepts_soft_labels = True

    def perturb(self, batch: Batch) -> Tensor:
        return batch.images


class Params(MethodParams):
    """The change to adversarial training."""

    start: float = hyperparameter(
        0.5, unit="share of training", least_epochs=0, provenance="declared", ge=0, lt=1,
        note="first adversarial epoch: 100 of 200, the first rate drop",
    )  # fmt: skip


class NaturalFirst(Method[Params]):
    """Natural training, then PGD-AT with the same optimiser state and schedule."""

    info = MethodInfo(
        name="natural_first",
        title="Natural first",
        description="Natural training, then PGD-AT for the rest of the schedule",
        paper="Gupta, Dube, Verma, CVPR Workshops 2020",
        year=2020,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def begin_epoch(self, epoch: int) -> None:
        self.natural = epoch < self.whole_epochs("start")

    def perturb(self, batch: Batch) -> Tensor:
        return batch.images if self.natural else super().perturb(batch)
