"""PGD-AT, the base recipe of the benchmark: cross-entropy on PGD images.

The network is trained on the adversarial images of every batch only (Madry et al., 2018), under the recipe
in which robust overfitting was described (Rice, Wong, Kolter, Overfitting in adversarially robust deep learning, ICML
2020). It has no parameters: everything it does is the protocol.

Differs from the released code in one point: there, one clean forward in train mode follows every step, so that running
statistics mix adversarial and clean batches; here they see the batches of the attack and of the update.
"""

from bench import Method, MethodInfo, MethodParams


class PGDAT(Method[MethodParams]):
    """Plain PGD adversarial training: the interface's defaults."""

    info = MethodInfo(
        name="pgd_at",
        title="PGD-AT",
        description="Cross-entropy on PGD images; the baseline that overfits",
        paper="Madry et al., ICLR 2018; Rice, Wong, Kolter, ICML 2020",
        year=2018,
    )
    data_parallel = True
    accepts_soft_labels = True
