"""A run as RobustBench's model information, held against the format of the installed package."""

import dataclasses
from types import MappingProxyType

import pytest

from bench.config.cell import EVALUATED
from bench.errors import BenchError
from bench.export.robustbench import FIELDS, model_information
from bench.models.robustbench_zoo import import_robustbench

from ..reporting.conftest import make_run, protocol_of, results, store, take
from ..storage.conftest import first

__all__ = ["make_run", "results", "store", "take"]

FINALS = ["clean", {"name": "pgd", "steps": 20}, "autoattack"]


def cifar10(**changes):
    settings = {
        "dataset": {"name": "cifar10"},
        "model": "preact_resnet18",
        "evaluation": {"final": FINALS},
    }
    return protocol_of(**{**settings, **changes})


def verdicts(*right, of=10_000):
    return tuple(first(count, of) for count in right)


@pytest.fixture
def information(store, take):
    """Take in a run and return what is written of it."""

    def information(right=None, checkpoint=None, stated=MappingProxyType({}), **run):
        right = (
            {"best": verdicts(8_212, 5_234, 4_931), "last": verdicts(8_400, 4_700, 4_290)} if right is None else right
        )
        folder = take(right, **{"protocol": cifar10(), **run})
        return model_information(store.show_run(folder.path.name), checkpoint, stated)

    return information


def test_the_fields_that_are_known(information):
    found, unknown = information()
    assert found == {
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "architecture": "PreActResNet-18",
        "eps": "8/255",
        "clean_acc": "82.12",
        "autoattack_acc": "49.31",
    }
    assert unknown == ["link", "name", "authors", "additional_data", "venue", "reported"]


def test_what_people_state(information):
    stated = {
        "name": "A title", "authors": "A. Author", "venue": "NeurIPS 2026", "link": "https://an.example",
        "additional_data": False, "reported": "49.5", "architecture": "PRN-18", "number_forward_passes": 2,
    }  # fmt: skip
    found, unknown = information(stated=stated, checkpoint="last")
    assert unknown == []
    assert stated.items() <= found.items()
    assert (found["clean_acc"], found["autoattack_acc"]) == ("84.00", "42.90")
    assert list(found) == [field for field in FIELDS if field in found]


def test_the_fields_are_those_of_robustbench():
    kind = import_robustbench("robustbench.utils").ModelInfo
    known = [field.name for field in dataclasses.fields(kind)]
    assert [field for field in known if "corruptions" not in field] == list(FIELDS)


def test_l2(information):
    found, _ = information(protocol=cifar10(threat={"norm": "l2", "eps": 0.5}))
    assert found["eps"] == "0.5"


def test_a_part_of_the_images_is_said(information):
    found, _ = information({"best": verdicts(150, 100, 50, of=200), "last": verdicts(150, 100, 50, of=200)})
    assert found["footnote"] == "Of the 10,000 test images: Clean on 200, AutoAttack on 200."


def test_a_network_that_was_only_evaluated(information):
    network = {"method": EVALUATED, "params": {"model": "resnet18", "weights_sha256": "0" * 64}}
    found, _ = information({"last": verdicts(9_000, 5_000, 4_000)}, **network)
    assert (found["architecture"], found["autoattack_acc"]) == ("ResNet-18, CIFAR form", "40.00")
    network["params"] = {**network["params"], "model": "net.py:build"}
    found, unknown = information({"last": verdicts(9_000, 5_000, 4_000)}, **network)
    assert "architecture" not in found
    assert {"architecture", "number_forward_passes"} <= set(unknown)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"status": None}, "has not finished (interrupted), so it has nothing to export"),
        ({"status": "failed"}, "has not finished (failed)"),
        ({"protocol": cifar10(evaluation={"final": FINALS[:2]})}, "no outcome under standard AutoAttack"),
        ({"protocol": cifar10(evaluation={"final": FINALS[1:]})}, "no outcome on clean images"),
        (
            {"protocol": cifar10(evaluation={"final": ["clean", {"name": "autoattack", "attacks": ["apgd-ce"]}]})},
            "no outcome under standard AutoAttack",
        ),
        ({"protocol": cifar10(dataset={"name": "digits"})}, "compares networks on cifar10 and cifar100, and"),
        ({"protocol": cifar10(dataset={"name": "cifar10", "resize": 16})}, "was evaluated on cifar10 at 16x16 pixels"),
        ({"checkpoint": "best_on_test"}, "no outcome of a checkpoint 'best_on_test'; it has best, last"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_sentence(information, run, said):
    count = len(run["protocol"].evaluation.final) if "protocol" in run else 3
    right = {name: verdicts(*[9_000, 5_000, 4_000][:count]) for name in ("best", "last")}
    with pytest.raises(BenchError) as error:
        information(right, **run)
    assert said in str(error.value)
    assert error.value.exit_code == 2
