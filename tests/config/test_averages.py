import pytest
from pydantic import ValidationError

from bench.config.suite import load_suite
from bench.errors import BenchError
from bench.registry import METHODS


@pytest.mark.parametrize(("name", "share"), [("ema", 0.013), ("fomo", 0.065)])
def test_the_canonical_decay_at_the_canonical_length(name, share):
    loaded = load_suite("cifar10")
    params = METHODS.get(name).Params()
    assert loaded.steps == 200 * (49_000 // 128) == 76_400
    assert params.memory == pytest.approx(share, abs=5e-4)
    assert params.decay_in(76_400) == pytest.approx(0.999, abs=1e-12)
    probability = 0.2 if name == "fomo" else 1.0
    assert params.decay_in(2_480) == pytest.approx(1 - 1 / (params.memory * 2_480 * probability), abs=1e-15)
    assert params.decay_in(0) == 0  # an evaluation has no training images


@pytest.mark.parametrize("name", ["ema", "fomo"])
def test_a_stated_decay_replaces_the_share(name, load):
    (method,) = load({"methods: [pgd_at]": f"methods: [{{name: {name}, params: {{decay: 0.5}}}}]"}).methods
    assert (method.params["memory"], method.params["decay"], method.custom) == (None, 0.5, True)
    assert METHODS.get(name).Params.model_validate(method.params).decay_in(10) == 0.5
    (method,) = load({"methods: [pgd_at]": f"methods: [{name}]"}).methods
    assert (method.params["decay"], method.custom) == (None, False)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("memory: 0.1, decay: 0.9", r"params: give exactly one of 'memory' and 'decay'"),
        ("memory: null", r"params: give exactly one of 'memory' and 'decay'"),
        (
            "memory: 1e-6",
            r"params: 'memory': 1e-06 of a training of \d+ steps is less than one averaging; give 0\.\d+ or",
        ),
        ("memory: 1.5", r"params\.memory: must be at most 1 \(got 1\.5\)"),
        ("memory: 0", r"params\.memory: must be greater than 0 \(got 0\)"),
        (
            "decay: 0.99999",
            r"params: 'decay': an average over 100000 averagings is longer than training, which has \d+;",
        ),
        ("decay: 1", r"params\.decay: must be less than 1 \(got 1\)"),
    ],
)
@pytest.mark.parametrize("name", ["ema", "fomo"])
def test_a_length_that_fits_no_training_is_one_sentence(name, params, message, load):
    with pytest.raises(BenchError, match=rf"suite\.yaml:\d+: methods\.0\.{message}"):
        load({"methods: [pgd_at]": f"methods: [{{name: {name}, params: {{{params}}}}}]"})


def test_both_are_refused_in_python_too():
    with pytest.raises(ValidationError, match="give exactly one of 'memory' and 'decay'"):
        METHODS.get("ema").Params(memory=0.1, decay=0.9)


def test_the_shares_of_a_suite_in_epochs_and_steps():
    texts = METHODS.get("fomo").Params().in_training(200, 76_400)
    assert texts == {"memory": "13.09 epochs, 5000 steps, decay 0.999", "relearning": "5 epochs, 1910 steps"}
    assert METHODS.get("fomo").Params().in_training(200, None)["memory"] == "13.09 epochs"
    stated = METHODS.get("ema").Params(memory=None, decay=0.999).in_training(200, 76_400)
    assert stated["decay"] == "memory 0.01309 of training"


@pytest.mark.parametrize(
    ("name", "short", "canonical"),
    [
        ("moat", {"cycle": "3 epochs, 51 steps"}, {"cycle": "20 epochs, 3400 steps"}),
        ("meat", {"window": "3 epochs, 51 steps"}, {"window": "10 epochs, 1700 steps"}),
        ("te", {"start": "7 epochs, 119 steps", "ramp": "5 epochs, 85 steps"}, {}),
        ("wot", {"interval": "1 epoch, 17 steps", "batch_statistics": "12 epochs, 204 steps"}, {}),
        ("swa", {"start": "0 epochs, 0 steps"}, {"start": "5 epochs, 850 steps"}),
    ],
)
def test_shares_that_a_method_rounds_are_whole_epochs(name, short, canonical):
    """At least as many as the method takes: MOAT's cycle has three epochs in a training of 16."""
    params = METHODS.get(name).Params()
    assert params.in_training(16, 16 * 17) == short
    assert canonical.items() <= params.in_training(200, 200 * 170).items()
