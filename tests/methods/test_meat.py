import pytest
import torch


def values(network):
    return [value.detach().double().clone() for value in network.parameters()]


@pytest.mark.parametrize(("epochs", "window"), [(6, 3), (80, 4)])
def test_the_median_of_the_last_epochs(start, trained, epochs, window):
    method, seen = start("meat", epochs=epochs), []
    for epoch in range(window + 2):
        method.context.random.start_epoch(epoch)
        if epoch == 2:
            with torch.no_grad():
                method.model.body.conv1.weight.add_(100)  # an outlier, which a mean would keep
        trained(method.model)
        method.end_epoch(epoch)
        seen.append(values(method.model))
        for ours, *weights in zip(values(method.evaluated_model()), *seen[-window:], strict=True):
            expected = torch.quantile(torch.stack(weights), 0.5, dim=0)
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    assert len(method.kept) == window
    assert not method.evaluated_model().training


def test_its_state_is_the_window(start, trained):
    method, other = start("meat"), start("meat")
    for epoch in range(4):
        trained(method.model)
        method.end_epoch(epoch)
    other.load_state_dict(method.state_dict())
    trained(method.model)
    other.model.load_state_dict(method.model.state_dict())
    for one in (method, other):
        one.context.random.start_epoch(4)
        one.end_epoch(4)
    for name, value in method.evaluated_model().state_dict().items():
        assert torch.equal(value, other.evaluated_model().state_dict()[name]), name
