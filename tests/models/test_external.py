"""Networks trained elsewhere: from weights, and from a factory in a Python file."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.config.cell import ExternalModel
from bench.config.protocol import DatasetSettings, Protocol
from bench.data.dataset import dataset_of
from bench.errors import BenchError
from bench.models.architecture import build_network
from bench.models.external import load_external, parse_normalisation, same_network, state_sha256, with_absolute_paths
from bench.models.small_cnn import SmallCNN, small_cnn
from bench.outside import sources_digest
from bench.utils.files import file_sha256

PROTOCOL = Protocol.model_validate(
    {
        "dataset": "digits",
        "model": "small_cnn",
        "threat": {"norm": "linf", "eps": 0.1},
        "training": {"epochs": 1},
        "evaluation": {"final": ["clean", {"name": "pgd", "steps": 3, "step_size": 0.05}]},
    }
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
        ("net.py:build", {"model": "small_cnn"}, "--model, --normalisation and --prefix are for weights files"),
        ("net.py", {}, "name the function that returns the network"),
        ("none.py:build", {}, "no such file"),
        ("robustbench:Wong2020Fast", {}, "named robustbench:<threat>/<name>"),
        ("w.txt", {}, "not a file of plain tensors"),
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
def file(tmp_path):
    (tmp_path / "beside.py").write_text("CLASSES = 10\n")
    (tmp_path / "net.py").write_text(FACTORIES)
    return tmp_path / "net.py"


def test_a_factory(file, images):
    before = torch.get_rng_state()
    found, again = load(f"{file}:build"), load(f"{file}:build")
    assert torch.equal(torch.get_rng_state(), before)
    assert found.network(images).shape == (5, 10)
    assert found.params == {
        "model": "net.py:build",
        "code_sha256": sources_digest([file, file.with_name("beside.py")], file.parent),
        "weights_sha256": state_sha256(found.network),
        "outputs_sha256": found.params["outputs_sha256"],
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


HELPED = """\
from torch import nn
from methods.wrap import Wrapped
def build():
    import late
    return Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), late.SCALE)
"""

WRAP = """\
from torch import nn
SHIFT = 0.0
class Wrapped(nn.Module):
    def __init__(self, body, scale):
        super().__init__()
        self.body, self.scale = body, scale
    def forward(self, x):
        import in_forward
        return self.body(x - SHIFT) * self.scale + in_forward.BIAS
"""


@pytest.fixture
def helped(tmp_path):
    """A factory that imports from a folder `methods`, within a function, and within `forward`."""
    folder = tmp_path / "helped"
    (folder / "methods").mkdir(parents=True)
    (folder / "methods/wrap.py").write_text(WRAP)
    (folder / "late.py").write_text("SCALE = 1.0\n")
    (folder / "in_forward.py").write_text("BIAS = 0.0\n")
    (folder / "net.py").write_text(HELPED)
    return folder / "net.py"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("methods/wrap.py", "0.0", "0.5"),
        ("late.py", "1.0", "2.0"),
        ("in_forward.py", "0.0", "0.0  # the same"),
        ("net.py", "build", "build "),
    ],
)
def test_what_a_factory_imports_is_part_of_its_identity(helped, images, name, before, after):
    import methods

    def described():
        found = load(f"{helped}:build")
        return found.params, found.network.body(images)

    (first, outputs), (again, _) = described(), described()
    assert first == again
    file = helped.parent / name
    stat = file.stat()
    file.write_text(file.read_text().replace(before, after, 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # so that its old bytecode would look current
    changed, others = described()
    assert changed["code_sha256"] != first["code_sha256"]
    assert changed["weights_sha256"] == first["weights_sha256"]
    assert (changed["outputs_sha256"] == first["outputs_sha256"]) == (name in {"net.py", "in_forward.py"})
    assert torch.equal(outputs, others)
    assert sys.modules["methods"] is methods
    assert not {"late", "in_forward", "methods.wrap"} & sys.modules.keys()
    assert str(helped.parent) not in sys.path


def test_constants_in_a_data_file_are_part_of_the_identity(tmp_path):
    (tmp_path / "net.py").write_text(
        "import json, pathlib\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(64, 10)\n"
        "        self.mean = json.loads(pathlib.Path(__file__).with_name('mean.json').read_text())\n"
        "    def forward(self, x):\n"
        "        return self.linear((x - self.mean).flatten(1))\n"
    )
    found = []
    for mean in ("0.5", "0.5", "0.500001", "0.4"):
        (tmp_path / "mean.json").write_text(mean)
        found.append(load(f"{tmp_path / 'net.py'}:Net"))
    first, again, barely, clearly = found
    assert again.params == first.params
    assert "data_sha256" in first.params
    for other in (barely, clearly):
        assert other.params["data_sha256"] != first.params["data_sha256"]
    assert barely.params["outputs_sha256"] == first.params["outputs_sha256"] != clearly.params["outputs_sha256"]
    assert same_network(again, first.params, first.outputs)
    assert same_network(barely, first.params, first.outputs)  # up to rounding
    assert not same_network(clearly, first.params, first.outputs)
    assert not same_network(again, {**first.params, "weights_sha256": "0"}, first.outputs)


def test_random_numbers_are_the_same_each_time(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nSCALE = torch.rand(1)\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return SCALE * super().forward(x.flatten(1))\ndef build():\n    return Net(64, 10)\n"
    )
    assert load(f"{tmp_path / 'net.py'}:build").params == load(f"{tmp_path / 'net.py'}:build").params


def test_a_file_beside_a_factory_hides_no_standard_module(helped, tmp_path):
    for name in ("random.py", "torch.py", "bench.py"):
        (helped.parent / name).write_text("raise SystemExit")
    load(f"{helped}:build")


ODD = """\
import os, sys
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def ends():
    sys.exit(0)

def ends_at_once():
    os._exit(0)

def needs(depth):
    return net()

class Odd(BaseException):
    def __str__(self):
        raise ValueError

def raises():
    raise Odd

def many_lines():
    raise ValueError("first\\nsecond")

def compiled():
    return torch.compile(net())

def compiled_in_part():
    return nn.Sequential(nn.Flatten(), torch.compile(nn.Linear(64, 10)))

def scripted():
    return torch.jit.script(net())

def traced():
    return torch.jit.trace(net(), torch.rand(2, 1, 8, 8))

def parser():
    import argparse
    words = argparse.ArgumentParser()
    words.add_argument("--classes", type=int, default=10)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, words.parse_args().classes))

def talks():
    print("words of the factory")
    os.system("echo words of a process")
    return net()

def moves():
    os.chdir("/")
    torch.set_grad_enabled(False)
    sys.stdout.close()
    sys.stderr.close()
    return net()

def doubles():
    torch.set_default_dtype(torch.float64)
    return net()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.hidden = [nn.BatchNorm2d(1)]
        self.linear = nn.Linear(64, 10)
    def forward(self, x):
        return self.linear(x.flatten(1))

class Exits(Net):
    def forward(self, x):
        sys.exit(3)

class Trains(Net):
    def forward(self, x):
        self.train()
        return super().forward(self.norm(x))

class TrainsAndBack(Net):
    def forward(self, x):
        self.train()
        x = self.norm(x)
        self.eval()
        return super().forward(x)

class TrainsForAttacks(Net):
    def forward(self, x):
        self.norm.training = x.requires_grad
        return super().forward(self.norm(x))

class Hidden(Net):
    def forward(self, x):
        self.hidden[0].track_running_stats = False
        return super().forward(self.hidden[0](x))

class Functional(Net):
    def forward(self, x):
        return super().forward(nn.functional.batch_norm(x, None, None, training=True))

class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)

class Inference(Net):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)

class Detached(Net):
    def forward(self, x):
        return super().forward(x.detach()) + 0 * self.linear.weight.sum()

class ByNumpy(Net):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy()))

class Chosen(Net):
    def forward(self, x):
        return nn.functional.one_hot(super().forward(x).argmax(1), 10).float()
"""

NO_GRADIENT = "has no gradient with respect to the images, which PGD-3 needs: "


@pytest.fixture
def odd(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    return tmp_path / "odd.py"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ends", "odd.py:ends failed: SystemExit: 0"),
        ("ends_at_once", "odd.py:ends_at_once failed: SystemExit: 0"),
        ("needs", "odd.py:needs failed: TypeError: needs() missing 1 required positional argument: 'depth'"),
        ("raises", "odd.py:raises failed: Odd: its text cannot be read"),
        ("many_lines", "odd.py:many_lines failed: ValueError: first"),
        ("doubles", "does not take 1x8x8 images: RuntimeError: "),
        ("Exits", "does not take 1x8x8 images: SystemExit: 3"),
        ("Trains", "switches itself to train mode, or changes its buffers, when it is called"),
        ("TrainsAndBack", "switches itself to train mode, or changes its buffers, when it is called"),
        ("TrainsForAttacks", "switches itself to train mode, or changes its buffers, when it is called"),
        ("Hidden", "depend on the other images of the batch"),
        ("Functional", "depend on the other images of the batch"),
        ("NoGrad", f"{NO_GRADIENT}it is computed without gradients, or detached"),
        ("Inference", f"{NO_GRADIENT}it is computed without gradients, or detached"),
        ("Detached", f"{NO_GRADIENT}it is computed without gradients, or detached"),
        ("Chosen", f"{NO_GRADIENT}it is computed without gradients, or detached"),
        ("ByNumpy", f"{NO_GRADIENT}RuntimeError: Can't call numpy() on Tensor that requires grad"),
    ],
)
def test_a_factory_that_is_refused(odd, name, said):
    found = refused(f"{odd}:{name}")
    assert said in found
    assert "\n" not in found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["compiled", "compiled_in_part", "scripted", "traced", "parser", "talks", "moves"])
def test_a_factory_that_is_taken_as_it_is(odd, images, capfd, name):
    folder = Path.cwd()
    with torch.set_grad_enabled(True):
        network = load(f"{odd}:{name}").network
    assert Path.cwd() == folder
    network.register_forward_pre_hook(lambda *_: None)
    assert torch.allclose(network(images), load(f"{odd}:net").network(images)) or name == "compiled_in_part"
    out, err = capfd.readouterr()
    assert out == ""
    assert ("words of a process" in err and "words of the factory" in err) == (name == "talks")


def test_clean_images_need_no_gradient(odd):
    content = PROTOCOL.model_dump(mode="json")
    for final in (["clean"], ["clean", {"name": "autoattack", "attacks": ["square"]}]):
        content["evaluation"]["final"] = final
        load_external(ExternalModel(source=f"{odd}:NoGrad"), DIGITS, Protocol.model_validate(content))


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
