"""Natural corruptions of the test images as an entry of the final evaluation."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from bench.config.base import BaseConfig, DataPath

Computed = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "gaussian_blur", "defocus_blur", "motion_blur", "brightness",
    "contrast", "pixelate", "jpeg_compression",
]  # fmt: skip
Read = Literal[
    "glass_blur", "zoom_blur", "snow", "frost", "fog", "elastic_transform", "speckle_noise", "spatter", "saturate"
]  # fmt: skip

COMPUTED: tuple[str, ...] = get_args(Computed)
"""Those that are computed here."""

BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The 15 corruptions whose mean papers report; the others are the authors' extra ones."""

SEVERITIES = (1, 2, 3, 4, 5)


class Corruptions(BaseConfig):
    """Accuracy on corrupted test images: the mean over corruptions and severities.

    Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations, 2019.
    """

    name: Literal["corruptions"] = "corruptions"
    severity: int | None = Field(None, ge=1, le=5)
    """1 to 5; default: all five."""
    path: DataPath | None = None
    """Folder below the data root with the published images; default: the images are computed."""
    kinds: tuple[Computed | Read, ...] | None = Field(None, min_length=1)
    """Only these corruptions; default: all that are computed, or the 15 of the benchmark."""

    @model_validator(mode="after")
    def _can_be_had(self) -> Corruptions:
        kinds = self.kinds or ()
        if len(set(kinds)) < len(kinds):
            raise PydanticCustomError("kinds", "duplicate corruption")
        if self.path is None and (unknown := [kind for kind in kinds if kind not in COMPUTED]):
            raise PydanticCustomError(
                "kinds", f"'{unknown[0]}' is not computed; give the 'path' of published images, or leave it out"
            )
        return self

    @property
    def versions(self) -> tuple[tuple[str, int], ...]:
        """Corruption and severity of every version of an image."""
        kinds = self.kinds or (BENCHMARK if self.path else COMPUTED)
        severities = (self.severity,) if self.severity else SEVERITIES
        return tuple((kind, severity) for kind in kinds for severity in severities)

    @property
    def title(self) -> str:
        name = self.path.strip("/").rpartition("/")[2] if self.path else "Corruptions"
        return f"{name} (severity {self.severity})" if self.severity else name
