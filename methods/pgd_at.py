"""PGD-AT, the base recipe of the benchmark: cross-entropy on PGD images.

The network is trained on the adversarial images of every batch only (Madry et al., 2018), under the recipe
in which robust overfitting was described (Rice, Wong, Kolter, Overfitting in adversarially robust deep learning, ICML
2020). It has no parameters: everything it does is the protocol.

In the released code one clean forward in train mode follows every step, and the last, smaller batch is kept: the
protocol's settings `clean_pass: after_step` and `last_batch: keep`. Its attack also ends with one more pass in train
mode, which this one lacks.
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
