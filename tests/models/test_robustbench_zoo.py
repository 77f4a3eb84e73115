"""RobustBench's zoo: a real architecture of it, with weights that are made here; nothing is ever downloaded."""

import pickle
import subprocess
import sys
import urllib.request

import pytest
import torch

from bench.config.cell import ExternalModel
from bench.config.protocol import Protocol
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.models.external import load_external
from bench.models.robustbench_zoo import import_robustbench
from bench.utils.files import file_sha256

NAME = "Wong2020Fast"  # a PreActResNet-18


def protocol(**changes):
    settings = {
        "dataset": "cifar10",
        "model": "preact_resnet18",
        "threat": {"norm": "linf", "eps": "8/255"},
        "training": {"epochs": 1},
    }
    return Protocol.model_validate(settings | changes)


def load(folder, source=f"robustbench:Linf/{NAME}", **changes):
    chosen = protocol(**changes)
    where = ExternalModel(source=source, model_dir=str(folder))
    return load_external(where, dataset_of(chosen.dataset), chosen)


@pytest.fixture(scope="module")
def zoo():
    return import_robustbench("robustbench.model_zoo").model_dicts


@pytest.fixture(scope="module")
def network(zoo):
    """The zoo's architecture, freshly drawn."""
    kinds = import_robustbench("robustbench.model_zoo.enums")
    torch.manual_seed(1)
    return zoo[kinds.BenchmarkDataset.cifar_10][kinds.ThreatModel.Linf][NAME]["model"]().eval()


@pytest.fixture
def folder(tmp_path):
    """The zoo's local folder, still without a file."""
    (tmp_path / "models/cifar10/Linf").mkdir(parents=True)
    return tmp_path / "models"


def test_a_network_of_the_zoo(folder, network, capsys):
    path = folder / "cifar10/Linf" / f"{NAME}.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    found = load(folder)
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(found.network(images), network(images))
    assert found.params == {"model": f"robustbench:Linf/{NAME}", "weights_sha256": file_sha256(path)}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_alias_serves_a_fresh_process():
    code = (
        "from bench.models.robustbench_zoo import import_robustbench; import_robustbench();"
        "import autoattack, autoattack.state, pyautoattack, robustbench.eval; assert autoattack is pyautoattack"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        (f"robustbench:Linf/{NAME}", {}, "models/cifar10/Linf/Wong2020Fast.pt; download it into the folder"),
        ("robustbench:Linf/Wong2021Fast", {}, "no network 'Wong2021Fast' for cifar10, Linf; did you mean 'Wong2"),
        ("robustbench:Linf/Chen2020Adversarial", {}, "models/cifar10/Linf/Chen2020Adversarial_m0.pt; download it"),
        ("robustbench:Linf/q", {}, "no network 'q' for cifar10, Linf; it has "),
        (f"robustbench:L2/{NAME}", {}, "has the threat 'L2', but the suite has Linf"),
        (f"robustbench:L1/{NAME}", {}, "has the threat 'L1', but the suite has Linf"),
        (f"robustbench:Linf/{NAME}", {"threat": {"norm": "l2", "eps": 0.5}}, "the suite has L2"),
        (f"robustbench:Linf/{NAME}", {"dataset": "digits"}, "RobustBench has no networks for digits; known: cifar10, "),
        ("robustbench:Linf/../../secret", {}, "is named robustbench:<threat>/<name>"),
        ("robustbench:Linf/Debenedetti2022Light_XCiT-S12", {}, "RobustBench downloads its weights"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(folder, source, changes, said):
    before = sorted(folder.rglob("*"))
    with pytest.raises(BenchError) as error:
        load(folder, source, **changes)
    assert said in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_weights_that_do_not_fit(folder, network):
    state = {name: value for name, value in network.state_dict().items() if "linear" not in name}
    torch.save(state, folder / "cifar10/Linf" / f"{NAME}.pt")
    with pytest.raises(BenchError, match=rf"^robustbench:Linf/{NAME} cannot be loaded: .*linear\.weight"):
        load(folder)


class Dangerous:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_file_of_the_zoo_is_not_executed(folder, capsys):
    (folder / "cifar10/Linf" / f"{NAME}.pt").write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(BenchError, match="not a file of plain tensors"):
        load(folder)
    assert capsys.readouterr().out == ""


def test_nothing_is_downloaded_while_a_network_is_built(folder, network, zoo, monkeypatch):
    torch.save(network.state_dict(), folder / "cifar10/Linf" / f"{NAME}.pt")
    kinds = import_robustbench("robustbench.model_zoo.enums")
    entry = zoo[kinds.BenchmarkDataset.cifar_10][kinds.ThreatModel.Linf][NAME]
    for url in ("http://an.example/weights.pt", "http://127.0.0.1:9/weights.pt"):
        monkeypatch.setitem(entry, "model", lambda url=url: urllib.request.urlopen(url))
        with pytest.raises(
            BenchError, match="RobustBench would download a part of this network; nothing is downloaded"
        ):
            load(folder)
