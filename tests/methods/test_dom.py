import pytest
import torch
import torch.nn.functional as F

from bench.config.hyperparameters import CanonicalValue
from bench.data.batches import Batch
from bench.registry import METHODS

TABLE = {  # threshold; blend and tries of AugMix; blend and tries of RandAugment
    "cifar10/natural": (0.2, (0.5, 3), (0.1, 3)),
    "cifar100/natural": (0.45, (0.5, 2), (0.1, 2)),
    "cifar10/multi_step": (1.5, (0.5, 2), (0.0, 2)),
    "cifar100/multi_step": (4.0, (0.5, 2), (0.0, 2)),
    "cifar10/single_step": (2.0, (0.5, 5), (0.1, 3)),
    "cifar100/single_step": (4.6, (0.5, 5), (0.1, 3)),
    "svhn/natural": (0.02, (0.5, 3), (0.5, 3)),
    "svhn/multi_step": (0.75, (0.5, 4), (0.25, 2)),
    "svhn/single_step": (1.0, (0.5, 4), (0.1, 4)),
}


@pytest.mark.parametrize("key", TABLE)
def test_the_published_values(key):
    threshold, augmix, randaugment = TABLE[key]
    dataset, setting = key.split("/")
    for name, augmentation in (("dom_re", None), ("dom_augmix", augmix), ("dom_randaugment", randaugment)):
        expected = {"threshold": threshold}
        if augmentation:
            expected |= {"blend": augmentation[0], "tries": augmentation[1]}
        found = METHODS.get(name).Params.canonical(dataset, setting)
        source = "code" if dataset == "cifar10" else "paper"  # the released repository holds CIFAR-10 alone
        assert found == {field: CanonicalValue(value, source) for field, value in expected.items()}


@pytest.mark.parametrize("name", ["dom_re", "dom_augmix", "dom_randaugment"])
def test_a_threshold_for_other_data_is_ours(name):
    for setting, threshold in (("natural", 0.2), ("single_step", 2.0), ("multi_step", 1.5)):
        assert METHODS.get(name).Params.canonical("digits", setting)["threshold"] == CanonicalValue(
            threshold, "declared"
        )


# --- the statistic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["none", {"steps": 1}, {"steps": 3}])
def test_the_statistic_is_the_clean_loss_before_the_attack_in_train_mode(start, first_batch, trained, attack):
    method = start("dom_re", epoch=3, attack=attack)
    trained(method.model)
    batch = first_batch(method)
    with torch.no_grad():
        expected = F.cross_entropy(method.model(batch.images), batch.labels, reduction="none")
        statistic = method.natural_loss(batch.images, batch.labels)
        in_eval_mode = F.cross_entropy(method.model.eval()(batch.images), batch.labels, reduction="none")
    torch.testing.assert_close(statistic, expected)
    assert (statistic - in_eval_mode).abs().max() > 1e-3


# --- removal ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_the_kept_is_averaged_over_the_full_batch(start, first_batch, trained):
    method = start("dom_re", epoch=3)
    trained(method.model)
    batch = first_batch(method)
    natural = method.natural_loss(batch.images, batch.labels).detach()
    threshold = natural.sort().values[6].item()  # ten of sixteen are kept, one of them exactly at the threshold
    method.params = method.params.model_copy(update={"threshold": threshold})
    assert method.transform(batch) is batch
    adversarial = (batch.images + 0.1).clamp(max=1)
    loss, logits = method.loss(batch, adversarial)
    by_hand = 0.0
    for own, clean, label in zip(logits.detach().double(), natural, batch.labels, strict=True):
        if clean >= threshold:
            by_hand += (torch.logsumexp(own, 0) - own[label]).item()
    assert loss.item() == pytest.approx(by_hand / 16, rel=1e-6)
    torch.testing.assert_close(logits, method.model(adversarial))


@pytest.mark.parametrize(("natural", "kept"), [(1.5, True), (1.4999, False), (1.6, True), (0.0, False)])
def test_at_the_threshold_a_sample_is_kept(start, first_batch, monkeypatch, natural, kept):
    method = start("dom_re", epoch=3)
    monkeypatch.setattr(method, "natural_loss", lambda _images, labels: torch.full((len(labels),), natural))
    batch = method.transform(first_batch(method))
    loss, logits = method.loss(batch, batch.images)
    expected = F.cross_entropy(logits, batch.labels).item() if kept else 0.0
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["dom_re", "dom_augmix"])
def test_nothing_happens_before_the_first_rate_drop(start, first_batch, monkeypatch, name):
    method = start(name, epochs=200, epoch=99, threshold=100.0)
    monkeypatch.setattr(method, "natural_loss", lambda *_: pytest.fail("probed"))
    batch = first_batch(method)
    assert method.transform(batch) is batch
    loss, logits = method.loss(batch, batch.images)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item())
    method.begin_epoch(100)
    with pytest.raises(pytest.fail.Exception, match="probed"):
        method.transform(batch)


# --- augmentation ----------------------------------------------------------------------------------------------------

IMAGES = [0.75, 0.5, 0.375, 0.125, 0.3125]  # each image is one grey, and its natural loss is that grey; threshold 0.5
ADDED = [0.125, 0.25, 0.0625]  # what the first, second and third augmentation add
EXPECTED = {
    # tries, blend: the first is never selected; the second (at the threshold) and the third are accepted at the first
    # try unless it is the last one anyway; the fifth is accepted at the second of three tries; the fourth never
    (1, 0.0): [0.75, 0.625, 0.5, 0.25, 0.4375],
    (1, 0.5): [0.75, 0.625, 0.5, 0.25, 0.4375],
    (2, 0.0): [0.75, 0.625, 0.5, 0.375, 0.5625],
    (2, 0.5): [0.75, 0.625, 0.5, 0.4375, 0.625],  # 0.125 -> (0.125 + 0.25) / 2 = 0.1875 -> + 0.25
    (3, 0.0): [0.75, 0.625, 0.5, 0.1875, 0.5625],
    (3, 0.5): [0.75, 0.625, 0.5, 0.375, 0.625],  # 0.1875 -> (0.1875 + 0.4375) / 2 = 0.3125 -> + 0.0625
}


@pytest.mark.parametrize(("tries", "blend"), EXPECTED)
def test_accept_blend_and_last_try(start, monkeypatch, tries, blend):
    method = start("dom_augmix", epoch=3, threshold=0.5, tries=tries, blend=blend)
    added = iter(ADDED)
    monkeypatch.setattr(method, "augmented", lambda images: images + next(added))
    monkeypatch.setattr(method, "natural_loss", lambda images, _labels: images.flatten())
    labels, index = torch.arange(5), torch.arange(5) + 7
    batch = method.transform(Batch(torch.tensor(IMAGES).view(5, 1, 1, 1), labels, index))
    assert batch.images.flatten().tolist() == EXPECTED[tries, blend]
    assert batch.labels is labels
    assert batch.index is index
    assert list(added) == ADDED[tries:]


@pytest.mark.parametrize("name", ["dom_augmix", "dom_randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_real_augmentations(start, name, channels):
    images = torch.randint(0, 256, (8, channels, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    images[4:] = images[:4]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    method = start(name, epoch=3)
    found = [method.augmented(images) for _ in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    again = start(name, epoch=3)
    torch.manual_seed(6)
    assert all(torch.equal(changed, again.augmented(images)) for changed in found)
    other = start(name, epoch=4)
    assert not all(torch.equal(changed, other.augmented(images)) for changed in found)
    assert not torch.equal(found[0], found[1])
    for changed in found:
        assert changed.shape == images.shape
        assert changed.min() >= 0
        assert changed.max() <= 1
        torch.testing.assert_close(changed * 255, (changed * 255).round())
        if name == "dom_randaugment":  # drawn once a call: equal images stay equal (AugMix mixes each by itself)
            assert torch.equal(changed[:4], changed[4:])


def test_the_attack_runs_on_the_augmented_images(start, first_batch):
    method = start("dom_randaugment", epoch=3, threshold=100.0)
    batch = first_batch(method)
    augmented = method.transform(batch)
    assert (augmented.images - batch.images).abs().max() > 0.1
    assert (method.perturb(augmented) - augmented.images).abs().max() <= 0.1 + 1e-6


def test_a_try_is_judged_among_the_whole_batch(start, first_batch, monkeypatch):
    method = start("dom_augmix", epoch=3, threshold=0.5, tries=2)
    probed = []

    def natural_loss(images, labels):
        probed.append(images)
        return torch.arange(len(labels)) / 16  # the first nine are selected

    monkeypatch.setattr(method, "natural_loss", natural_loss)
    monkeypatch.setattr(method, "augmented", lambda images: 1 - images)
    batch = first_batch(method)
    method.transform(batch)
    assert len(probed) == 2
    assert torch.equal(probed[1], torch.cat([1 - batch.images[:9], batch.images[9:]]))
