"""What the page of one run shows: accuracies, also per class, the curve, and adversarial examples."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bench.attacks.evaluate import balanced_subset
from bench.attacks.outcome import per_class
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.execution.data_identity import DataRoot
from bench.execution.examples import AdversarialExamples, adversarial_examples
from bench.reporting.formats.html import recorded
from bench.reporting.labels import disambiguate
from bench.reporting.notes import LEVEL, percent
from bench.reporting.plots.data import run_figures
from bench.reporting.plots.render import svg
from bench.reporting.rows import Selection, gap_interval_of, interval_of
from bench.reporting.statistics import Interval
from bench.reporting.table import NONE, Cell, Column, Table
from bench.storage.run_folder import CHECKPOINTS, RunFolder
from bench.storage.schema import CheckpointRow, OutcomeRow, RunRow
from bench.storage.store import Epoch
from bench.training.load import recorded_cell
from bench.utils.formatting import byte_size, duration

LARGEST = 96  # pixels of the side of an embedded image


@dataclass(frozen=True)
class Example:
    """A test image, what the attack added to it, and the sum, as `data:` URLs of PNG files, with its classes."""

    position: int
    image: str
    perturbation: str
    adversarial: str
    label: int
    predicted: int
    attacked: int


@dataclass(frozen=True)
class RunDetails:
    """What the page of a run shows. `attack` and `checkpoint`: of the `examples`, if there are any."""

    facts: list[tuple[str, str]]
    accuracies: Table
    parts: Table
    classes: Table
    epochs: Table
    curve: Markup | None
    examples: tuple[Example, ...]
    attack: str
    checkpoint: str


class RunReader:
    """Reads what the database has not from the run folders and the dataset, as far as they are there."""

    def __init__(self, folders: dict[str, RunFolder], data: Path | None, images: int) -> None:
        """`folders`: by name. `images`: how many adversarial examples of each run to compute."""
        self._folders, self._data, self._images = folders, data, images
        self._root = DataRoot(data)
        self._labels: dict[str, Any] = {}

    def details(self, run: RunRow, label: str, epochs: Sequence[Epoch], selection: Selection) -> RunDetails:
        """Return what the page of a run, which has its per-image results, shows."""
        folder = self._folders.get(Path(run.folder).name)
        checkpoint = "best" if "best" in run.checkpoints else "last"
        examples = self._examples(folder, checkpoint) if folder and run.status == "finished" else None
        figures = run_figures(run, label, epochs, selection)
        return RunDetails(
            facts=list(_facts(run)),
            accuracies=_accuracies(run),
            parts=_parts(run),
            classes=_classes(run, self._labels_of(run, folder) if folder else None),
            epochs=_epochs(epochs),
            curve=Markup(svg(figures, "curves", "run-")) if len(epochs) else None,  # noqa: S704
            examples=tuple(_pictures(examples)) if examples else (),
            attack=examples.attack if examples else "",
            checkpoint=checkpoint,
        )

    def _examples(self, folder: RunFolder, checkpoint: str) -> AdversarialExamples | None:
        try:
            return adversarial_examples(folder, checkpoint, self._images, data=self._data) if self._images else None
        except BenchError:  # no weights, no images, or others than those of the run
            return None

    def _labels_of(self, run: RunRow, folder: RunFolder) -> Any:
        """Return the labels of a run's test images, int64, [n]; None unless the very images are here."""
        if "data" not in run.environment:
            return None
        try:
            cell = recorded_cell(folder)
            self._root.check(cell, folder)
            settings = cell.protocol.dataset
            if run.protocol_fingerprint not in self._labels:
                dataset = dataset_of(settings)
                _, _, test = dataset.select(dataset.locate(self._data))
                self._labels[run.protocol_fingerprint] = test.split.labels[test.index.numpy()]
        except (BenchError, OSError, ValueError):
            return None
        return self._labels[run.protocol_fingerprint]


def _facts(run: RunRow) -> Iterator[tuple[str, str]]:
    reason = f": {run.reason}" if run.reason else ""
    yield "Status", run.status + reason
    yield "Epochs trained", str(run.epochs)
    for term, seconds in (
        ("Training", run.train_seconds),
        ("Tracking after every epoch", run.track_seconds),
        ("Final attacks", run.evaluation_seconds),
    ):
        if seconds is not None:
            yield term, duration(seconds)
    if run.train_pflop is not None:
        yield "Work of training", f"{run.train_pflop:.3g} PFLOP"
    if run.peak_memory_bytes is not None:
        yield "Peak memory", byte_size(run.peak_memory_bytes)
    if ingested := run.environment.get("ingested"):
        yield "Measured elsewhere", f"bundle {ingested['bundle'][:12]}, {ingested['origin'] or 'origin not stated'}"
    for incident in run.incidents or ():
        yield "Incident", incident
    yield from recorded(run)
    yield "Run folder", Path(run.folder).name
    yield "Fingerprint", run.fingerprint


# --- tables ----------------------------------------------------------------------------------------------------------


def _checkpoints(run: RunRow) -> list[CheckpointRow]:
    return [run.checkpoints[name] for name in CHECKPOINTS if name in run.checkpoints]


def _attacks(run: RunRow) -> dict[str, str]:
    """Return the titles of a run's attacks by key, in the order of the protocol."""
    names = [attack["name"] for attack in run.protocol.content["evaluation"]["final"]]
    outcomes = {key: outcome for row in _checkpoints(run) for key, outcome in row.outcomes.items()}
    ordered = sorted(outcomes.values(), key=lambda one: ([*names, one.attack].index(one.attack), one.title, one.key))
    titles = disambiguate([one.title for one in ordered], [one.identity for one in ordered])
    return {one.key: title for one, title in zip(ordered, titles, strict=True)}


def _accuracies(run: RunRow) -> Table:
    """Return a line for each attack: accuracy at every checkpoint, and the gap."""
    checkpoints = _checkpoints(run)
    gap = {"best", "last"} <= run.checkpoints.keys()
    columns = [Column("", "Attack", numeric=False), Column("", "Images")]
    for row in checkpoints:
        group = f"{row.name.replace('_', ' ')}, epoch {row.epoch + 1}"
        columns += [Column(group, "accuracy"), Column(group, LEVEL)]
    columns += [Column("gap", "points"), Column("gap", LEVEL)] if gap else []
    lines = []
    for key, title in _attacks(run).items():
        outcomes = [row.outcomes.get(key) for row in checkpoints]
        cells = [Cell(title), Cell(f"{next(filter(None, outcomes)).images:,}")]
        for outcome in outcomes:
            cells += _share(outcome.accuracy, interval_of(outcome)) if outcome else _NOTHING
        if gap:
            cells += _gap(*(run.checkpoints[name].outcomes.get(key) for name in ("best", "last")))
        lines.append(tuple(cells))
    return Table("Accuracies", tuple(columns), tuple(lines), ())


_NOTHING = [Cell(NONE), Cell(NONE)]


def _share(share: float, interval: Interval) -> list[Cell]:
    return [Cell(percent(share), share), Cell(" to ".join(map(percent, interval)), interval[0])]


def _gap(best: OutcomeRow | None, last: OutcomeRow | None) -> list[Cell]:
    if best is None or last is None or best.count != last.count:
        return _NOTHING
    return _share(best.accuracy - last.accuracy, gap_interval_of(best, last))


def _parts(run: RunRow) -> Table:
    """Return the accuracy after each part of AutoAttack; no line if the run has none."""
    lines, parts = [], dict[str, None]()
    for row in _checkpoints(run):
        for outcome in row.outcomes.values():
            after = outcome.detail.get("accuracy_after") or {}
            parts |= dict.fromkeys(["clean", *outcome.identity.get("attacks", ())])
            if after:
                lines.append((f"{row.name.replace('_', ' ')}, {outcome.title}", after))
    parts = {part: None for part in parts if any(part in after for _, after in lines)}
    columns = [Column("", "Checkpoint", numeric=False), *(Column("", part) for part in parts)]
    rows = [
        (Cell(name), *(Cell(percent(after[part]), after[part]) if part in after else Cell(NONE) for part in parts))
        for name, after in lines
    ]
    return Table("After each part of AutoAttack", tuple(columns), tuple(rows), ())


def _classes(run: RunRow, labels: Any) -> Table:
    """Return a line for each class: accuracy under each attack at best and at last; none where it is not known.

    `labels`: int64, [n], of the test images, for outcomes that do not state their classes; None if unknown.
    """
    counts: dict[tuple[str, str], list[list[int]]] = {}
    attacks, checkpoints = _attacks(run), [row for row in _checkpoints(run) if row.name != "best_on_test"]
    for key in attacks:
        for row in checkpoints:
            if stated := key in row.outcomes and _per_class(row.outcomes[key], labels):
                counts[key, row.name] = stated
    columns = [Column("", "Class", numeric=False)]
    columns += [Column(attacks[key], name) for key, name in counts]
    size = max(map(len, counts.values()), default=0)
    rows = []
    for number in range(size):
        cells = [Cell(str(number))]
        for right, images in (of_class[number] if number < len(of_class) else (0, 0) for of_class in counts.values()):
            cells.append(Cell(percent(right / images), right / images) if images else Cell(NONE))
        rows.append(tuple(cells))
    return Table("Classes", tuple(columns), tuple(rows), ())


def _per_class(outcome: OutcomeRow, labels: Any) -> list[list[int]] | None:
    """Return for each class the numbers of correct and of attacked images, None if they are not known."""
    import torch

    if stated := outcome.detail.get("per_class"):
        counts: list[list[int]] = stated
        return counts
    if labels is None or len(labels) < outcome.count:
        return None
    every = torch.from_numpy(labels)
    return per_class(outcome.bits.unpack(), every[balanced_subset(every, outcome.count)], every)


def _epochs(epochs: Sequence[Epoch]) -> Table:
    """Return a line for each epoch, without the columns of images that were not tracked."""
    shares: dict[str, list[float | None]] = {
        "Training, attacked": [epoch.train_robust for epoch in epochs],
        "Validation, attacked": [epoch.validation_robust for epoch in epochs],
        "Test, attacked": [epoch.test_robust for epoch in epochs],
        "Test": [epoch.test_clean for epoch in epochs],
    }
    columns = [
        [Cell(str(epoch.epoch + 1), epoch.epoch) for epoch in epochs],
        [Cell(f"{epoch.lr:.4g}", epoch.lr) for epoch in epochs],
        [Cell(f"{epoch.train_loss:.4g}", epoch.train_loss) for epoch in epochs],
    ]
    tracked = {title: values for title, values in shares.items() if any(value is not None for value in values)}
    columns += [
        [Cell(NONE) if share is None else Cell(percent(share), share) for share in values]
        for values in tracked.values()
    ]
    titles = ("Epoch", "Learning rate", "Loss", *tracked)
    return Table("Epochs", tuple(Column("", title) for title in titles), tuple(zip(*columns, strict=True)), ())


# --- images ----------------------------------------------------------------------------------------------------------


def _pictures(examples: AdversarialExamples) -> Iterator[Example]:
    """Yield the examples; perturbations are scaled so that the largest is black or white."""
    for number, position in enumerate(examples.index.tolist()):
        label, predicted, attacked = (
            int(values[number]) for values in (examples.labels, examples.predictions, examples.adversarial_predictions)
        )
        image, adversarial = examples.images[number], examples.adversarial[number]
        added = adversarial - image
        scaled = 0.5 + added / (2 * max(float(added.abs().max()), math.ulp(1.0)))
        first, second, third = (_png(picture.numpy()) for picture in (image, scaled, adversarial))
        yield Example(position, first, second, third, label, predicted, attacked)


def _png(pixels: Any) -> str:
    """Return an image, float, [channels, height, width], in [0, 1], as the `data:` URL of a PNG file."""
    from PIL import Image

    values = (255 * pixels).round().astype("uint8")
    picture = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
