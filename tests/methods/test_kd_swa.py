import copy

import pytest
import torch.nn.functional as F

from methods.averaging import SWA

SOON = 1e-9  # before an epoch


def soft_cross_entropy(logits, teacher, temperature):
    """-T² · mean over images of the sum of softmax(teacher / T) · log softmax(logits / T)."""
    p, q = (teacher / temperature).softmax(1), (logits / temperature).softmax(1)
    return -(temperature**2) * (p * q.log()).sum(1).mean()


def test_loss_and_two_updates_follow_the_formula(start, follows, trained):
    method = start("kd_swa")
    teachers = {name: trained(network).double() for name, network in method.context.teachers.items()}
    assert set(teachers) == {"natural", "robust"}

    def formula(network, batch, images):
        logits = network(images)
        natural, robust = (copy.deepcopy(teachers[name])(images).detach() for name in ("natural", "robust"))
        soft = 0.1 * soft_cross_entropy(logits, natural, 2) + 0.6 * soft_cross_entropy(logits, robust, 2)
        return 0.3 * F.cross_entropy(logits, batch.labels) + soft

    follows(method, formula, rtol=1e-5)
    assert not any(network.training for network in teachers.values())


def test_drops_and_average(start):
    method = start("kd_swa", epochs=200)
    plan = method.lr_schedule
    rates = [plan.rate(t) for t in (1, 50 - SOON, 50, 150 - SOON, 150, 200)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert plan.first_drop == 50
    assert type(method).end_epoch is SWA.end_epoch  # the first epoch averaged is 55
    assert round(method.params.start * 200) + plan.first_drop == 55


def test_the_labels_have_no_negative_weight(start):
    with pytest.raises(ValueError, match="leave of 1"):
        start("kd_swa", natural_weight=0.5)
    start("kd_swa", natural_weight=0.4)  # nothing is left for the labels
