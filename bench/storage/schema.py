"""The tables of the store, as typed models.

Every key is natural (fingerprints, names, numbers), so that equal run folders give equal rows, in whatever order and
however often they are imported.
"""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import NDArray
from sqlalchemy import JSON, BigInteger, Double, ForeignKey, ForeignKeyConstraint, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, attribute_keyed_dict, mapped_column, relationship

from bench.attacks.outcome import PackedBits


class Base(DeclarativeBase):
    """What all tables share: constraints with names, which later migrations need."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double()}


class ProtocolRow(Base):
    """A protocol: `content` is the identity that its fingerprint is taken of."""

    __tablename__ = "protocol"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class RunRow(Base):
    """A run. Times are in seconds over all interruptions; None where the run has not ended or does not say."""

    __tablename__ = "run"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    training_fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    protocol_fingerprint: Mapped[str] = mapped_column(ForeignKey("protocol.fingerprint"), index=True)
    suite: Mapped[str] = mapped_column(String(100))
    method: Mapped[str] = mapped_column(String(100))
    version: Mapped[int]
    label: Mapped[str] = mapped_column(Text)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    custom: Mapped[bool]
    origin: Mapped[str | None] = mapped_column(String(20))
    """The least reliable provenance among the canonical parameters in force."""
    final_is_best: Mapped[bool]
    seed: Mapped[int]
    status: Mapped[str] = mapped_column(String(20))
    """finished, diverged, failed or interrupted."""
    reason: Mapped[str | None] = mapped_column(Text)
    diverged_in: Mapped[int | None]
    """The epoch, from 0, whose loss was no longer a number."""
    classes: Mapped[int | None]
    """Classes of the dataset, which say what guessing achieves."""
    environment: Mapped[dict[str, Any]] = mapped_column(JSON)
    folder: Mapped[str] = mapped_column(String(255))
    """Path of the run folder relative to the results folder."""
    epochs: Mapped[int]
    train_pflop: Mapped[float | None]
    """Work of training, counted from one step an epoch; a multiply-add is two."""
    train_seconds: Mapped[float | None]
    track_seconds: Mapped[float | None]
    """Measuring the curve after every epoch."""
    evaluation_seconds: Mapped[float | None]
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    incidents: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """What went wrong and was repaired, oldest first: lost workers, damaged files; None if nothing did."""
    done_sha256: Mapped[str | None] = mapped_column(String(64))
    """Digest of the content of `done.json`; shows whether the run has ended again since the last import."""

    protocol: Mapped[ProtocolRow] = relationship(lazy="raise")
    curve: Mapped[list[EpochRow]] = relationship(lazy="raise", passive_deletes="all", order_by="EpochRow.epoch")
    checkpoints: Mapped[dict[str, CheckpointRow]] = relationship(
        lazy="raise", passive_deletes="all", collection_class=attribute_keyed_dict("name")
    )


class EpochRow(Base):
    """One epoch of a run; accuracies are shares.

    They are None after an epoch that was not tracked, those of the test images also where the protocol does not track
    them. `train_pflop` is None for runs of older versions.
    """

    __tablename__ = "epoch"

    run: Mapped[str] = mapped_column(ForeignKey("run.fingerprint", ondelete="CASCADE"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lr: Mapped[float]
    train_loss: Mapped[float]
    train_robust: Mapped[float]
    validation_clean: Mapped[float | None]
    validation_robust: Mapped[float | None]
    test_clean: Mapped[float | None]
    test_robust: Mapped[float | None]
    train_seconds: Mapped[float]
    seconds: Mapped[float]
    train_pflop: Mapped[float | None]


class CheckpointRow(Base):
    """A checkpoint that is evaluated: `best`, `best_on_test` or `last`, and the epoch (from 0) it was taken after."""

    __tablename__ = "checkpoint"

    run: Mapped[str] = mapped_column(ForeignKey("run.fingerprint", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    epoch: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    file: Mapped[str] = mapped_column(String(100))

    outcomes: Mapped[dict[str, OutcomeRow]] = relationship(
        lazy="raise", passive_deletes="all", collection_class=attribute_keyed_dict("key")
    )


class OutcomeRow(Base):
    """One checkpoint under one attack: `right` of `count` images; `correct`: the data of `PackedBits`.

    Under corruptions every image counts once for each of its versions, which follow one another.
    """

    __tablename__ = "outcome"
    __table_args__ = (
        ForeignKeyConstraint(["run", "checkpoint"], ["checkpoint.run", "checkpoint.name"], ondelete="CASCADE"),
    )

    run: Mapped[str] = mapped_column(String(64), primary_key=True)
    checkpoint: Mapped[str] = mapped_column(String(20), primary_key=True)
    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    attack: Mapped[str] = mapped_column(String(20))
    """clean, fgsm, pgd, cw, autoattack, joint or corruptions."""
    title: Mapped[str] = mapped_column(Text)
    identity: Mapped[dict[str, Any]] = mapped_column(JSON)
    count: Mapped[int]
    right: Mapped[int]
    accuracy: Mapped[float]
    correct: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    seconds: Mapped[float]
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)

    @property
    def bits(self) -> PackedBits:
        """Which images are classified correctly, if they were loaded."""
        return PackedBits(self.correct, self.count)

    @property
    def versions(self) -> int:
        """The number of versions of each image; more than one under corruptions."""
        return int(self.identity.get("versions", 1))

    @property
    def images(self) -> int:
        """The number of images; `count` counts each version of them."""
        return self.count // self.versions

    def per_image(self) -> NDArray[Any]:
        """Return whether each image is classified correctly (bool), or the share of its versions (float): [images]."""
        return self.bits.per_image(self.versions)
