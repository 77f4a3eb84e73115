"""Trained networks as files: read back by the programs they are for, they are the networks of the run."""

import dataclasses
import importlib.util
import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

import bench
from bench import registry
from bench.attacks.outcome import Outcome
from bench.config.cell import ExternalModel
from bench.data.batches import to_float
from bench.data.dataset import dataset_of
from bench.errors import BenchError, DamagedFile
from bench.export import weights
from bench.export.formats import WeightsFormat
from bench.export.trained import trained_network
from bench.export.weights import export_weights
from bench.models.activations import ACTIVATIONS, replace_relu
from bench.models.architecture import Architecture, Network
from bench.models.description import describe_network, load_hub_folder
from bench.models.external import external_description, load_external
from bench.models.small_cnn import SmallCNN
from bench.reporting.statistics import wilson_interval
from bench.storage.run_folder import run_folders


@pytest.fixture(scope="module")
def run(tiny_results):
    return trained_network("pgd-at", results=tiny_results)


@pytest.fixture(scope="module")
def images(run):
    return to_float(run.dataset.splits(None).test.pixels)


def clean_bits(run, checkpoint="best"):
    """The stored outcome on clean images."""
    (record,) = (
        record
        for (name, key), record in run.folder.read_outcomes().items()
        if (name, key.partition("-")[0]) == (checkpoint, "clean")
    )
    return Outcome.from_record(record).correct.tolist()


def onnx_logits(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def loaded(network, state):
    network.load_state_dict(state)
    return network


READERS = {
    "safetensors": lambda network, path, images: loaded(network, load_file(path))(images),
    "torch": lambda network, path, images: loaded(network, torch.load(path, weights_only=True))(images),
    "torchscript": lambda _network, path, images: torch.jit.load(path)(images),
    "onnx": lambda _network, path, images: onnx_logits(path, images),
    "hub": lambda _network, path, images: bench.load_network(path)(images),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.load. is deprecated")
@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), *sorted(READERS.keys() - {"onnx"})])
def test_a_file_is_the_network_of_the_run(run, images, tiny_results, tmp_path, format):
    written = export_weights("pgd-at", WeightsFormat(format), tmp_path / "x", checkpoint="last", results=tiny_results)
    network = bench.load_network(run.folder.path, "last")
    expected = network(images)
    for parameter in network.parameters():
        parameter.zero_()
    with torch.no_grad():
        found = READERS[format](network, tmp_path / "x", images)
    exact = format in {"safetensors", "torch", "hub"}
    assert torch.equal(found, expected) if exact else (found - expected).abs().max() <= 1e-4
    assert (written.checkpoint, written.images, written.path) == ("last", 256, tmp_path / "x")
    assert (found.argmax(1) == run.dataset.splits(None).test.labels).tolist() == clean_bits(run, "last")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# --- the hub folder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tiny_results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "folder"
    export_weights("pgd-at", WeightsFormat.HUB, folder, results=tiny_results)
    return folder


def test_a_hub_folder_is_an_external_model_with_the_stored_accuracy(run, images, hub):
    loaded = load_external(ExternalModel(source=str(hub)), run.dataset, run.cell.protocol)
    bits = (loaded.network(images).argmax(1) == run.dataset.splits(None).test.labels).tolist()
    assert bits == clean_bits(run)
    weights_file = ExternalModel(source=str(hub / "model.safetensors"))
    assert loaded.params == load_external(weights_file, run.dataset, run.cell.protocol).params
    assert external_description(loaded.params, run.dataset) == run.describe()
    with pytest.raises(BenchError, match="--model, --normalisation and --prefix are for weights files"):
        load_external(ExternalModel(source=str(hub), normalisation="none"), run.dataset, run.cell.protocol)


def test_the_config_states_the_run_and_no_path(run, hub, tiny_results):
    config = json.loads((hub / "config.json").read_text())
    assert config["network"] == {
        "architecture": "small_cnn", "activation": None, "classes": 10, "shape": [1, 8, 8],
        "mean": list(run.dataset.mean), "std": list(run.dataset.std),
    }  # fmt: skip
    stated = config["run"]
    assert (stated["fingerprint"], stated["checkpoint"], stated["epoch"]) == (
        run.cell.fingerprint,
        "best",
        run.entry.epoch,
    )
    assert stated["protocol"] == run.cell.protocol.identity()
    assert str(tiny_results.parent) not in (hub / "config.json").read_text() + (hub / "README.md").read_text()


def test_the_model_card_is_read_by_the_hub_and_states_the_figures(run, hub):
    card = ModelCard.load(hub / "README.md")
    assert card.data.library_name == "robust-overfitting-bench"
    outcomes = [record for (name, _), record in run.folder.read_outcomes().items() if name == "best"]
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {f"Accuracy, {record['title']}, 500 images": round(record["right"] / 5, 2) for record in outcomes}
    for record in outcomes:
        low, high = (f"{100 * share:.2f}" for share in wilson_interval(record["right"], 500))
        assert f"| {record['title']} | 500 | {record['right'] / 5:.2f} | {low} – {high} |" in card.text
    for part in (
        "# PGD-AT, ", "checkpoint `best` of seed 0", "| Threat model | norm linf, radius 0.15 |",
        "Licence of the images: CC BY 4.0", 'bench.load_network("FOLDER")', "bench evaluate FOLDER",
    ):  # fmt: skip
        assert part in card.text


def test_the_model_card_states_parameters_and_their_provenance(run):
    from bench.export.hub import model_card

    method = run.cell.method.model_copy(
        update={
            "name": "sat",
            "version": registry.METHODS.get("sat").info.version,
            "params": {"activation": "silu"},
        }
    )
    card = model_card(dataclasses.replace(run, cell=run.cell.model_copy(update={"method": method})), run.describe())
    assert "| activation | silu |  | in the authors' released code |" in card
    assert "Xie, Tan, Gong, Yuille, Le" in card


def test_another_activation_is_part_of_the_description(tmp_path, images):
    torch.manual_seed(0)
    network = Network(SmallCNN(classes=10, channels=1), (0.3059,), (0.3754,)).eval()
    replace_relu(network, ACTIVATIONS["mish"])
    described = describe_network(network, "small_cnn", 10, (1, 8, 8))
    assert described.activation == "mish"
    (tmp_path / "config.json").write_text(json.dumps({"network": described.model_dump(mode="json")}))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    assert torch.equal(load_hub_folder(tmp_path)(images[:50]), network(images[:50]))


def test_a_network_that_no_description_rebuilds():
    linear = Architecture("flat", "Linear", "", lambda classes, _: nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))
    registry.MODELS.add("flat", linear)  # it has no ReLU that another activation could replace
    body = nn.Sequential(SmallCNN(classes=10, channels=1), nn.Tanh())
    changed = Network(body, (0.3,), (0.4,))
    for network, name in ((changed, "small_cnn"), (body, "small_cnn"), (changed, "flat")):
        with pytest.raises(BenchError, match=f"differ from those of {name}.*; export it as torchscript or onnx"):
            describe_network(network, name, 10, (1, 8, 8))


CONFIGS = {
    "{": "config.json cannot be read",
    "[" * 100_000: "config.json cannot be read",
    "[]": "config.json has no key 'network'",
    '{"model_type": "bert"}': "config.json has no key 'network'; `bench export weights --format hub` writes",
    '{"network": {"classes": 10}}': "config.json: network.architecture: this key is required",
    "architecture=none": "unknown model 'none'",
    "architecture=../x": "config.json: network.architecture: must match",
    "classes=1": "config.json: network.classes: must be at least 2 (got 1)",
    "classes=11": "model.safetensors: they do not fit the network",
    "shape=[3, 8, 8]": "'mean' and 'std' need one value a channel",
    "activation=tanh": "the activation must be one of silu, ",
    "code=os.system": "config.json: network: unknown key 'code'",
}


@pytest.mark.parametrize("content", CONFIGS)
def test_an_invalid_config_is_one_sentence(hub, tmp_path, content):
    if match := re.fullmatch(r"(\w+)=(.*)", content):
        network = json.loads((hub / "config.json").read_text())["network"]
        value = match[2] if match[1] in {"architecture", "activation", "code"} else json.loads(match[2])
        content_of_file = json.dumps({"network": network | {match[1]: value}})
    (tmp_path / "config.json").write_text(content_of_file if match else content)
    (tmp_path / "model.safetensors").write_bytes((hub / "model.safetensors").read_bytes())
    with pytest.raises(BenchError) as error:
        bench.load_network(tmp_path)
    assert CONFIGS[content] in str(error.value)


def test_weights_that_would_be_executed_or_lack_the_normalisation(hub, tmp_path):
    (tmp_path / "config.json").write_bytes((hub / "config.json").read_bytes())
    with pytest.raises(BenchError, match=r"model\.safetensors: no such file"):
        bench.load_network(tmp_path)
    torch.save({"x": print}, tmp_path / "model.safetensors")
    with pytest.raises(BenchError, match="it would run"):
        bench.load_network(tmp_path)
    state = {name.removeprefix("body."): value for name, value in load_file(hub / "model.safetensors").items()}
    save_file({name: state[name] for name in state.keys() - {"mean", "std"}}, tmp_path / "model.safetensors")
    with pytest.raises(BenchError, match="mean and standard deviation of the images are missing"):
        bench.load_network(tmp_path)


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(results, tmp_path, format="safetensors", kind=BenchError, **options):
    with pytest.raises(kind) as error:
        export_weights("pgd-at", WeightsFormat(format), tmp_path / "x", results=results, **options)
    assert not [path for path in tmp_path.iterdir() if "x" in path.name]
    assert error.value.exit_code == 2
    return str(error.value)


def test_a_run_without_the_checkpoint_or_its_weights(copy_of_results, tmp_path):
    (folder,) = run_folders(copy_of_results)
    assert "has no checkpoint 'first'; it has best, " in refused(copy_of_results, tmp_path, checkpoint="first")
    for file in folder.checkpoints.glob("*.safetensors"):
        file.unlink()
    assert "is missing, though the index names it" in refused(copy_of_results, tmp_path, kind=DamagedFile)
    (folder.path / "done.json").unlink()
    assert "has not ended, so its weights may still change" in refused(copy_of_results, tmp_path)


def test_an_output_that_exists_or_cannot_be_written(tiny_results, tmp_path):
    (tmp_path / "there").symlink_to(tmp_path / "nowhere")
    for output, sentence in (("there", "exists; choose another path"), ("none/y", "cannot be written: No such")):
        with pytest.raises(BenchError, match=sentence):
            export_weights("pgd-at", WeightsFormat.TORCH, tmp_path / output, results=tiny_results)


def test_a_missing_extra(tiny_results, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    sentence = refused(tiny_results, tmp_path, "onnx")
    assert sentence.endswith("pip install 'robust-overfitting-bench[onnx]'")


class Branching(nn.Module):
    """Gives black images other logits than all others."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) if images.mean() > 0 else -self.network(images)


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        (
            "torchscript",
            "--format torchscript does not support the network of pgd-at-.*: read back, its logits differ by",
        ),
        pytest.param("onnx", "--format onnx does not support the network of pgd-at-", marks=pytest.mark.slow),
        ("hub", "its layers differ from those of small_cnn"),
    ],
)
def test_a_network_that_a_format_does_not_take(tiny_results, tmp_path, monkeypatch, format, sentence):
    def branching(*where):
        trained = trained_network(*where)
        return dataclasses.replace(trained, network=Branching(trained.network))

    monkeypatch.setattr(weights, "trained_network", branching)
    assert re.search(sentence, refused(tiny_results, tmp_path, format))


def test_an_exporter_that_fails_is_one_sentence(tiny_results, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no such operator\nin a graph")

    monkeypatch.setattr(torch.jit, "trace", fail)
    assert refused(tiny_results, tmp_path, "torchscript").endswith("no such operator")


def test_the_dataset_is_missing(tiny_results, tmp_path, monkeypatch):
    """Test images must be there to compare logits on."""
    trained = trained_network("pgd-at", results=tiny_results)
    cifar10 = dataset_of(trained.cell.protocol.dataset.model_copy(update={"name": "cifar10", "validation": 1}))
    monkeypatch.setattr(weights, "trained_network", lambda *_: dataclasses.replace(trained, dataset=cifar10))
    assert "dataset 'cifar10' not found" in refused(tiny_results, tmp_path)
