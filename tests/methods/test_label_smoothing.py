import pytest

from bench.errors import BenchError

SOON = 1e-9  # after the beginning of an epoch


def smoothed(logits, labels, on_label, on_others):
    """Cross-entropy with `on_label` on the label and `on_others` on each other class."""
    targets = logits.new_full(logits.shape, on_others).scatter(1, labels[:, None], on_label)
    return -(targets * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_label_smoothing_gives_a_share_to_all_classes(start, follows, share):
    method = start("label_smoothing", smoothing=share)
    follows(method, lambda network, batch, x: smoothed(network(x), batch.labels, 1 - share + share / 10, share / 10))


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_bag_gives_a_share_to_the_other_classes(start, follows, share):
    method = start("bag_of_tricks", smoothing=share)
    follows(method, lambda network, batch, x: smoothed(network(x), batch.labels, 1 - share, share / 9))


def test_the_bag_drops_the_rate_late(start):
    plan = start("bag_of_tricks", epochs=110).lr_schedule
    assert (plan.epochs, plan.first_drop) == (110, 100)
    rates = [plan.rate(t) for t in (SOON, 100 - SOON, 100, 105 - SOON, 105, 110)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("name", ["bag_of_tricks", "kd_swa"])
def test_drops_in_the_wrong_order_are_one_sentence(load, name):
    row = f"methods: [{{name: {name}, params: {{first_drop: 0.96, second_drop: 0.9}}}}]"
    with pytest.raises(
        BenchError, match=r"suite\.yaml:\d+: methods\.0\.params: 'second_drop' must be more than 'first_drop'$"
    ):
        load({"methods: [pgd_at]": row})


@pytest.mark.parametrize(("mode", "given"), [("eval", {}), ("train", {"batch_norm": "train"})])
def test_the_bag_crafts_in_eval_mode(start, first_batch, mode, given):
    method = start("bag_of_tricks", **given)
    seen = []
    method.model.body.bn1.register_forward_hook(lambda module, *_: seen.append(module.training))
    method.perturb(first_batch(method))
    assert seen == [mode == "train"] * 3
