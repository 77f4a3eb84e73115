"""Networks trained elsewhere: from weights, and from a factory in a Python file."""

import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from bench.config.cell import ExternalModel
from bench.config.protocol import DatasetSettings, Protocol
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.models.architecture import build_network
from bench.models.external import load_external, parse_normalisation, state_sha256, with_absolute_paths
from bench.models.small_cnn import SmallCNN, small_cnn
from bench.utils.files import file_sha256

PROTOCOL = Protocol.model_validate(
    {"dataset": "digits", "model": "small_cnn", "threat": {"norm": "linf", "eps": 0.1}, "training": {"epochs": 1}}
)
DIGITS = dataset_of(PROTOCOL.dataset)
COLOURS = dataset_of(DatasetSettings(name="cifar10"))


def load(source, **options):
    return load_external(ExternalModel(source=str(source), **options), DIGITS, PROTOCOL)


def refused(source, **options):
    with pytest.raises(BenchError) as error:
        load(source, **options)
    return str(error.value)


@pytest.fixture
def body():
    torch.manual_seed(1)
    return SmallCNN(classes=10, channels=1).eval()


@pytest.fixture
def weights(tmp_path, body):
    """The state dict of a network that knows no normalisation."""
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in body.state_dict().items()}}, tmp_path / "w.pt"
    )
    return tmp_path / "w.pt"


@pytest.fixture
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "mean", "std"),
    [("none", 0.0, 1.0), ("dataset", DIGITS.mean[0], DIGITS.std[0]), ("0.4/0.3", 0.4, 0.3), (" 0.4 / 3e-1", 0.4, 0.3)],
)
def test_weights_with_the_normalisation_that_is_stated(weights, body, images, how, mean, std):
    found = load(weights, normalisation=how)
    expected = body((images - torch.tensor(mean)) / torch.tensor(std))
    assert torch.equal(found.network(images), expected)
    stated = {} if how == "none" else {"mean": [mean], "std": [std]}
    assert found.params == {"model": "small_cnn", "weights_sha256": file_sha256(weights), **stated}
    assert not found.network.training
    assert not any(parameter.requires_grad for parameter in found.network.parameters())


def test_equal_normalisations_are_one_identity(weights):
    assert load(weights, normalisation="none").params == load(weights, normalisation="0/1").params
    stated = f"{DIGITS.mean[0]}/{DIGITS.std[0]}"
    assert load(weights, normalisation="dataset").params == load(weights, normalisation=stated).params


def test_weights_that_state_their_normalisation(tmp_path, images):
    network = build_network(small_cnn, DIGITS, 3).eval()
    path = tmp_path / "ours.safetensors"
    save_file(network.state_dict(), path)
    found = load(path)
    assert torch.equal(found.network(images), network(images))
    assert (found.params["mean"], found.params["std"]) == (list(DIGITS.mean), list(DIGITS.std))
    assert load(path, normalisation="dataset").params == found.params
    assert "the file states another normalisation" in refused(path, normalisation="none")


def test_another_architecture_than_the_suites(tmp_path):
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=10, in_chans=1).state_dict(), tmp_path / "w.pth")
    found = load(tmp_path / "w.pth", model="timm/resnet10t", normalisation="none")
    assert found.params["model"] == "timm/resnet10t"
    assert found.network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_normalisation_must_be_stated(weights):
    assert "state the normalisation of training: --normalisation none, dataset" in refused(weights)


@pytest.mark.parametrize("text", ["some", "0.5", "0.5,0.5/0.2,0.2/0.1", "a/b", "", "0.5;0.5"])
def test_what_is_no_normalisation(text):
    with pytest.raises(BenchError, match="is invalid; write none, dataset, or means and standard deviations"):
        parse_normalisation(text, DIGITS)


@pytest.mark.parametrize(
    "text", ["0.5/0.2", "0,0,0/1,1", "0,0,0/1,1,0", "0,0,0/1,1,-1", "0,nan,0/1,1,1", "0,0,0/1,inf,1"]
)
def test_a_normalisation_of_other_channels_or_no_numbers(text):
    with pytest.raises(BenchError, match="cifar10 needs 3 finite means and as many standard deviations above 0"):
        parse_normalisation(text, COLOURS)
    assert parse_normalisation("0,0.5,1/1,0.1,2", COLOURS) == ((0, 0.5, 1), (1, 0.1, 2))


@pytest.mark.parametrize("text", ["125.3,123,113.9/63,62.1,66.7", "0.49,0.48,113.9/0.2,0.2,0.2", "0,0,0/1,1,255"])
def test_a_normalisation_in_units_of_0_to_255(text):
    with pytest.raises(BenchError, match=r"is too large for pixels in \[0, 1\]; divide means and standard deviations"):
        parse_normalisation(text, COLOURS)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("none.pt", {}, "no such file"),
        ("timm/resnet18", {}, "give its weights: bench evaluate WEIGHTS --model timm/resnet18"),
        ("robustbnch:Linf/Wong2020Fast", {}, "did you mean 'robustbench'?"),
        ("w.pt", {"model": "smal_cnn", "normalisation": "none"}, "unknown model 'smal_cnn'; did you mean 'small_cnn'?"),
        ("w.pt", {"model": "resnet18", "normalisation": "none"}, "they do not fit the network"),
        ("net.py:build", {"model": "small_cnn"}, "--model and --normalisation are for weights files"),
        ("net.py", {}, "name the function that returns the network"),
        ("none.py:build", {}, "no such file"),
        ("robustbench:Wong2020Fast", {}, "named robustbench:<threat>/<name>"),
        ("w.txt", {}, "unknown format; known: .pt, .pth"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(tmp_path, monkeypatch, weights, source, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.txt").write_text("")
    found = refused(source, **options)
    assert said in found
    assert "\n" not in found


def test_a_network_for_other_classes(tmp_path):
    torch.save(SmallCNN(classes=7, channels=1).state_dict(), tmp_path / "w.pt")
    found = refused(tmp_path / "w.pt", normalisation="none")
    assert re.search(r"1 tensor of another shape|2 tensors of another shape, such as 'linear\.weight': \[7, ", found)


def test_weights_that_are_no_numbers(tmp_path, body):
    body.linear.bias.data[3] = float("nan")
    torch.save(body.state_dict(), tmp_path / "w.pt")
    assert "values that are not finite numbers" in refused(tmp_path / "w.pt", normalisation="none")


# --- a factory -------------------------------------------------------------------------------------------------------

FACTORIES = """\
import torch
from torch import nn
from beside import CLASSES

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))

def other_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def colours():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 10))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
    def forward(self, x):
        return self.linear(x.flatten(1)), None

def weightless():
    return nn.Flatten()

def text():
    return "a network"

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "beside.py").write_text("CLASSES = 10\n")
    (tmp_path / "net.py").write_text(FACTORIES)
    yield tmp_path / "net.py"
    sys.modules.pop("beside", None)


def test_a_factory(file, images):
    before = torch.get_rng_state()
    found, again = load(f"{file}:build"), load(f"{file}:build")
    assert torch.equal(torch.get_rng_state(), before)
    assert found.network(images).shape == (5, 10)
    assert found.params == {
        "model": "net.py:build",
        "code_sha256": file_sha256(file),
        "weights_sha256": state_sha256(found.network),
    }
    assert again.params == found.params


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("biuld", "has no function 'biuld'; did you mean 'build'?"),
        ("other_classes", "has 7 classes, but digits has 10"),
        ("colours", "does not take 1x8x8 images"),
        ("Pair", "does not return one row of logits per image"),
        ("weightless", "returned Flatten, not a torch module with parameters"),
        ("text", "returned str, not a torch module"),
        ("broken", "failed: RuntimeError: no weights here"),
    ],
)
def test_a_factory_that_gives_no_network(file, name, said):
    assert said in refused(f"{file}:{name}")


def test_a_file_that_does_not_import(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    assert "does not import: ModuleNotFoundError" in refused(f"{tmp_path / 'bad.py'}:build")


def test_the_digest_of_a_state_tells_names_types_shapes_and_values():
    def digest(**changes):
        module = torch.nn.Module()
        tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(1), "c": torch.ones(1, dtype=torch.bfloat16), **changes}
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return state_sha256(module)

    others = [
        digest(a=torch.zeros(3, 2)),
        digest(a=torch.zeros(2, 3).int()),
        digest(a=torch.full((2, 3), 1e-40)),
        digest(d=torch.zeros(0)),
        digest(b=torch.tensor(2)),
    ]
    assert len({digest(), *others}) == 6
    assert digest() == digest(a=torch.zeros(3, 2).T)


def test_paths_are_made_absolute_but_not_the_name_of_a_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths(ExternalModel(source="w.pt")).source == str(tmp_path / "w.pt")
    assert with_absolute_paths(ExternalModel(source="net.py:build")).source == f"{tmp_path / 'net.py'}:build"
    zoo = with_absolute_paths(ExternalModel(source="robustbench:Linf/Wong2020Fast"))
    assert (zoo.source, zoo.model_dir) == ("robustbench:Linf/Wong2020Fast", str(tmp_path / "models"))
