"""Images beside those of the dataset: read, verified, a fixed share of every batch."""

import re

import numpy as np
import pytest
import torch

from bench.config.augmentation import Mix
from bench.config.protocol import Protocol
from bench.data.batches import Extra, TrainingBatches
from bench.data.dataset import ImageSet, dataset_of
from bench.data.extra import extra_images, load_splits
from bench.errors import BenchError, NotFound
from bench.execution.plan import check_data, plan
from bench.execution.worker import Job, execute
from bench.storage.run_folder import RunFolder
from bench.testing.conformance import curve
from bench.utils.files import file_sha256
from bench.utils.rng import RngStreams

RANDOM = np.random.default_rng(0)


@pytest.fixture
def cell(load, tmp_path):
    """Return the cell of the tiny suite with extra data of the given arrays."""

    def cell(digest=None, settings="share: 0.25", **arrays):
        path = tmp_path / "extra.npz"
        given = {"image": RANDOM.integers(0, 256, (300, 8, 8, 1), np.uint8), "label": RANDOM.integers(0, 10, 300)}
        np.savez(path, **{key: value for key, value in (given | arrays).items() if value is not None})
        stated = f"{{file: extra.npz, digest: '{digest or file_sha256(path)}', {settings}}}"
        return load({"batch_size: 64": f"batch_size: 64\n  extra_data: {stated}"}).cells[0]

    return cell


@pytest.mark.slow
def test_a_run_trains_on_the_extra_images(cell, tmp_path):
    made = cell(settings="share: 0.25, label_smoothing: 0.1")
    jobs = [Job(made, tmp_path / name, ("cpu",), tmp_path, 1) for name in ("once", "twice")]
    assert [execute(job) for job in jobs] == ["finished", "finished"]
    assert curve(jobs[0].folder.epochs()) == curve(jobs[1].folder.epochs())
    dataset = dataset_of(made.protocol.dataset)
    splits = load_splits(made.protocol, dataset, tmp_path)
    assert len(splits.extra) == 300
    assert splits.digests() == dataset.splits(tmp_path).digests()
    recorded = RunFolder.of(made, tmp_path / "once").cell()["identity"]["protocol"]["training"]["extra_data"]
    assert recorded["digest"] == file_sha256(tmp_path / "extra.npz")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"image": np.zeros((3, 8, 9, 1), np.uint8)}, "'image' has the shape [3, 8, 9, 1]; the suite states images of"),
        ({"image": np.zeros((300, 8, 8, 1), np.float32)}, "'image' holds float32, not uint8"),
        ({"image": None}, "has no key 'image'; it has label"),
        ({"label": np.zeros(299, int)}, "not one whole number for each of 300 images"),
        ({"label": np.full(300, 10)}, "'label' has the label 10; the suite states 10 classes"),
        ({"digest": "0" * 64}, "has the SHA-256 "),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(cell, tmp_path, arrays, sentence):
    states = plan([cell(**arrays)], tmp_path / "results")
    with pytest.raises(BenchError, match=re.escape(sentence)):
        check_data(states, tmp_path)
    with pytest.raises(NotFound, match=r"^extra_data: .*nowhere.extra\.npz does not exist$"):
        check_data(states, tmp_path / "nowhere")


def test_without_extra_data_there_are_none(load):
    protocol: Protocol = load().cells[0].protocol
    assert extra_images(protocol, dataset_of(protocol.dataset), None) is None


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(smoothing=0.0, steps=(), own=50):
    images = ImageSet(torch.zeros(own, 1, 4, 4, dtype=torch.uint8), torch.arange(own) % 10)
    further = ImageSet(torch.full((30, 1, 4, 4), 255, dtype=torch.uint8), torch.arange(30) % 10)
    return TrainingBatches(images, 8, steps, RngStreams(0), classes=10, extra=Extra(further, 3, smoothing))


def test_every_batch_has_the_share_and_an_epoch_its_length():
    made = batches()
    epoch = list(made)
    assert len(epoch) == len(made) == 6  # as without extra images
    index = torch.stack([batch.index for batch in epoch])
    assert ((index >= 50).sum(1) == 3).all()
    assert len(index[index < 50].unique()) == 6 * 5  # none twice
    for batch in epoch:
        assert torch.equal(batch.images.mean((1, 2, 3)), (batch.index >= 50).float())
        assert torch.equal(batch.labels, torch.where(batch.index >= 50, batch.index - 50, batch.index) % 10)
        assert batch.soft_labels is None
    assert len(made.images) == 80


def test_labels_of_extra_images_alone_are_smoothed():
    for batch in batches(smoothing=0.2):
        extra = batch.index >= 50
        right = batch.soft_labels.gather(1, batch.labels[:, None])[:, 0]
        assert right[extra] == pytest.approx(0.8 + 0.2 / 10)
        assert (right[~extra] == 1).all()
        assert batch.soft_labels.sum(1) == pytest.approx(1)


def test_smoothed_labels_are_mixed():
    (batch, *_) = batches(smoothing=0.2, steps=(Mix(name="mixup"),))
    assert batch.soft_labels.sum(1) == pytest.approx(1)
    assert ((batch.soft_labels > 0) & (batch.soft_labels < 0.03)).any()


def test_a_selection_chooses_among_the_others():
    made = batches()
    made.select(torch.arange(10, 30), torch.arange(1, 21).float())
    epoch = list(made)
    assert len(epoch) == 2
    for batch in epoch:
        own = batch.index < 50
        assert int(own.sum()) == 5
        assert set(batch.index[own].tolist()) <= set(range(10, 30))
        assert batch.weights[~own].tolist() == [1, 1, 1]
        assert batch.weights.mean() == pytest.approx(1)
