"""What trackers record of a run folder beside its curve: final accuracies, costs, adversarial examples."""

from __future__ import annotations

import logging
import re
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.errors import BenchError
from bench.execution.examples import adversarial_examples
from bench.reporting.labels import disambiguate
from bench.storage.run_folder import CHECKPOINTS, RunFolder
from bench.trackers.tracker import FINAL, Picture, flat

log = logging.getLogger(__name__)

COSTS = ("train_pflop", "train_seconds", "track_seconds", "evaluation_seconds", "peak_memory_bytes")

EXAMPLES = 8  # images of a picture

SIDE = 64  # pixels to which smaller images are enlarged

_one_at_a_time = threading.Lock()


def epoch_metrics(record: dict[str, Any]) -> dict[str, float]:
    """Return a line of `epochs.jsonl` as metrics: {"train/loss": ...}."""
    return {name: value for name, value in flat(record, "/").items() if name != "epoch"}


def final_metrics(folder: RunFolder) -> dict[str, float]:
    """Return the accuracies of the checkpoints, shares in [0, 1], and the costs: {"final/best/PGD-20": ...}."""
    result, outcomes = folder.result() or {}, folder.read_outcomes()
    metrics = {f"{FINAL}/{key}": result[key] for key in COSTS if result.get(key) is not None}
    for checkpoint in CHECKPOINTS:
        records = [record for (name, _), record in outcomes.items() if name == checkpoint]
        titles = disambiguate([record["title"] for record in records], [record["attack"] for record in records])
        for title, record in zip(titles, records, strict=True):
            name = re.sub(r"[^\w. -]", "", title.replace("/", " of ").replace("=", " "))  # what all trackers allow
            metrics[f"{FINAL}/{checkpoint}/{name}"] = record["right"] / record["count"]
    return metrics


def pictures(folder: RunFolder, data: Path | None, device: str = "cpu") -> list[Picture]:
    """Return the images that most attacks broke at the checkpoint `best`, above their adversarial examples.

    If they cannot be computed, a warning says why, and none is returned.
    """
    with _one_at_a_time:  # several trackers ask for the same
        return _pictures(folder.path, data, device)


@lru_cache(maxsize=8)
def _pictures(folder: Path, data: Path | None, device: str) -> list[Picture]:
    from torchvision.utils import make_grid  # slow to import

    try:
        shown = adversarial_examples(RunFolder(folder), "best", EXAMPLES, data=data, device=device)
    except BenchError as error:
        log.warning("no adversarial examples of %s: %s", folder.name, error)
        return []
    images = torch.cat([shown.images, shown.adversarial])
    images = F.interpolate(images, scale_factor=max(1, SIDE // images.shape[-1]))  # nearest
    grid = make_grid(images, nrow=len(shown.index), padding=2, pad_value=1)
    pixels = (255 * grid).round().to(torch.uint8).permute(1, 2, 0).numpy()
    described = (
        f"{index}: class {label}, predicted {before}, under attack {after}"
        for index, label, before, after in zip(
            *(
                values.tolist()
                for values in (shown.index, shown.labels, shown.predictions, shown.adversarial_predictions)
            ),
            strict=True,
        )
    )
    caption = f"Test images (above) and under {shown.attack} (below). {'; '.join(described)}"
    return [Picture("adversarial_examples/best", np.ascontiguousarray(pixels), caption)]
