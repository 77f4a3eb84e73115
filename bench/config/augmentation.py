"""The augmentations of a protocol; every image draws its own numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from bench.config.base import BaseConfig, Number, named

_Share = Annotated[Number, Field(gt=0, le=1)]


class Crop(BaseConfig):
    """Pad every side, then cut a window of the original size at a uniformly random place."""

    name: Literal["crop"] = "crop"
    padding: int = Field(4, ge=1, le=64)
    mode: Literal["reflect", "zero"] = "reflect"


class Flip(BaseConfig):
    """Mirror left and right with probability one half."""

    name: Literal["flip"] = "flip"


class Rotate(BaseConfig):
    """Turn about the centre by an angle drawn uniformly from both directions; what comes in from outside is zero."""

    name: Literal["rotate"] = "rotate"
    degrees: Number = Field(15, gt=0, le=180)
    """The largest angle."""


class Cutout(BaseConfig):
    """Blacken a square about a uniformly random pixel, as far as it lies in the image (DeVries and Taylor, 2017)."""

    name: Literal["cutout"] = "cutout"
    size: int = Field(16, ge=1, le=4096)
    """Side in pixels. In the authors' code: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN."""


class RandomErasing(BaseConfig):
    """Blacken a random rectangle inside the image (Zhong et al., AAAI 2020). The defaults are torchvision's."""

    name: Literal["random_erasing"] = "random_erasing"
    probability: _Share = 0.5
    area: tuple[_Share, _Share] = (0.02, 0.33)
    """Smallest and largest share of the image."""
    ratio: tuple[Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)]] = (0.3, 3.3)
    """Smallest and largest ratio of height and width, drawn uniformly in the logarithm."""

    @field_validator("area", "ratio")
    @classmethod
    def _ordered(cls, ends: tuple[float, float]) -> tuple[float, float]:
        return _rising(ends)


class Enhance(BaseConfig):
    """Change the brightness, contrast, saturation or sharpness by a uniformly drawn factor; 1 changes nothing."""

    name: Literal["brightness", "contrast", "saturation", "sharpness"]
    factors: tuple[Annotated[Number, Field(ge=0)], Annotated[Number, Field(ge=0)]]
    """Smallest and largest factor."""
    probability: _Share = 1.0

    @field_validator("factors")
    @classmethod
    def _ordered(cls, ends: tuple[float, float]) -> tuple[float, float]:
        return _rising(ends)


class Tones(BaseConfig):
    """Stretch every channel to the full range, or flatten its histogram. The default is torchvision's."""

    name: Literal["autocontrast", "equalize"]
    probability: _Share = 0.5


class Mix(BaseConfig):
    """Mix images and labels with those of another image of the batch; a share of Beta(alpha, alpha) stays.

    mixup: the weighted mean of both images (Zhang et al., ICLR 2018). cutmix: a rectangle of the other image (Yun et
    al., ICCV 2019), whose share is that of the rectangle inside the image. The defaults are those of Zhang et al.'s
    code, and of Rebuffi et al. (2021) for CutMix.
    """

    name: Literal["mixup", "cutmix"]
    alpha: Number = Field(1.0, gt=0, le=100)
    probability: _Share = 1.0


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise PydanticCustomError("ends", f"the smallest value {ends[0]:g} exceeds the largest, {ends[1]:g}")
    return ends


_Augmentation = Annotated[
    Crop | Flip | Rotate | Cutout | RandomErasing | Enhance | Tones | Mix, Field(discriminator="name")
]
_Short = Literal["crop", "flip", "rotate", "cutout", "random_erasing", "autocontrast", "equalize", "mixup", "cutmix"]
Augmentation = Annotated[_Augmentation, BeforeValidator(named, json_schema_input_type=_Augmentation | _Short)]
