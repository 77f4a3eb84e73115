import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.errors import BenchError
from bench.models.activations import ACTIVATIONS
from bench.training.step import EpochMetrics, train_step

KINDS = {"silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU, "softplus": nn.Softplus, "mish": nn.Mish}


def test_the_default_is_silu(start):
    assert start("sat").params.activation == "silu"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_relu_is_replaced_for_attack_and_training(start, first_batch, monkeypatch, activation):
    method = start("sat", activation=activation)
    assert not any(isinstance(module, nn.ReLU) for module in method.model.modules())
    if activation in KINDS:
        assert any(isinstance(module, KINDS[activation]) for module in method.model.modules())
    monkeypatch.setattr(F, "relu", lambda *_args, **_kwargs: pytest.fail("a ReLU was called"))
    before = method.model.body.conv1.weight.detach().clone()
    train_step(method, first_batch(method), method.optimizer, EpochMetrics(torch.device("cpu")))
    assert not torch.equal(method.model.body.conv1.weight, before)


def test_a_learnable_sharpness_is_trained(start, first_batch):
    method = start("sat", activation="smooth_relu")
    raw = method.model.body.relu1.raw
    train_step(method, first_batch(method), method.optimizer, EpochMetrics(torch.device("cpu")))
    assert raw.item() != 20


def test_sharpness_has_no_weight_decay_and_each_activation_its_own(start):
    method = start("sat", activation="smooth_relu", model="preact_resnet18")
    decayed, plain = method.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0)
    names = {id(parameter): name for name, parameter in method.model.named_parameters()}
    raws = {names[id(parameter)].rpartition(".")[2] for parameter in plain["params"]}
    assert (raws, len(plain["params"])) == ({"raw"}, 17)
    assert len(decayed["params"]) + 17 == len(names)
    assert len(start("sat").optimizer.param_groups) == 1


def test_an_unknown_activation_is_one_sentence(load):
    with pytest.raises(BenchError, match=r"suite\.yaml:\d+: methods\.0\.params\.activation: must be .*'silu'.*'relu6'"):
        load({"methods: [pgd_at]": "methods: [{name: sat, params: {activation: relu6}}]"})
