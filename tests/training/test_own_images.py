"""Methods that choose the images of an epoch, and methods that keep some of the training images."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.config.hyperparameters import MethodParams, hyperparameter
from bench.data.batches import Batch, TrainingBatches, hold_out, to_float
from bench.data.dataset import ImageSet
from bench.errors import BenchError
from bench.registry import METHODS
from bench.testing.conformance import (
    captured_steps_equal_eager_steps,
    resumes_exactly,
    small_cell,
    trainer_of,
)
from bench.training.flops import CountedFlops
from bench.utils.distributed import SINGLE_PROCESS, ProcessGroup
from bench.utils.rng import RngStreams
from methods.pgd_at import PGDAT


class Hardest(PGDAT):
    """From epoch 2 on, trains on the half with the largest loss in epoch 2, weighted by that loss."""

    info = replace(PGDAT.info, name="hardest")
    accepts_soft_labels = True

    def begin_training(self):
        self.chosen = self.losses = torch.empty(0)

    def select(self, epoch):
        if epoch < 2:
            return None
        if epoch == 2:
            images = self.context.batches.images
            (pixels,) = images.read([torch.arange(len(images))])
            with torch.no_grad():
                losses = F.cross_entropy(self.model.eval()(to_float(pixels)), images.labels, reduction="none")
            self.losses, self.chosen = losses.topk(len(images) // 2)
        return self.chosen, self.losses

    def state_dict(self):
        return {"chosen": self.chosen, "losses": self.losses}

    def load_state_dict(self, state):
        self.chosen, self.losses = state["chosen"], state["losses"]


class KeptParams(MethodParams):
    kept: int = hyperparameter(40, unit="images", provenance="declared", ge=1)

    @property
    def held_out(self):
        return self.kept


class Keeps(PGDAT):
    """Scales its loss by that on images of its own after the last epoch."""

    info = replace(PGDAT.info, name="keeps")
    Params = KeptParams

    def begin_training(self):
        self.scale = 1.0

    def end_epoch(self, epoch):
        with torch.no_grad():
            losses = [F.cross_entropy(self.model(b.images), b.labels) for b in self.context.held_out()]
        self.scale = torch.stack(losses).mean().item()

    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return loss * self.scale, logits

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]


@pytest.fixture(autouse=True)
def registered():
    METHODS.add("hardest", Hardest)
    METHODS.add("keeps", Keeps)


# --- selection --------------------------------------------------------------------------------------------------------


def test_a_selected_epoch_has_its_images_steps_weights_and_cost(tmp_path):
    trainer = trainer_of(small_cell("hardest"), tmp_path)
    seen = {}
    step = trainer.method.transform

    def watched(batch):
        seen.setdefault(len(trainer.history), []).append(batch)
        return step(batch)

    trainer.method.transform = watched
    trainer.run(4)
    assert [len(seen[epoch]) for epoch in range(4)] == [5, 5, 2, 2]  # 160 images, then 80, in batches of 32
    assert seen[1][0].weights is None
    assert not torch.equal(seen[2][0].index, seen[3][0].index)  # shuffled in every epoch
    chosen = dict(zip(trainer.method.chosen.tolist(), trainer.method.losses.tolist(), strict=True))
    for batch in (*seen[2], *seen[3]):
        expected = torch.tensor([chosen[index] for index in batch.index.tolist()])
        assert batch.weights == pytest.approx(expected / expected.mean(), rel=1e-5)
    full, selecting, selected = (trainer.history[epoch]["train_pflop"] for epoch in (1, 2, 3))
    assert selected == pytest.approx(full * 2 / 5)
    assert selecting > selected  # the pass over all images is counted


def test_work_after_the_last_batch_is_counted(tmp_path):
    cell = small_cell("keeps")
    whole, without = (trainer_of(cell, tmp_path / name) for name in ("whole", "without"))
    without.method.end_epoch = lambda epoch: None
    for trainer in (whole, without):
        trainer.run(1)
    with CountedFlops() as counted:
        whole.method.end_epoch(0)
    assert counted.flops > 0
    more = whole.history[0]["train_pflop"] - without.history[0]["train_pflop"]
    assert more == pytest.approx(counted.flops / 1e15)


def test_weights_are_those_of_the_mean_of_the_losses(tmp_path):
    method = trainer_of(small_cell("hardest"), tmp_path).method
    batch = next(iter(method.context.batches))
    weights = torch.rand(len(batch))
    loss, logits = method.loss(replace(batch, weights=weights), batch.images)
    each = F.cross_entropy(logits, batch.labels, reduction="none")
    assert loss.item() == pytest.approx((weights * each).mean().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hardest", "keeps"])
def test_resume_and_capture(tmp_path, name):
    resumes_exactly(name, tmp_path / "resume")
    captured_steps_equal_eager_steps(name, tmp_path / "capture")


def batches(count=50, size=8, group=SINGLE_PROCESS):
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return TrainingBatches(ImageSet(pixels, torch.arange(count) % 10), size, (), RngStreams(0), group)


def test_a_selection_must_fill_a_batch_and_ends_with_none():
    made = batches()
    made.select(torch.arange(20, 30))
    (only,) = made
    assert len(made) == 1
    assert set(only.index.tolist()) <= set(range(20, 30))
    made.select(None)
    assert len(made) == 6
    with pytest.raises(BenchError, match="^only 7 images are left to train on, too few for one batch of 8$"):
        made.select(torch.arange(7))


def test_processes_share_the_weights_of_a_batch():
    weights = torch.rand(16, generator=torch.Generator().manual_seed(0))
    whole = batches()
    whole.select(torch.arange(16), weights)
    expected = list(whole)
    for rank in range(2):
        part = batches(group=ProcessGroup(rank, 2))
        part.select(torch.arange(16), weights)
        for ours, full in zip(part, expected, strict=True):
            assert torch.equal(ours.weights, full.weights.chunk(2)[rank])
            assert torch.equal(ours.index, full.index.chunk(2)[rank])


# --- held-out images --------------------------------------------------------------------------------------------------


def test_a_method_keeps_images_that_it_does_not_train_on(tmp_path):
    trainer = trainer_of(small_cell("keeps"), tmp_path)
    kept = list(trainer.method.context.held_out())
    assert [len(batch) for batch in kept] == [32, 8]
    assert len(trainer.batches.images) == 160
    assert isinstance(kept[0], Batch)
    own, (pixels,) = torch.cat([batch.images for batch in kept]), trainer.batches.images.read([torch.arange(160)])
    distances = torch.cdist(own.flatten(1), to_float(pixels).flatten(1))
    assert (distances.amin(1) > 0).all()
    assert torch.equal(torch.cat([batch.images for batch in trainer.method.context.held_out()]), own)


def test_what_is_kept_depends_on_the_split_seed_alone():
    images = ImageSet(torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(100))
    rest, kept = hold_out(images, 30, seed=0)
    assert sorted([*rest.labels.tolist(), *kept.labels.tolist()]) == list(range(100))
    assert torch.equal(hold_out(images, 30, seed=0)[1].labels, kept.labels)
    assert not torch.equal(hold_out(images, 30, seed=1)[1].labels, kept.labels)
    assert hold_out(images, 0, seed=0) == (images, None)
    with pytest.raises(BenchError, match="^the method holds out 101 of the training images, but there are only 100$"):
        hold_out(images, 101, seed=0)


@pytest.mark.parametrize("kept", [1034, 2000])
def test_a_method_that_keeps_too_much_is_refused_with_the_suite(load, tmp_path, kept):
    with pytest.raises(BenchError) as error:
        load({"methods: [pgd_at]": f"methods: [{{name: keeps, params: {{kept: {kept}}}}}]"})
    assert str(error.value) == (
        f"{tmp_path / 'suite.yaml'}:12: methods.0.params: the method holds out {kept} of the 1097 training images; "
        "too few for one batch are left"
    )
