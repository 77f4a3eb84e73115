"""AFT: adversarial fine-tuning of a naturally trained network.

Start from natural training, then fine-tune on PGD images for a few epochs under a learning rate that starts slowly and
decays fast: eight to ten times cheaper than adversarial training from scratch (Jeddi, Shafiee, Wong, A Simple
Fine-tuning Is All You Need: Towards Robust Deep Learning Via Adversarial Fine-tuning, 2020). Its cost counts both
phases.

Uncertain: only the abstract could be read. Ten epochs of fine-tuning and the shape of the rate lie between two
re-implementations; the peak, the length of pre-training and the rule for short trainings are declared here.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from bench import (
    Batch,
    BenchError,
    CanonicalValue,
    Method,
    MethodInfo,
    MethodParams,
    Schedule,
    file_sha256,
    hyperparameter,
    load_weights,
)


class Params(MethodParams):
    """The two phases."""

    pretraining: float = hyperparameter(
        0.5, unit="share of training", least_epochs=1, provenance="declared", gt=0, le=10,
        note="natural epochs: 100 where the protocol has 200; none with initial_weights",
    )  # fmt: skip
    finetuning: float = hyperparameter(
        0.05, unit="share of training", provenance="secondary", gt=0, le=10,
        note="adversarial epochs: 10 where the protocol has 200",
    )  # fmt: skip
    least_steps: int = hyperparameter(
        1000, unit="steps", provenance="declared", ge=0,
        note="fine-tuning has at least so many, but at most a third of the epochs of a short protocol",
    )  # fmt: skip
    peak: float = hyperparameter(
        0.05, unit="learning rate", provenance="declared", gt=0, note="highest fine-tuning rate: half the protocol's",
        by_dataset={"svhn": CanonicalValue(0.005, "declared")},
    )  # fmt: skip
    rise: float = hyperparameter(
        0.4, unit="share of fine-tuning", provenance="secondary", gt=0, lt=1, note="linear from 0 to the peak"
    )
    floor: float = hyperparameter(
        0.01, unit="share of the peak", provenance="secondary", gt=0, le=1, note="rate at the end"
    )
    initial_weights: str | None = hyperparameter(
        None, unit="path", provenance="declared", note="a state dict (safetensors, or a plain torch file) to start from"
    )
    initial_sha256: str | None = hyperparameter(
        None, unit="-", provenance="declared", note="digest of that file, filled in: other weights make another cell"
    )

    @model_validator(mode="before")
    @classmethod
    def _state_the_digest(cls, data: dict[str, Any]) -> dict[str, Any]:
        path = data.get("initial_weights")
        if isinstance(path, str) and data.get("initial_sha256") is None:
            with suppress(OSError):  # `initialise` says what is wrong with the file
                return {**data, "initial_sha256": file_sha256(Path(path))}
        return data

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> Self:
        if self.initial_sha256 is not None and self.initial_weights is None:
            raise PydanticCustomError("digest", "'initial_sha256' is the digest of 'initial_weights', which is missing")
        return self

    def tuning_epochs(self, epochs: int, batches: int) -> int:
        """Return the epochs of fine-tuning in a protocol of `epochs` epochs with `batches` batches each."""
        least = math.ceil(self.least_steps / max(1, batches))
        return max(1, round(self.finetuning * epochs), min(least, epochs // 3))

    def in_training(self, epochs: int, steps: int | None) -> dict[str, str]:
        texts = super().in_training(epochs, steps)
        if steps is not None:
            tuning = self.tuning_epochs(epochs, steps // epochs)
            texts["least_steps"] = f"fine-tuning of {tuning} epochs, {tuning * steps // epochs} steps"
        return texts


class AFT(Method[Params]):
    """Natural training, then fine-tuning; without the first where weights are given."""

    info = MethodInfo(
        name="aft",
        title="AFT",
        description="Natural training, then a short adversarial fine-tuning",
        paper="Jeddi, Shafiee, Wong, 2020",
        year=2020,
        version=2,
    )
    Params = Params
    data_parallel = True
    accepts_soft_labels = True

    def initialise(self, network: nn.Module) -> None:
        if self.params.initial_weights is not None:
            path = Path(self.params.initial_weights)
            load_weights(network, path)
            if file_sha256(path) != self.params.initial_sha256:
                raise BenchError(f"weights {path}: not the file that the cell states; it has changed since")

    def schedule(self, protocol_schedule: Schedule) -> Schedule:
        """The protocol's schedule, compressed to the natural phase, then slow start and fast decay."""
        whole, params = protocol_schedule.epochs, self.params
        self.natural = 0 if params.initial_weights is not None else params.whole_epochs("pretraining", whole)
        tuning = params.tuning_epochs(whole, len(self.context.batches))

        def rate(t: float) -> float:
            # A step belongs to the phase in which it begins; t is where it ends.
            if t <= self.natural:
                return protocol_schedule.rate(t * whole / self.natural)
            return slow_start_fast_decay((t - self.natural) / tuning, params.peak, params.rise, params.floor)

        return Schedule(self.natural + tuning, rate, first_drop=self.natural)

    def begin_epoch(self, epoch: int) -> None:
        """Enter fine-tuning with a fresh momentum."""
        self.tuning = epoch >= self.natural
        if epoch == self.natural:
            self.optimizer.state.clear()

    def perturb(self, batch: Batch) -> Tensor:
        return super().perturb(batch) if self.tuning else batch.images


def slow_start_fast_decay(x: float, peak: float, rise: float, floor: float) -> float:
    """Return the rate at `x` (0 to 1) of fine-tuning: linear to `peak` at `rise`, then exponential to peak·floor."""
    if x <= rise:
        return peak * x / rise
    decayed: float = peak * floor ** ((x - rise) / (1 - rise))
    return decayed
