import pytest
import torch
import torch.nn.functional as F


def losses(network, batch, images):
    return F.cross_entropy(network(images), batch.labels, reduction="none")


def test_small_losses_are_constant_as_in_the_released_code(start, follows, trained):
    def formula(network, batch, images):
        each = losses(network, batch, images)
        assert 0 < int((each < 2.3).sum()) < 16  # both kinds
        return torch.stack([loss if loss >= 2.3 else loss.new_tensor(2.3) for loss in each]).mean()

    method = start("mlcat_ls", threshold=2.3)
    trained(method.model)
    follows(method, formula, rtol=1e-5)


def test_small_losses_are_scaled_as_the_formula_reads(start, follows, trained):
    def formula(network, batch, images):
        each = losses(network, batch, images)
        return sum(loss if loss >= 2.3 else loss * (2.3 / loss.item()) for loss in each) / 16

    method = start("mlcat_ls", threshold=2.3, detached=True)
    trained(method.model)
    follows(method, formula, rtol=1e-5)


@pytest.mark.parametrize("margin", [20.0, 1e4])
@pytest.mark.parametrize("detached", [False, True])
def test_a_loss_that_rounds_to_zero_is_not_scaled(start, first_batch, monkeypatch, margin, detached):
    method = start("mlcat_ls", detached=detached)
    batch = first_batch(method)
    logits = (margin * F.one_hot(batch.labels, 10)).float().requires_grad_()
    monkeypatch.setattr(method, "model", lambda _images: logits)
    loss, _ = method.loss(batch, batch.images)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-8  # unscaled, 2e-9 for each wrong class, over 16 images


def test_the_published_values(start):
    assert start("mlcat_ls").params.model_dump() == {"threshold": 1.5, "detached": False}
    with pytest.raises(ValueError, match="threshold"):
        start("mlcat_ls", threshold=0)
