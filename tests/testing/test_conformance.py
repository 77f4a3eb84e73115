"""Every check can fail: a method that breaks one point of the contract, and the check that sees it."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.config.hyperparameters import MethodInfo, MethodParams
from bench.data.batches import Batch
from bench.models.weight_averaging import frozen_copy
from bench.registry import METHODS
from bench.testing import CHECKS, NotConforming, conform
from bench.testing.conformance import captured_steps_equal_eager_steps, phases, same, small_cell, trainer_of
from bench.training.method import Method
from methods.fomo import FOMO


class Base(Method):
    info = MethodInfo(name="broken", title="Broken", description="Breaks one point", paper="none", year=2024)

    @property
    def late(self):
        """Whether the second half of training has begun: a breakage that only later epochs show."""
        return self.epoch >= self.lr_schedule.first_drop

    def begin_epoch(self, epoch):
        self.epoch = epoch


# --- perturbations ---------------------------------------------------------------------------------------------------


class TooFar(Base):
    def perturb(self, batch):
        return (batch.images + (0.2 if self.late else 0.0)).clamp(0, 1)


class FartherThanItStates(TooFar):
    class Params(MethodParams):
        @property
        def training_radius(self):
            return 1.5


class OutsideThePixelRange(Base):
    def perturb(self, batch):
        return batch.images + 0.01


class NotANumber(Base):
    def perturb(self, batch):
        return batch.images * torch.nan


class IgnoresTheNorm(Base):
    def perturb(self, batch):
        return (batch.images + 0.1 * torch.ones_like(batch.images)).clamp(0, 1)  # at most 0.1 a pixel, 0.8 in L2


class MovesTheImagesThemselves(Base):
    def perturb(self, batch):
        return batch.images.add_(0.5).clamp_(0, 1)


class TransformsOutOfRange(Base):
    def transform(self, batch):
        return Batch(batch.images * 2, batch.labels, batch.index)


class OtherShape(Base):
    def perturb(self, batch):
        return batch.images[1:]


# --- the loss --------------------------------------------------------------------------------------------------------


class LateNaN(Base):
    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return (loss * torch.nan if self.late else loss), logits


class LossOfEachSample(Base):
    def loss(self, batch, adversarial):
        logits = self.model(adversarial)
        return F.cross_entropy(logits, batch.labels, reduction="none"), logits


class TwoLogitsPerImage(Base):
    def loss(self, batch, adversarial):
        logits = self.model(torch.cat([batch.images, adversarial]))
        return F.cross_entropy(logits, batch.labels.repeat(2)), logits


# --- crafting --------------------------------------------------------------------------------------------------------


class LeavesGradients(Base):
    def perturb(self, batch):
        self.model.requires_grad_(True)
        with torch.enable_grad():
            F.cross_entropy(self.model(batch.images), batch.labels).backward()
        return super().perturb(batch)


class LeavesItFrozen(Base):
    def begin_training(self):
        self.model.body.conv1.requires_grad_(False)


class ChangesWeights(Base):
    def perturb(self, batch):
        with torch.no_grad():
            self.model.body.linear.bias.add_(0.1)
        return super().perturb(batch)


class LeavesEvalMode(Base):
    def perturb(self, batch):
        self.model.eval()
        return super().perturb(batch)


class WritesIntoTheCleanImages(Base):
    def perturb(self, batch):
        adversarial = super().perturb(batch)
        batch.images.copy_(adversarial)
        return adversarial


class ReadsTheLabels(Base):
    accepts_soft_labels = True

    def loss(self, batch, adversarial):
        logits = self.model(adversarial)
        return F.cross_entropy(logits, batch.labels if self.late else batch.targets), logits


# --- gradients -------------------------------------------------------------------------------------------------------


class UnusedParameter(Base):
    def build(self, network):
        network.spare = nn.Parameter(torch.ones(3))
        return network


class InfiniteGradient(Base):
    def backward(self, batch, adversarial):
        found = super().backward(batch, adversarial)
        self.model.body.linear.bias.grad[0] = torch.inf
        return found


class NoGradient(Base):
    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return loss * (0 if self.late else 1), logits


# --- seeds and states ------------------------------------------------------------------------------------------------


class DrawsFromTheGlobalGenerator(Base):
    """The trainer seeds global state for the batches, for layers such as dropout, and not for what is between them."""

    def begin_epoch(self, epoch):
        self.brightness = 0.1 * torch.rand(())

    def transform(self, batch):
        return Batch((batch.images + self.brightness).clamp(0, 1), batch.labels, batch.index)


class ForgetsItsState(Base):
    """Its loss grows with the number of steps, which it does not save."""

    def begin_training(self):
        self.steps = 0

    def after_step(self):
        self.steps += 1

    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return loss * (1 + 0.1 * self.steps), logits


class KeepsAGeneratorOfItsOwn(Base):
    """Reproducible from the start, but its generator is not where it was after a resume."""

    def begin_training(self):
        self.random = torch.Generator().manual_seed(0)

    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return loss * (1 + torch.rand((), generator=self.random)), logits


class ForgetsAtTheDrop(Base):
    """Remembers what it saw at the first rate drop, and loses it when it resumes later."""

    seen = 0.0

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        if epoch == self.lr_schedule.first_drop:
            self.seen = self.model.body.linear.bias[0].item()

    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return loss * (1 + self.seen), logits


class CountsSteps(Base):
    """Its counter grows in Python, so that a graph would repeat the value of the captured step."""

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        self.steps = 0

    def loss(self, batch, adversarial):
        self.steps += 1
        loss, logits = super().loss(batch, adversarial)
        return loss * self.steps, logits


class WaitsForTheDevice(Base):
    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return (loss if loss.item() < 100 else loss * 0.5), logits


class SelectsByMask(Base):
    def loss(self, batch, adversarial):
        logits = self.model(adversarial)
        right = F.one_hot(batch.labels, 10).bool()
        return -logits.log_softmax(1)[right].mean(), logits


class DecidesOnTheHost(Base):
    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return loss * (1 + (random.random() < 0.5)), logits


class ForgetsTheDevice(Base):
    def perturb(self, batch):
        return batch.images + torch.zeros(batch.images.shape)


class LoadsNothing(Base):
    def begin_training(self):
        self.memory = torch.zeros(10)

    def after_step(self):
        self.memory += 1

    def state_dict(self):
        return {"memory": self.memory}


class EvaluatesAnotherStructure(Base):
    def evaluated_model(self):
        return nn.Sequential(self.model) if getattr(self, "epoch", 0) else self.model


class EvaluatesMoreThanItsWeights(Base):
    """The scale of its evaluated model is no part of the weights."""

    def begin_training(self):
        self.scale = 1.0

    def end_epoch(self, epoch):
        self.scale += 1

    def evaluated_model(self):
        model, scale = frozen_copy(self.model), self.scale
        model.register_forward_hook(lambda _module, _images, logits: logits * scale)
        return model


# --- learning --------------------------------------------------------------------------------------------------------


class LearnsNothing(Base):
    def loss(self, batch, adversarial):
        logits = self.model(adversarial)
        return F.cross_entropy(logits, (batch.labels + 1) % 10), logits


BREAKAGES = {
    "perturbations_stay_inside": {
        TooFar: "a perturbation of linf norm 0.2000 exceeds eps 0.1 in epoch 3",
        FartherThanItStates: "a perturbation of linf norm 0.2000 exceeds eps 0.15 in epoch 3",
        OutsideThePixelRange: "adversarial images are not in [0, 1] or change shape in epoch 0",
        NotANumber: "adversarial images are not in [0, 1]",
        IgnoresTheNorm: "a perturbation of l2 norm 0.",
        MovesTheImagesThemselves: "a perturbation of linf norm 0.5000 exceeds eps 0.1 in epoch 0",
        TransformsOutOfRange: "transformed images are not in [0, 1]",
        OtherShape: "adversarial images are not in [0, 1] or change shape",
    },
    "loss_is_finite": {
        LateNaN: "the loss in epoch 3 is nan",
        LossOfEachSample: "the loss in epoch 0 has shape [32], not one number",
        TwoLogitsPerImage: "the logits in epoch 0 have shape [64, 10]",
    },
    "crafting_leaves_no_trace": {
        LeavesGradients: "crafting left a gradient in body.conv1.weight in epoch 0",
        LeavesItFrozen: "body.conv1.weight is frozen after crafting in epoch 0",
        ChangesWeights: "crafting changed body.linear.bias in epoch 0",
        LeavesEvalMode: "the network is in eval mode after crafting in epoch 0",
        WritesIntoTheCleanImages: "crafting changed the clean images in epoch 0",
    },
    "soft_labels_replace_labels": {ReadsTheLabels: "the loss in epoch 3 is "},
    "every_parameter_gets_a_gradient": {
        UnusedParameter: "spare has no finite gradient after backward in epoch 0",
        InfiniteGradient: "body.linear.bias has no finite gradient after backward in epoch 0",
        NoGradient: "every gradient is zero in epoch 3",
    },
    "resumes_exactly": {
        DrawsFromTheGlobalGenerator: "two trainings with one seed end with different weights",
        ForgetsItsState: "stopped after 1 of 6 epochs and resumed, it ends with different weights",
        KeepsAGeneratorOfItsOwn: "stopped after 1 of 6 epochs and resumed, it ends with different weights",
        ForgetsAtTheDrop: "stopped after 4 of 6 epochs and resumed, it ends with different weights",
    },
    "captured_steps_equal_eager_steps": {
        CountsSteps: "captured steps end epoch 0 with other weights than eager ones",
        WaitsForTheDevice: "a step cannot be captured: aten._local_scalar_dense.default waits for the device",
        SelectsByMask: "a step cannot be captured: aten.index.Tensor waits for the device",
        DecidesOnTheHost: "a step cannot be captured: it draws random numbers on the host",
        ForgetsTheDevice: "it fails on another device than the CPU: aten.add.Tensor: expected all tensors to be on the "
        "same device, but one of shape [32, 1, 8, 8] is on the CPU",
    },
    "state_round_trips": {
        LoadsNothing: "its state is not what was loaded into it",
        EvaluatesAnotherStructure: "the weights of its evaluated model do not load into a fresh one",
        EvaluatesMoreThanItsWeights: "a fresh model with the weights of its evaluated one answers differently",
    },
    "learns_something": {LearnsNothing: "after one epoch it is right about "},
}


@pytest.mark.parametrize(
    ("check", "breakage", "problem"),
    [
        pytest.param(check, breakage, problem, id=breakage.__name__)
        for check in CHECKS
        for breakage, problem in BREAKAGES[check.__name__].items()
    ],
)
def test_the_check_sees_it(tmp_path, check, breakage, problem):
    METHODS.add("broken", breakage)
    with pytest.raises(NotConforming) as error:
        check("broken", tmp_path)
    assert str(error.value).startswith(f"broken: {problem}")


def test_every_check_has_a_breakage():
    assert list(BREAKAGES) == [check.__name__ for check in CHECKS]


def test_conform_runs_every_check_until_one_fails(monkeypatch):
    called = []
    checks = tuple(lambda method, folder, n=n: called.append((n, method, folder.is_dir())) for n in range(3))
    monkeypatch.setattr("bench.testing.conformance.CHECKS", checks)
    conform("pgd_at")
    assert called == [(n, "pgd_at", True) for n in range(3)]
    monkeypatch.undo()
    METHODS.add("broken", NotANumber)
    with pytest.raises(NotConforming, match="adversarial images are not"):
        conform("broken")


class SlowFOMO(FOMO):
    """Forgets every other epoch, so that one epoch relearns without forgetting."""

    def begin_training(self):
        self.params = self.params.model_copy(update={"relearning": 0.34})
        super().begin_training()


def test_resuming_between_two_forgettings(tmp_path):
    METHODS.add("slow_fomo", SlowFOMO)
    {check.__name__: check for check in CHECKS}["resumes_exactly"]("slow_fomo", tmp_path)


def test_the_small_trainings_see_every_phase(tmp_path):
    trainer = trainer_of(small_cell("dom_re"), tmp_path)
    masks = [method.mask for _, method, _ in phases(trainer) if hasattr(method, "mask")]
    assert any(not mask.all() and mask.any() for mask in masks)  # some samples are over-memorised, some are not


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": [1, torch.ones(2)]}, {"a": [1, torch.ones(2)]}, True),
        ({"a": [1, torch.ones(2)]}, {"a": [1, torch.zeros(2)]}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": (1, 2)}, {"a": (1,)}, False),
        (1, 2, False),
    ],
)
def test_states_are_compared_to_the_leaves(one, other, equal):
    assert same(one, other) == equal


def test_a_method_that_declares_it_is_not_captured(tmp_path):
    METHODS.add("counting", type("Declared", (CountsSteps,), {"captured": False}))
    captured_steps_equal_eager_steps("counting", tmp_path)
