"""One epoch of every method of every suite of a paper, on digits in the shape of the suite's images."""

from dataclasses import replace

import pytest
import yaml

from bench import registry
from bench.config.suite import load_suite, shipped_suites
from bench.data.dataset import ImageSet, arrays
from bench.data.datasets.digits import load
from bench.execution.worker import Job, execute
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder

TRAIN, TEST, HELD_OUT = 20, 4, 4


def digits(part, count):
    """The first digits as colour images of 32x32 pixels."""
    shown = part.pixels[:count].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    return ImageSet(shown.contiguous(), part.labels[:count])


@pytest.fixture(params=[name for name in shipped_suites() if name.startswith("papers/")])
def suite(request, tmp_path):
    """The suite with one epoch, small batches, few steps, a small network, and without AutoAttack."""
    data = yaml.safe_load(shipped_suites()[request.param].read_text(encoding="utf-8"))
    training, evaluation, dataset = data["training"], data["evaluation"], data["dataset"]
    train, test = load()
    files = arrays(digits(train, TRAIN), digits(test, TEST))
    registered = registry.DATASETS.get(dataset["name"])
    stand_in = replace(registered, train_images=TRAIN, test_images=TEST, find=lambda *_: files)
    registry.DATASETS._added[dataset["name"]] = stand_in
    if dataset["validation"] != "none":
        by_index = isinstance(dataset["validation"], str)
        dataset["validation"] = f"{TRAIN - HELD_OUT}-{TRAIN - 1}" if by_index else HELD_OUT
    data["model"] = "preact_resnet8_32"
    training |= {"epochs": 1, "batch_size": 8}
    training["attack"]["steps"] = min(training["attack"]["steps"], 2)
    evaluation["track"]["attack"]["steps"] = 1
    evaluation["final"] = ["clean", {**evaluation["final"][1], "steps": 1}]
    data["methods"] = [{"name": row} if isinstance(row, str) else row for row in data["methods"]]
    for row in data["methods"]:
        if row["name"] == "wot":
            row["params"] = row.get("params", {}) | {"images": HELD_OUT}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(data | {"seeds": data["seeds"][:1]}))
    return load_suite(str(path))


@pytest.mark.slow
def test_an_epoch_of_every_method(suite, tmp_path):
    for cell in suite.cells:
        assert execute(Job(cell, tmp_path, ("cpu",), None, 1)) == "finished"
        folder = RunFolder.of(cell, tmp_path)
        (record,) = folder.epochs()
        entries = Checkpoints(folder.checkpoints).entries
        assert set(entries) == {"best", "best_on_test", "last"}
        if not cell.protocol.dataset.held_out:
            assert entries["best"] == entries["best_on_test"]
            assert record["validation"] == record["test"]
        assert len(folder.read_outcomes()) == len(entries) * len(cell.protocol.evaluation.final)
