"""Single-step training: FGSM with a random start and an early stop, and N-FGSM.

One step costs a sixth of PGD-10, but training may collapse: within an epoch PGD accuracy falls to zero. FGSM-RS starts
at random in the ball and stops when that happens (Wong, Rice, Kolter, Fast is Better than Free: Revisiting Adversarial
Training, ICLR 2020). N-FGSM draws the start from a larger cube and does not project, which keeps it from collapsing
(de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania, Make Some Noise: Reliable and Efficient Single-Step Adversarial
Training, NeurIPS 2022). Both take their one step whatever the protocol's attack is, and none if it has no attack.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import (
    Batch,
    EpochRecord,
    Method,
    MethodInfo,
    MethodParams,
    cross_entropy,
    frozen_copy,
    hyperparameter,
    train_mode,
)


class NFGSMParams(MethodParams):
    """The start and the step."""

    noise: float = hyperparameter(
        2.0, unit="eps", provenance="code", gt=0, le=7,
        note="half the side of the cube of the start; 3 and 4 at large radii",
    )  # fmt: skip
    step: float = hyperparameter(1.0, unit="eps", provenance="code", gt=0, le=2, note="length of the step")

    @property
    def training_radius(self) -> float:
        return max(1.0, self.noise + self.step)


class NFGSM(Method[NFGSMParams]):
    """One step from a random start, without projection."""

    info = MethodInfo(
        name="n_fgsm",
        title="N-FGSM",
        description="A single step from a start outside the ball, without projection",
        paper="de Jorge et al., NeurIPS 2022",
        year=2022,
    )
    Params = NFGSMParams
    data_parallel = True
    accepts_soft_labels = True

    def perturb(self, batch: Batch) -> Tensor:
        """Return clip(x + start + step · sign of the gradient there); the ball of `training_radius` holds them all."""
        return self.attack(
            batch,
            cross_entropy(batch.targets),
            start=self.random_start(batch.images, self.params.noise),
            radius=self.params.training_radius,
            steps=1,
            step_size=self.params.step * self.ball().eps,
        )


class FGSMParams(MethodParams):
    """The step, and when to stop."""

    step: float = hyperparameter(1.25, unit="eps", provenance="code", gt=0, le=2, note="length of the step: 10/255")
    fall: float = hyperparameter(
        0.2, unit="share of images", provenance="code", gt=0, le=1,
        note="fall of PGD accuracy on a training batch in one epoch that ends training",
    )  # fmt: skip
    check_steps: int = hyperparameter(5, unit="steps", provenance="code", ge=1, note="of that PGD")
    check_step: float = hyperparameter(0.25, unit="eps", provenance="code", gt=0, le=2, note="of that PGD: 2/255")


class FGSMRS(Method[FGSMParams]):
    """FGSM with a random start, which ends before the epoch in which it collapses."""

    info = MethodInfo(
        name="fgsm_rs",
        title="FGSM-RS",
        description="FGSM with a random start, stopped before it collapses",
        paper="Wong, Rice, Kolter, ICLR 2020",
        year=2020,
    )
    Params = FGSMParams
    data_parallel = True
    accepts_soft_labels = True

    def begin_training(self) -> None:
        self.kept, self.accuracy, self.collapsed = frozen_copy(self.model), 0.0, False

    def perturb(self, batch: Batch) -> Tensor:
        return single_step(self, batch, self.params.step)

    def end_epoch(self, epoch: int) -> None:
        """Attack a training batch; keep the weights unless the accuracy has fallen."""
        batch, params = next(iter(self.context.batches)), self.params
        with self.autocast(), train_mode(self.model, enabled=False):
            adversarial = self.attack(
                batch,
                cross_entropy(batch.labels),
                start=self.random_start(batch.images),
                batch_norm="eval",
                steps=params.check_steps,
                step_size=params.check_step * self.ball().eps,
            )
            with torch.no_grad():
                correct = (self.model(adversarial).argmax(1) == batch.labels).float().mean()
        accuracy = self.context.group.all_reduce_mean([correct])[0].item()
        self.collapsed = self.collapsed or accuracy < self.accuracy - params.fall
        if not self.collapsed:
            self.accuracy = accuracy
            self.kept.load_state_dict(self.model.state_dict())

    def should_stop(self, history: Sequence[EpochRecord]) -> bool:
        return self.collapsed

    def evaluated_model(self) -> nn.Module:
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept.state_dict(), "accuracy": self.accuracy, "collapsed": self.collapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept.load_state_dict(state["kept"])
        self.accuracy, self.collapsed = state["accuracy"], state["collapsed"]


def single_step(method: Method[Any], batch: Batch, step: float) -> Tensor:
    """Return the images after one step of `step` times eps from a random start, inside the ball: FGSM-RS."""
    start, step_size = method.random_start(batch.images), step * method.ball().eps
    return method.attack(batch, cross_entropy(batch.targets), start=start, steps=1, step_size=step_size)
