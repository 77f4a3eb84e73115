"""Adversarial examples of a run: test images, and what the protocol's PGD makes of them at a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.attacks.evaluate import EVALUATION_BATCH, EVALUATION_SEED, balanced_subset
from bench.attacks.outcome import Outcome
from bench.attacks.pgd import cross_entropy, pgd, random_perturbation
from bench.config.attacks import PGD, Threat
from bench.config.protocol import DatasetSettings
from bench.data.batches import to_float
from bench.data.dataset import Images, dataset_of
from bench.errors import BenchError
from bench.execution.data_identity import DataRoot
from bench.execution.final_evaluation import LAYOUT
from bench.storage.run_folder import RunFolder
from bench.training.load import load_checkpoint, recorded_cell
from bench.utils.device import exact_arithmetic
from bench.utils.rng import generator

MANY = 1000  # more than there are final attacks

NOT_ATTACKS = {"joint", "corruptions"}  # entries of the final evaluation that are no further attack


@dataclass(frozen=True)
class AdversarialExamples:
    """Some test images of a run and their adversarial examples, on the CPU.

    `attack`: title of the attack. `index`: positions among the protocol's test images, int64, [n]. `images` and
    `adversarial`: float32, [n, channels, height, width], in [0, 1]. `labels`, `predictions` (of `images`) and
    `adversarial_predictions`: int64, [n].
    """

    attack: str
    index: Tensor
    images: Tensor
    adversarial: Tensor
    labels: Tensor
    predictions: Tensor
    adversarial_predictions: Tensor


def adversarial_examples(
    folder: RunFolder,
    checkpoint: str = "best",
    images: int | Sequence[int] = 8,
    *,
    data: Path | None = None,
    device: str = "cpu",
) -> AdversarialExamples:
    """Attack some test images with the protocol's first final PGD, or if it has none, its tracking attack, in fp32.

    The random starts are those of the final evaluation on the same device, so an image is misclassified here if that
    attack broke it there, up to rounding. Of several restarts, the first that breaks an image gives its example.

    Args:
        folder: a run folder.
        checkpoint: best, best_on_test or last.
        images: positions among the test images, or the number of those that the most stored attacks broke.
        data: root folder of the datasets.
        device: cpu, cuda or cuda:N.

    Raises:
        NotFound: the dataset is missing.
        BenchError: there are other images than those of the run, no image has one of the positions, or as
            `bench.load_network`: the weights are missing.
    """
    cell = recorded_cell(folder)
    network: nn.Module = load_checkpoint(folder, cell, checkpoint)
    network = network.to(device, memory_format=LAYOUT)  # type: ignore[call-overload]
    test = _test_images(cell.protocol.dataset, data).to(torch.device(device))
    _data_root(data).check(cell, folder)
    if isinstance(images, int):
        images = most_broken(folder, checkpoint, test.labels.cpu())[:images].tolist()
    if outside := [index for index in images if not 0 <= index < len(test)]:
        raise BenchError(f"there is no test image {outside[0]}; {folder.path.name} has the images 0 to {len(test) - 1}")
    index = torch.tensor(images, dtype=torch.int64)
    chosen = test.take(index.to(test.labels.device))
    clean, labels = to_float(next(chosen.read([torch.arange(len(index))]))), chosen.labels
    final = [one for one in cell.protocol.evaluation.final if isinstance(one, PGD) and one.threat is None]
    attack, threat = (*final, cell.protocol.evaluation.track.attack)[0], cell.protocol.threat
    with exact_arithmetic():
        predictions = network(clean).argmax(1)
        adversarial, attacked = clean, labels
        for start in _starts(attack, threat, test.labels.cpu(), index, clean):
            last = pgd(
                network, clean, cross_entropy(labels),
                threat=threat, steps=attack.steps, step_size=attack.step_size, start=start,
            )  # fmt: skip
            robust = attacked == labels
            adversarial = torch.where(robust[:, None, None, None], last, adversarial)
            attacked = torch.where(robust, network(last).argmax(1), attacked)
    values = (clean, adversarial, labels, predictions, attacked)
    return AdversarialExamples(attack.title, index, *(value.cpu() for value in values))


def most_broken(folder: RunFolder, checkpoint: str, labels: Tensor) -> Tensor:
    """Return the positions of the test images, int64, [n], those that the most stored attacks broke first.

    Images that the network misclassifies without an attack come last; ties are in the order of the test set.

    Args:
        labels: of all test images, int64, [n].
    """
    broken = torch.zeros(len(labels), dtype=torch.int64)
    for (name, _), record in folder.read_outcomes().items():
        kind = record["attack"]["name"]
        if name == checkpoint and kind not in NOT_ATTACKS:
            wrong = torch.from_numpy(~Outcome.from_record(record).correct)
            broken[balanced_subset(labels, len(wrong))] += (-MANY if kind == "clean" else 1) * wrong
    return broken.argsort(descending=True, stable=True)


def _starts(attack: PGD, threat: Threat, labels: Tensor, index: Tensor, images: Tensor) -> list[Tensor]:
    """Return the first iterate of each restart for `images`, those at `index`: float, [n, channels, height, width].

    What the evaluation draws for its other images is drawn, too. Images that it does not attack come after them.

    Args:
        labels: of all test images, int64.
    """
    starts = [images.clone() for _ in range(attack.restarts or 1)]
    if attack.random_start:
        random = generator(EVALUATION_SEED, "evaluation", device=images.device)
        subset = balanced_subset(labels, attack.images)
        others = torch.arange(len(labels))[~torch.isin(torch.arange(len(labels)), subset)]
        for batch in (*torch.split(subset, EVALUATION_BATCH), *torch.split(others, EVALUATION_BATCH)):
            here, there = (index[:, None] == batch).nonzero(as_tuple=True)
            for start in starts:
                like = images.new_empty_strided((len(batch), *images.shape[1:]), images.stride())
                noise = random_perturbation(like, threat, random)
                start[here] = (images[here] + noise[there]).clamp_(0, 1)
    return starts


@lru_cache(maxsize=1)
def _test_images(settings: DatasetSettings, data: Path | None) -> Images:
    """Return the test images; those of the last call are kept, since the runs of a protocol share them."""
    dataset = dataset_of(settings)
    return dataset.load(dataset.select(dataset.locate(data))[2])


_data_root = lru_cache(maxsize=1)(DataRoot)
