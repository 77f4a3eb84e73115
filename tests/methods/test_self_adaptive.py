import torch
import torch.nn.functional as F


def test_targets_and_loss_follow_the_formula(start, follows, trained):
    method = start("self_adaptive", epochs=10, epoch=6)
    assert method.active
    trained(method.model)
    targets = F.one_hot(method.context.batches.images.labels, 10).double()

    def formula(network, batch, adversarial):
        clean, robust = network(batch.images), network(adversarial)
        log_p = clean - clean.logsumexp(1, keepdim=True)
        p, q = log_p.exp(), robust.softmax(1)
        targets[batch.index] = 0.9 * targets[batch.index] + 0.1 * p.detach()
        soft = targets[batch.index]
        weights = soft.max(1).values
        natural = (16 * weights / weights.sum() * -(soft * log_p).sum(1)).mean()
        return natural + 6 * (p * (p / q).log()).sum(1).mean()

    follows(method, formula, rtol=1e-5)
    torch.testing.assert_close(method.targets.double(), targets, rtol=1e-5, atol=1e-7)
    assert not torch.equal(targets, targets.round())


def test_labels_are_the_targets_until_the_seventieth_epoch(start, follows, trained):
    method = start("self_adaptive", epochs=100)
    for epoch, active in ((0, False), (68, False), (69, True)):  # the 70th is epoch 69
        method.begin_epoch(epoch)
        assert method.active == active
    method.begin_epoch(0)
    trained(method.model)

    def formula(network, batch, adversarial):
        """One pass of the clean images: the batch statistics are compared as well."""
        clean, robust = network(batch.images), network(adversarial)
        p, q = clean.softmax(1), robust.softmax(1)
        return F.cross_entropy(clean, batch.labels) + 6 * (p * (p / q).log()).sum(1).mean()

    follows(method, formula, rtol=1e-5)
    assert torch.equal(method.targets, method.targets.round())
