"""Adversarial examples of finished runs are those of the final evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import bench
from bench.attacks import evaluate
from bench.attacks.outcome import Outcome
from bench.attacks.pgd import pgd
from bench.data.dataset import dataset_of
from bench.execution import examples
from bench.execution.examples import adversarial_examples, most_broken
from bench.execution.worker import Job, execute
from bench.storage.run_folder import RunFolder, run_folders
from bench.utils.files import write_record


@pytest.fixture
def folder(copy_of_results):
    return run_folders(copy_of_results)[0]


def correct(folder, checkpoint, attack):
    """Return the stored bits under an attack, given the beginning of its key."""
    outcomes = folder.read_outcomes()
    return next(
        Outcome.from_record(outcomes[key]).correct
        for key in outcomes
        if key[0] == checkpoint and key[1].startswith(attack)
    )


def test_predictions_are_those_of_the_stored_outcomes(folder):
    index = list(range(0, 360, 9))
    shown = adversarial_examples(folder, "last", index)
    assert shown.attack == "PGD-3"
    assert shown.index.tolist() == index
    assert (shown.predictions == shown.labels).tolist() == correct(folder, "last", "clean")[index].tolist()
    assert (shown.adversarial_predictions == shown.labels).tolist() == correct(folder, "last", "pgd")[index].tolist()
    assert 0 < float((shown.adversarial - shown.images).abs().max()) <= 0.15 + 1e-6
    assert 0 <= float(shown.adversarial.min()) <= float(shown.adversarial.max()) <= 1
    again = adversarial_examples(folder, "last", [index[7]])
    torch.testing.assert_close(again.adversarial[0], shown.adversarial[7])


def test_restarts_and_subsets_start_as_in_the_evaluation(load, copy_of_results, monkeypatch):
    starts = []

    def record(*args, start, **settings):
        starts.append(start)
        return pgd(*args, start=start, **settings)

    for module in (evaluate, examples):
        monkeypatch.setattr(module, "EVALUATION_BATCH", 40)
        monkeypatch.setattr(module, "pgd", record)
    settings = "{name: pgd, steps: 1, step_size: 0.1, restarts: 2, images: 100}"
    cell = load({"{name: pgd, steps: 3, step_size: 0.05}": settings}).cells[0]
    assert execute(Job(cell, copy_of_results, ("cpu",), None, 1)) == "finished"
    folder = RunFolder.of(cell, copy_of_results)
    evaluated = [torch.cat(starts[restart:6:2]) for restart in (0, 1)]  # of 3 batches
    starts.clear()
    labels = dataset_of(cell.protocol.dataset).splits(None).test.labels
    subset = evaluate.balanced_subset(labels, 100).tolist()
    other = max(set(range(len(labels))) - set(subset))
    shown = adversarial_examples(folder, "best", [*subset, other])
    assert [torch.equal(start[:-1], expected) for start, expected in zip(starts, evaluated, strict=True)] == [True] * 2
    assert not torch.equal(starts[0][-1], shown.images[-1])
    stored = correct(folder, "best", "pgd")
    assert (shown.adversarial_predictions == shown.labels)[:-1].tolist() == stored.tolist()


def test_most_broken_images_come_first(folder):
    clean, pgd = correct(folder, "best", "clean"), correct(folder, "best", "pgd")
    outcome = Outcome.from_record(next(iter(folder.read_outcomes().values())))
    for kind, bits in {"joint": pgd[:100] & False, "corruptions": np.zeros(3 * len(pgd), bool)}.items():
        other = replace(outcome, attack={"name": kind}, correct=bits)
        write_record(folder.outcome_path("best", kind), other.to_record())
    broken = [index for index in range(len(clean)) if clean[index] and not pgd[index]]
    assert len(broken) > 3
    order = most_broken(folder, "best", torch.zeros(len(clean)))
    assert order[: len(broken)].tolist() == broken
    assert not clean[order[-1]]
    assert adversarial_examples(folder, images=3).index.tolist() == broken[:3]


def test_the_tracking_attack_stands_in_for_a_missing_final_pgd(folder):
    content = folder.cell()
    content["cell"]["protocol"]["evaluation"]["final"] = [{"name": "clean"}]
    write_record(folder.path / "cell.json", content)
    assert adversarial_examples(folder, images=[0]).attack == "PGD-2"


def test_missing_weights_images_and_other_data_are_named(folder):
    with pytest.raises(bench.BenchError, match="has no checkpoint 'first'; it has best, best_on_test, last"):
        adversarial_examples(folder, "first")
    count = len(correct(folder, "best", "clean"))
    with pytest.raises(bench.BenchError, match=f"there is no test image {count}; .* has the images 0 to {count - 1}"):
        adversarial_examples(folder, images=[0, count])
    folder.record_data({"training": "0", "test": "0"})
    with pytest.raises(bench.BenchError, match="used other data than those present"):
        adversarial_examples(folder)
    for file in folder.checkpoints.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(bench.DamagedFile, match="is missing, though the index names it"):
        adversarial_examples(folder)
