"""Every method trains to the end, and to finite weights, in protocols at the edge of what suites may state."""

import pytest
import torch

from bench.config.cell import Cell
from bench.config.suite import Suite, resolve_method
from bench.registry import METHODS
from bench.testing.conformance import TRAINED, trainer_of

OURS = [name for name in METHODS.names() if METHODS.get(name).__module__.partition(".")[0] == "methods"]

PROTOCOLS = {
    "one epoch in bf16, the last batch has one image": {
        "training": {"epochs": 1, "batch_size": (TRAINED - 1) // 3, "last_batch": "keep", "precision": "bf16"},
    },
    "no attack, a cyclic rate": {
        "training": {"epochs": 4, "schedule": {"name": "cyclic"}, "attack": "none"},
    },
    "L2, a single step, a constant rate, Adam": {
        "threat": {"norm": "l2", "eps": 0.5},
        "training": {
            "epochs": 2,
            "schedule": {"name": "constant"},
            "attack": {"name": "pgd", "steps": 1, "step_size": 0.5},
            "optimizer": {"name": "adam"},
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("name", OURS)
def test_it_trains_in(name, protocol, tmp_path):
    settings = {
        "name": "edges",
        "dataset": {"name": "digits", "validation": 200},
        "model": "small_cnn",
        "threat": {"norm": "linf", "eps": 0.1},
        "evaluation": {"track": {"attack": {"name": "pgd", "steps": 1, "step_size": 0.1}}, "final": ["clean"]},
        "methods": [name],
        **protocol,
    }
    attack = {"name": "pgd", "steps": 2, "step_size": 0.05}
    settings["training"] = {"batch_size": 32, "attack": attack, **settings["training"]}
    suite = Suite.model_validate(settings)
    method = resolve_method(suite, suite.methods[0])
    trainer = trainer_of(Cell(protocol=suite.protocol, method=method, seed=0, suite=suite.name), tmp_path)
    trainer.run()
    assert trainer.checkpoints.finished
    for key, value in trainer.method.evaluated_model().state_dict().items():
        assert torch.isfinite(value).all(), key
