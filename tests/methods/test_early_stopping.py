import pytest

from bench.registry import METHODS


def history(*robust):
    return [{"epoch": epoch, "validation": {"robust": value}} for epoch, value in enumerate(robust)]


def stops_after(method, robust):
    """Return the epoch after which training ends, None if never."""
    for epoch in range(len(robust)):
        if method.should_stop(history(*robust[: epoch + 1])):
            return epoch
    return None


# twenty epochs, the first drop at epoch 10, patience two epochs: waiting begins at epoch 9, the last before the drop
@pytest.mark.parametrize(
    ("robust", "expected"),
    [
        ([0.5] + [0.1] * 19, 11),  # the best lies before the drop: patience counts from the drop
        ([0.1] * 20, 11),  # equal values are no improvement
        ([0.1 * epoch for epoch in range(20)], None),  # always better
        ([0.1] * 10 + [0.2, 0.3, 0.4] + [0.3] * 7, 14),  # best at 12, two epochs without a better one
        ([0.1] * 10 + [0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 14),  # a tie: the first counts
        ([0.1] * 10 + [0.3, 0.2, 0.4] + [0.3, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4], 16),  # better just in time, then not
        ([0.9] + [0.1] * 9 + [0.8, 0.85, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], 11),  # worse than before the drop
    ],
)
def test_when_it_stops(start, robust, expected):
    assert stops_after(start("early_stopping", epochs=20), robust) == expected


@pytest.mark.parametrize(("epochs", "patience", "expected"), [(200, 0.1, 119), (200, 0.05, 109), (200, 0.0025, 100)])
def test_patience_is_a_share_of_training(start, epochs, patience, expected):
    assert stops_after(start("early_stopping", epochs=epochs, patience=patience), [0.5] * epochs) == expected


def test_its_last_model_is_its_best():
    assert METHODS.get("early_stopping").info.final_is_best
