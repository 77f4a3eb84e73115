"""An entry of RobustBench's zoo: files without this package, which the package `robustbench` loads."""

import ast
import json
from functools import partial

import pytest
import torch
from torch import nn

from bench import registry
from bench.attacks.outcome import Outcome
from bench.config.attacks import Threat
from bench.data.batches import to_float
from bench.errors import BenchError
from bench.export.source import self_contained
from bench.export.trained import trained_network
from bench.export.zoo import architecture_file, write_zoo_entry
from bench.models.activations import ACTIVATIONS
from bench.models.architecture import Architecture
from bench.models.description import NetworkDescription
from bench.models.robustbench_zoo import import_robustbench

LINF = Threat(norm="linf", eps=0.15)


@pytest.fixture(scope="module")
def run(tiny_results):
    return trained_network("pgd-at", results=tiny_results)


def imported(source):
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def built(source):
    namespace = {}
    exec(source, namespace)
    name, entry = namespace["ENTRY"]
    return name, entry["model"]()


def test_the_zoo_loads_the_entry_with_the_stored_accuracy(run, tmp_path):
    """Through the package's own `load_model` and `clean_accuracy`; its zoo has no digits, so that they stand in."""
    folder = tmp_path / "zoo"
    assert write_zoo_entry(run, "Ours2026Digits", {"dataset": "cifar10", "eps": "0.15"}, folder) == 256
    utils, kinds = import_robustbench("robustbench.utils"), import_robustbench("robustbench.model_zoo.enums")
    networks = utils.all_models[kinds.BenchmarkDataset.cifar_10][kinds.ThreatModel.Linf]
    assert "Ours2026Digits" not in networks
    namespace = {}
    exec((folder / "Ours2026Digits.py").read_text(), namespace)
    networks.update([namespace["ENTRY"]])
    try:
        network = utils.load_model("Ours2026Digits", model_dir=folder / "models", threat_model="Linf")
    finally:
        del networks["Ours2026Digits"]
    (record,) = (
        record for (name, key), record in run.folder.read_outcomes().items() if (name, key[:5]) == ("best", "clean")
    )
    test = run.dataset.splits(None).test
    assert utils.clean_accuracy(network, to_float(test.pixels), test.labels) == Outcome.from_record(record).accuracy
    assert not {
        name for name in imported((folder / "Ours2026Digits.py").read_text()) if name.startswith(("bench", "methods"))
    }
    stated = json.loads((folder / "model_info/cifar10/Linf/Ours2026Digits.json").read_text())
    assert stated == {"dataset": "cifar10", "eps": "0.15"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo"]


SLOW = ("preact_resnet18", "resnet18", "resnet50", "wide_resnet/28-10", "vit_small", "timm/resnet10t")
NAMES = ("small_cnn", "preact_resnet8_32", "preact_resnet14_16", "wide_resnet/10-1")


def test_every_architecture_is_tried():
    assert {name.partition("/")[0] for name in (*SLOW, *NAMES)} == set(registry.MODELS.names())


@pytest.mark.parametrize("activation", [None, "smooth_relu"])
@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_an_architecture_file_builds_the_network_without_this_package(name, activation):
    described = NetworkDescription(
        architecture=name,
        activation=activation,
        classes=7,
        shape=(3, 32, 32),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.1),
    )
    try:
        ours = described.build().eval()
    except BenchError:  # vision transformers have no ReLU
        assert (name, activation) == ("vit_small", "smooth_relu")
        return
    source = architecture_file("Ours2026", described, "cifar10", LINF)
    assert not {one for one in imported(source) if one.startswith(("bench", "methods"))}
    title, network = built(source)
    assert title == "Ours2026"
    network.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.eval()(images), ours(images))
    assert ("replace_relu" in source) == (activation is not None)


def test_what_a_definition_uses_comes_before_it_and_nothing_else():
    source = self_contained([("bench.models.activations", "ACTIVATIONS")])
    assert source.index("class SmoothReLU") < source.index("ACTIVATIONS")
    assert "replace_relu" not in source
    namespace = {}
    exec(source, namespace)
    assert namespace["ACTIVATIONS"].keys() == ACTIVATIONS.keys()
    source = self_contained([("bench.models.activations", "replace_relu")])
    assert "BenchError = ValueError" in source


def test_names_that_are_local_to_a_function_bring_nothing():
    """At the top of this module `resnet50` is an architecture; in the function it is what that imports."""
    source = self_contained([("bench.models.resnet50", "build_resnet50")])
    assert "Architecture(" not in source
    assert "Shape = tuple[int, int, int]" in source


def nested():
    def build(classes, shape):
        return nn.Linear(classes, shape[0])

    return build


@pytest.mark.parametrize(
    "build", [nested(), lambda classes, shape: nn.Linear(1, 1), partial(nn.Linear, out_features=1)]
)
def test_an_architecture_that_no_file_can_build(build):
    registry.MODELS.add("own", Architecture("own", "Own", "", build))
    described = NetworkDescription(architecture="own", classes=10, shape=(1, 8, 8), mean=(0,), std=(1,))
    with pytest.raises(BenchError, match="own cannot be written as one file: it is not built by a function at the top"):
        architecture_file("Own2026", described, "cifar10", LINF)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../x", "--entry '../x' is not a valid name"),
        ("Wong2020Fast", "RobustBench has a network 'Wong2020Fast' already"),
    ],
)
def test_a_name_that_the_zoo_cannot_have(run, tmp_path, name, sentence):
    with pytest.raises(BenchError, match=sentence):
        write_zoo_entry(run, name, {"dataset": "cifar10"}, tmp_path / "zoo")
    assert not list(tmp_path.iterdir())
