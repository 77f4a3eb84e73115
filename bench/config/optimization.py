"""The optimiser and the learning-rate schedule of a protocol."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from bench.config.base import BaseConfig, Number, named, unless

# --- optimisers ------------------------------------------------------------------------------------------------------


class _Optimizer(BaseConfig):
    weight_decay_on: Annotated[Literal["all", "weights"] | None, unless("all")] = None
    """What weight decay acts on: all parameters, batch normalisation included (default), or only those with more than
    one dimension, which are the weights of convolutions and linear layers."""


class SGD(_Optimizer):
    """Stochastic gradient descent; weight decay is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    lr: Number = Field(0.1, gt=0)
    momentum: Number = Field(0.9, ge=0, lt=1)
    weight_decay: Number = Field(5e-4, ge=0)
    nesterov: bool = False


_Beta = Annotated[Number, Field(ge=0, lt=1)]


class Adam(_Optimizer):
    """Adam (Kingma and Ba, ICLR 2015); weight decay is added to the gradient. The defaults are torch's."""

    name: Literal["adam"] = "adam"
    lr: Number = Field(1e-3, gt=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: Number = Field(1e-8, gt=0)
    weight_decay: Number = Field(0, ge=0)


class AdamW(_Optimizer):
    """Adam whose weight decay acts on the weights (Loshchilov and Hutter, ICLR 2019). The defaults are torch's."""

    name: Literal["adamw"] = "adamw"
    lr: Number = Field(1e-3, gt=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: Number = Field(1e-8, gt=0)
    weight_decay: Number = Field(1e-2, ge=0)


class LAMB(_Optimizer):
    """Adam with a step for each tensor that follows the tensor's norm, for large batches (You et al., ICLR 2020).

    The defaults are those of the released code of Zhang et al., Distributed Adversarial Training, 2022.
    """

    name: Literal["lamb"] = "lamb"
    lr: Number = Field(0.01, gt=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: Number = Field(1e-6, gt=0)
    weight_decay: Number = Field(1e-4, ge=0)


def _sgd_by_default(value: Any) -> Any:
    return {"name": "sgd", **value} if isinstance(value, dict) else named(value)


_AnyOptimizer = Annotated[SGD | Adam | AdamW | LAMB, Field(discriminator="name")]
_OptimizerInput = _AnyOptimizer | Literal["sgd", "adam", "adamw", "lamb"]
OptimizerSettings = Annotated[_AnyOptimizer, BeforeValidator(_sgd_by_default, json_schema_input_type=_OptimizerInput)]


# --- schedules -------------------------------------------------------------------------------------------------------


class _WarmUp(BaseConfig):
    warmup: Number | None = Field(None, gt=0)
    """Epochs in which the rate rises linearly from 0 to what the schedule states; default: none."""


class Piecewise(_WarmUp):
    """The full rate, multiplied by `factor` at each milestone, a share of training."""

    name: Literal["piecewise"] = "piecewise"
    milestones: tuple[Annotated[Number, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    factor: Number = Field(0.1, gt=0, lt=1)

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise PydanticCustomError("milestones", "milestones must be increasing")
        return milestones


class Cyclic(BaseConfig):
    """Linear from 0 to the full rate at `peak`, a share of training, and back to 0 at the end."""

    name: Literal["cyclic"] = "cyclic"
    peak: Number = Field(0.5, gt=0, lt=1)


class OneCycle(BaseConfig):
    """Half a cosine from `start` times the full rate up to it at `peak`, a share of training, and another to `end`.

    The defaults are those of torch's `OneCycleLR`.
    """

    name: Literal["one_cycle"] = "one_cycle"
    peak: Number = Field(0.3, gt=0, lt=1)
    start: Number = Field(0.04, ge=0, le=1)
    end: Number = Field(4e-6, ge=0, le=1)


class Cosine(_WarmUp):
    """Half a cosine from the full rate, after the warm-up, to 0 at the end."""

    name: Literal["cosine"] = "cosine"


class Constant(_WarmUp):
    """The full rate throughout."""

    name: Literal["constant"] = "constant"


_Schedule = Annotated[Piecewise | Cyclic | OneCycle | Cosine | Constant, Field(discriminator="name")]
_ScheduleInput = _Schedule | Literal["piecewise", "cyclic", "one_cycle", "cosine", "constant"]
ScheduleSettings = Annotated[_Schedule, BeforeValidator(named, json_schema_input_type=_ScheduleInput)]
