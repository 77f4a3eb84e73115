"""Early stopping: PGD-AT that ends once held-out robust accuracy has stopped rising, and keeps its best model.

Rice, Wong, Kolter, Overfitting in adversarially robust deep learning, ICML 2020, keep the checkpoint with the highest
PGD accuracy on held-out images. As a method of its own it also stops, so that its cost is what a user would pay; how
long it waits is our choice, since the paper trains to the end. Its last model is its best one, so its gap is zero by
construction.
"""

from collections.abc import Sequence

from bench import EpochRecord, Method, MethodInfo, MethodParams, hyperparameter


class Params(MethodParams):
    """When to stop."""

    patience: float = hyperparameter(
        0.1, unit="share of training", least_epochs=1, provenance="declared", gt=0, le=1,
        note="time without a better validation accuracy, counted from the first rate drop: 20 of 200 epochs",
    )  # fmt: skip


class EarlyStopping(Method[Params]):
    """PGD-AT with `should_stop`."""

    info = MethodInfo(
        name="early_stopping",
        title="Early stopping",
        description="PGD-AT that stops when validation robust accuracy no longer rises",
        paper="Rice, Wong, Kolter, ICML 2020",
        year=2020,
        final_is_best=True,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def should_stop(self, history: Sequence[EpochRecord]) -> bool:
        """Stop `patience` after the later of the first rate drop and the best epoch."""
        best = max(history, key=lambda record: record["validation"]["robust"])  # the first of equals
        waited_from = max(best["epoch"], self.lr_schedule.first_drop - 1)
        return bool(history[-1]["epoch"] - waited_from >= self.whole_epochs("patience"))
