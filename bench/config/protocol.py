"""The protocol: the settings that all methods of a suite share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from bench.config.attacks import (
    PGD,
    Attack,
    AutoAttack,
    Clean,
    FinalAttack,
    Joint,
    NamedTrainingAttack,
    Threat,
    TrainingAttack,
)
from bench.config.augmentation import Augmentation, Mix
from bench.config.base import BaseConfig, DataPath, Indices, Number, named, parse_indices, ranges, unless
from bench.config.optimization import SGD, OptimizerSettings, Piecewise, ScheduleSettings
from bench.errors import BenchError
from bench.utils.files import fingerprint

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Side = Annotated[int, Field(ge=1, le=4096)]
Channels = tuple[Number, ...]
Deviations = tuple[Annotated[Number, Field(gt=0)], ...]


# --- data -----------------------------------------------------------------------------------------------------------


NO_IMAGES = "none"
"""Value of `validation`: no training image is held out, and the test images select `best`."""


def _count_or_indices(value: Any) -> int | str:
    """Return a number of images as an integer, or ranges of indices as their canonical text, or `NO_IMAGES`."""
    if value == NO_IMAGES:
        return NO_IMAGES
    if isinstance(value, str) and not value.strip().isdecimal():
        return parse_indices(value)
    try:
        count = int(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        count = None
    if count is None or count != (float(value) if isinstance(value, float) else count):
        raise PydanticKnownError("int_type")
    if count < 1:
        raise PydanticKnownError("greater_than_equal", {"ge": 1})
    return count


class Subset(BaseConfig):
    """The images of a dataset to use, by official index; a missing key selects all."""

    train: Indices | None = None
    test: Indices | None = None


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Files(BaseConfig):
    """Your own images, for the datasets `image_folder` and `npz`."""

    path: DataPath
    """Folder or file below the data root, with / between names; in Unicode normal form C."""
    classes: int = Field(ge=2, le=100_000)
    shape: tuple[Annotated[int, Field(ge=1, le=4)], Side, Side]
    """Channels, height, width of every image."""
    mean: Channels | None = None
    """Per channel, in units of [0, 1], subtracted inside the network; default one half."""
    std: Deviations | None = None
    """Per channel, in units of [0, 1], divided by inside the network; default one half."""
    test: int | None = Field(None, ge=1)
    """Number of training images to use as test set, if the files have no test images."""

    @model_validator(mode="after")
    def _fits(self) -> Files:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.shape[0]:
                raise PydanticCustomError("channels", f"'{name}' needs {self.shape[0]} values, one a channel")
        return self


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise BenchError for means or standard deviations in units of 0 to 255."""
    for name, values, most in (("mean", mean, 1), ("standard deviation", std, 2)):
        if max(values) > most:
            raise BenchError(
                f"a {name} of {max(values):g} is too large for pixels in [0, 1]; divide means and standard deviations "
                "in units of 0 to 255 by 255"
            )


class DatasetSettings(BaseConfig):
    """The images, and the split of the training images."""

    name: Name
    """A registered dataset."""
    validation: Annotated[int | str, BeforeValidator(_count_or_indices, json_schema_input_type=int | str)] = 1000
    """Training images held out to select `best`: their number, or their official indices ("10000-11016").

    none: no image is held out, and the test images select `best`, as in many papers."""
    split_seed: Seed = 0
    """Seed of the permutation that chooses the held-out images; the same for every training seed."""
    subset: Subset | None = None
    """Use only these images."""
    mean: Channels | None = None
    """Subtracted inside the network instead of the dataset's own, per channel, in units of [0, 1]."""
    std: Deviations | None = None
    """Divided by inside the network instead of the dataset's own, per channel, in units of [0, 1]."""
    resize: int | None = Field(None, ge=1)
    """Average square images down to this many pixels a side, which must divide the original side."""
    digest: Digest | None = None
    """SHA-256 of the files' names and contents (`bench data check`); stating it allows a part of a dataset."""
    files: Files | None = None

    @property
    def held_out(self) -> int:
        """The number of training images held out for validation."""
        if isinstance(self.validation, int):
            return self.validation
        if self.validation == NO_IMAGES:
            return 0
        return sum(map(len, ranges(self.validation)))


# --- training and evaluation -----------------------------------------------------------------------------------------


class ExtraData(BaseConfig):
    """Further training images, such as generated ones, which fill a fixed share of every batch.

    An epoch has as many batches as without them; they are drawn with replacement.
    """

    file: DataPath
    """An .npz file below the data root: `image`, uint8, [n, height, width, channels], and `label`, [n]."""
    digest: Digest
    """SHA-256 of the file (`sha256sum`)."""
    share: Number = Field(gt=0, lt=1)
    label_smoothing: Number = Field(0, ge=0, lt=1)
    """Share of a label that is spread over all classes, on these images alone; makes soft labels."""


class Training(BaseConfig):
    """The recipe that every method of the suite shares."""

    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(128, ge=1)
    optimizer: OptimizerSettings = SGD()
    schedule: ScheduleSettings = Piecewise()
    attack: NamedTrainingAttack = TrainingAttack()
    augmentation: tuple[Augmentation, ...] = ()
    """In order. A suite that says nothing gets the dataset's own (`bench show dataset`)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions and products in bfloat16; parameters, optimiser state, batch statistics, loss in fp32."""
    tf32: Annotated[bool | None, unless(True)] = None
    """Whether fp32 convolutions on NVIDIA GPUs may use TF32, which is torch's default; the final attacks never do."""
    clean_pass: Annotated[Literal["none", "after_step"] | None, unless("none")] = None
    """after_step: the clean batch passes through the network in train mode after every step, without gradients."""
    last_batch: Annotated[Literal["drop", "keep"] | None, unless("drop")] = None
    """Whether the images of an epoch that do not fill a batch are dropped (default) or make a smaller one."""

    extra_data: ExtraData | None = None

    def batches(self, images: int) -> int:
        """Return the number of batches of an epoch with `images` training images."""
        whole, rest = divmod(images, self.batch_size)
        return whole + (self.last_batch == "keep" and rest > 0)

    @property
    def soft_labels(self) -> bool:
        """Whether batches have soft labels."""
        smoothed = self.extra_data is not None and self.extra_data.label_smoothing > 0
        return smoothed or any(isinstance(step, Mix) for step in self.augmentation)

    @property
    def extra_images(self) -> int:
        """The number of images of a batch that come from the extra data."""
        return round(self.batch_size * self.extra_data.share) if self.extra_data else 0

    @field_validator("augmentation")
    @classmethod
    def _mixing_comes_last(cls, steps: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
        if any(isinstance(step, Mix) for step in steps[:-1]):
            raise PydanticCustomError("mixing", "only the last augmentation may be 'mixup' or 'cutmix'")
        return steps

    @model_validator(mode="after")
    def _extra_data_fit(self) -> Training:
        if self.extra_data is None:
            return self
        if not 0 < self.extra_images < self.batch_size:
            raise PydanticCustomError(
                "extra_data",
                f"extra_data.share: {self.extra_data.share:g} of {self.batch_size} images leaves no image of one kind",
            )
        if self.last_batch is not None:
            raise PydanticCustomError("extra_data", "last_batch: 'keep' is for training without extra_data")
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Training:
        warmup = getattr(self.schedule, "warmup", None)
        if warmup is not None and warmup >= self.epochs:
            raise PydanticCustomError(
                "warmup", f"schedule.warmup: {warmup:g} epochs leave none of the {self.epochs} for the full rate"
            )
        return self


class Track(BaseConfig):
    """What is measured after an epoch, and selects `best` and `best_on_test`."""

    attack: PGD = PGD(steps=10)
    test: bool = True
    """Measure the test images too, not only the held-out validation images; needed for `best_on_test`."""
    every: int | None = Field(None, ge=2)
    """Track only every so many epochs, and the last one, and those `around` the drops; default: every epoch."""
    around: int | None = Field(None, ge=0)
    """How many epochs right before and right after each drop of the learning rate are tracked, too; default 2."""

    @model_validator(mode="after")
    def _around_needs_every(self) -> Track:
        if self.around is not None and self.every is None:
            raise PydanticCustomError("around", "'around' needs 'every'; without it every epoch is tracked")
        return self

    @field_validator("attack")
    @classmethod
    def _all_images(cls, attack: PGD) -> PGD:
        if attack.images is not None:
            raise PydanticCustomError("images", "'images' is for final attacks; tracking measures every image")
        if attack.threat is not None:
            raise PydanticCustomError("threat", "'threat' is for final attacks; tracking uses the protocol's threat")
        return attack


class Evaluation(BaseConfig):
    """The evaluation of checkpoints."""

    track: Track = Track()
    final: tuple[FinalAttack, ...] = Field((Clean(), PGD(), AutoAttack()), min_length=1)

    @field_validator("final")
    @classmethod
    def _no_attack_twice(cls, final: tuple[FinalAttack, ...]) -> tuple[FinalAttack, ...]:
        if len(set(final)) < len(final):
            raise PydanticCustomError("final", "duplicate attack")
        if Joint() in final and sum(isinstance(attack, Attack) for attack in final) < 2:
            raise PydanticCustomError("final", "'joint' needs two other attacks or more")
        return final


class Protocol(BaseConfig):
    """The settings that all methods of a suite share. Equal fingerprints mean comparable results."""

    dataset: Annotated[DatasetSettings, BeforeValidator(named, json_schema_input_type=DatasetSettings | str)]
    model: Name
    threat: Threat
    training: Training
    evaluation: Evaluation = Evaluation()

    def identity(self) -> dict[str, Any]:
        """Return the plain data of the fingerprint.

        Settings that are None are omitted, so a new setting with the default None changes no identity.
        """
        return self.model_dump(mode="json", exclude_none=True)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())
