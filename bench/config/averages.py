"""Moving averages of weights, whose length a method states as a share of training or as a decay.

A decay of 0.999 remembers a thousand steps: 1.3 % of the 76,400 steps of the suite `cifar10`, but all of a training of
a thousand. A share of training means the same in suites of every length.
"""

from __future__ import annotations

from bench.config.hyperparameters import MethodParams, hyperparameter
from bench.errors import BenchError


class AverageParams(MethodParams):
    """How long the average remembers: `memory`, or `decay` instead.

    decay = 1 - 1 / (memory · n), with n averagings in the training: an averaging's share in the average falls to 1/e
    after `memory` of training. It is 0 if `memory` is shorter than one averaging.
    """

    memory: float | None = hyperparameter(unit="share of training", provenance="declared", gt=0, le=1)
    decay: float | None = hyperparameter(
        None, unit="1", provenance="declared", ge=0, lt=1, instead_of="memory",
        note="share of the average that an averaging keeps, instead of memory",
    )  # fmt: skip

    def averagings(self, steps: int) -> float:
        """Return the number of averagings, on average, in a training of `steps` steps."""
        return steps

    def decay_in(self, steps: int) -> float:
        """Return the decay of one averaging in a training of `steps` steps."""
        if self.memory is None:
            assert self.decay is not None
            return self.decay
        return 1 - 1 / max(1.0, self.memory * self.averagings(steps))

    def check_length(self, steps: int) -> None:
        averagings, canonical = self.averagings(steps), type(self).model_fields["memory"].default
        # The canonical memory holds in trainings of every length, stated or not.
        if self.memory not in (None, canonical) and self.memory * averagings < 1:
            raise BenchError(
                f"'memory': {self.memory:g} of a training of {steps} steps is less than one averaging; "
                f"give {1 / averagings:.2g} or more"
            )
        if self.decay is not None and 1 / (1 - self.decay) > averagings * (1 + 1e-9):
            raise BenchError(
                f"'decay': an average over {1 / (1 - self.decay):.0f} averagings is longer than training, which has "
                f"{averagings:.0f}; give less, or 'memory' as a share of training"
            )

    def in_training(self, epochs: int, steps: int | None) -> dict[str, str]:
        texts = super().in_training(epochs, steps)
        if steps is not None and self.memory is not None:
            texts["memory"] += f", decay {self.decay_in(steps):.6g}"
        if steps is not None and self.decay is not None:
            texts["decay"] = f"memory {1 / (1 - self.decay) / self.averagings(steps):.4g} of training"
        return texts
