"""`bench evaluate`: a network trained elsewhere becomes a row; interrupted it goes on; bad input is one sentence."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.attacks.evaluate import correct_under
from bench.attacks.outcome import Outcome
from bench.config.cell import ExternalModel
from bench.config.suite import load_suite
from bench.data.dataset import dataset_of
from bench.data.datasets.cifar import CIFAR10_CLASSES
from bench.execution.external_evaluation import evaluate_network
from bench.models.external import load_external
from bench.models.robustbench_zoo import import_robustbench
from bench.models.small_cnn import SmallCNN
from bench.storage.checkpoints import Checkpoints
from bench.storage.run_folder import RunFolder
from bench.utils.files import file_sha256
from bench.utils.rng import generator

NAME = "ours"


@pytest.fixture
def weights(tmp_path):
    """Weights of an untrained network that knows no normalisation."""
    torch.manual_seed(1)
    torch.save({"net": SmallCNN(classes=10, channels=1).state_dict()}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def evaluate(bench, tmp_path):
    """Call `bench evaluate` on a network and a suite with further words."""

    def call(network, suite, *words, name=NAME):
        return bench("evaluate", network, "--suite", suite, "--name", name, "--results", tmp_path / "results", *words)

    return call


def folder_of(results):
    (path,) = (path for path in (results / "runs").glob("evaluated-*") if ".aside-" not in path.name)
    return RunFolder(path)


def test_it_becomes_a_row(bench, evaluate, suite, weights, copy_of_results):
    path, results = suite(), copy_of_results
    result = evaluate(weights, path, "--normalisation", "dataset")
    assert result.code == 0, result.err
    assert NAME in result.out
    assert "PGD-AT" in result.out
    assert file_sha256(weights) in result.out
    assert "ours: evaluated in" in result.err

    board = json.loads(bench("report", "--format", "json", "--results", results).out)["boards"][0]
    row = next(row for row in board["rows"] if row["label"] == NAME)
    assert row["evaluated_only"]
    assert row["rank"] is not None
    assert row["params"]["weights_sha256"] == file_sha256(weights)
    assert [figures["gap"] for figures in row["figures"]] == [None, None]
    assert row["figures"][0]["best"] == row["figures"][0]["last"]


def test_the_verdicts_are_those_of_the_network(evaluate, suite, weights, tmp_path):
    path = suite()
    result = evaluate(weights, path, "--normalisation", "0.3/0.4", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    protocol = load_suite(str(path)).suite.protocol
    dataset = dataset_of(protocol.dataset)
    test = dataset.splits(None).test
    where = ExternalModel(source=str(weights), normalisation="0.3/0.4")
    network = load_external(where, dataset, protocol).network.to(memory_format=torch.channels_last)
    found = folder_of(tmp_path / "results").read_outcomes()
    for attack, shown in zip(protocol.evaluation.final, told["outcomes"], strict=True):
        expected = correct_under(network, test, attack, protocol.threat, generator(0, "evaluation"))
        (record,) = (record for record in found.values() if record["title"] == attack.title)
        assert np.array_equal(Outcome.from_record(record).correct, expected.numpy())
        assert (shown["attack"], shown["images"], shown["right"]) == (attack.title, 500, int(expected.sum()))
    assert told["network"] == {
        "model": "small_cnn", "mean": [0.3], "std": [0.4], "weights_sha256": file_sha256(weights)
    }  # fmt: skip
    assert told["name"] == folder_of(tmp_path / "results").path.name


def test_the_same_weights_twice_are_nothing_to_do(evaluate, suite, weights, tmp_path):
    path = suite()
    assert evaluate(weights, path, "--normalisation", "none").code == 0
    before = {file: file.read_bytes() for file in folder_of(tmp_path / "results").path.rglob("*.json")}
    again = evaluate(weights.rename(tmp_path / "moved.pth"), path, "--normalisation", "0/1", name="another name")
    assert again.code == 0
    assert "nothing to do: this network is already evaluated, as 'ours'" in again.err
    assert {file: file.read_bytes() for file in folder_of(tmp_path / "results").path.rglob("*.json")} == before
    assert evaluate(tmp_path / "moved.pth", path, "--normalisation", "dataset").code == 0  # another network
    assert len(list((tmp_path / "results/runs").glob("evaluated-*"))) == 2


def test_further_attacks_take_over_what_was_judged(evaluate, suite, weights, tmp_path):
    assert evaluate(weights, suite(), "--normalisation", "none").code == 0
    path = suite({"final: [clean,": "final: [clean, {name: pgd, steps: 2},"})
    assert evaluate(weights, path, "--normalisation", "none").code == 0
    folders = [RunFolder(path) for path in (tmp_path / "results/runs").glob("evaluated-*")]
    few, more = sorted((folder.read_outcomes() for folder in folders), key=len)
    assert few.items() <= more.items()
    assert len(more) == 3


def test_a_checkpoint_of_ours_has_the_verdicts_of_its_run(bench, evaluate, suite, copy_of_results):
    path, results = suite(), copy_of_results
    (trained,) = (RunFolder(folder) for folder in (results / "runs").glob("pgd-at-*"))
    entry = Checkpoints(trained.checkpoints).entries["last"]
    assert evaluate(trained.checkpoints / entry.file, path).code == 0  # it states its normalisation
    again = {key: record["correct"] for (_, key), record in folder_of(results).read_outcomes().items()}
    first = {key: record["correct"] for (name, key), record in trained.read_outcomes().items() if name == "last"}
    assert again == first
    result = bench("compare", NAME, "pgd_at", "--results", results)
    assert result.code == 0
    assert "A: ours, evaluated only" in result.out
    assert "it has no gap to compare" in result.out
    assert "gap " not in result.out.split("Percent")[0]


def test_a_factory_in_a_file(evaluate, suite, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())\n"
    )
    result = evaluate(f"{file}:build", suite(), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["network"]["model"] == "net.py:build"


def test_a_network_of_the_zoo_on_its_dataset(evaluate, suite, tmp_path):
    """A real architecture of RobustBench with weights that are made here, on images that are made here."""
    kinds = import_robustbench("robustbench.model_zoo.enums")
    networks = import_robustbench("robustbench.model_zoo").model_dicts
    entry = networks[kinds.BenchmarkDataset.cifar_10][kinds.ThreatModel.Linf]["Wong2020Fast"]
    torch.manual_seed(1)
    network = entry["model"]().eval()
    files = tmp_path / "zoo/cifar10/Linf"
    files.mkdir(parents=True)
    torch.save(network.state_dict(), files / "Wong2020Fast.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    for part in ("train", "test"):
        for index, image in enumerate(pixels):
            folder = tmp_path / "cifar10" / part / CIFAR10_CLASSES[index % 10]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:05d}.png")
    path = suite(
        {
            "{name: digits, validation: 200}": "{name: cifar10, validation: 4, subset: {train: 0-23, test: 0-23}}",
            "batch_size: 64": "batch_size: 8",
            "{name: pgd, steps: 3, step_size: 0.05}": "{name: pgd, steps: 1, step_size: 0.01}",
        }
    )
    words = ("--model-dir", tmp_path / "zoo", "--data", tmp_path, "--json")
    result = evaluate("robustbench:Linf/Wong2020Fast", path, *words)
    assert result.code == 0, result.err
    told = json.loads(result.out)
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert told["outcomes"][0]["right"] == int((logits.argmax(1) == torch.arange(24) % 10).sum())
    assert told["network"]["weights_sha256"] == file_sha256(files / "Wong2020Fast.pt")


def test_every_command_bears_such_a_row(bench, evaluate, suite, weights, tmp_path):
    """Here the row is alone, so there is nothing to rank it among, no curve and no cost."""
    results = tmp_path / "results"
    assert evaluate(weights, suite(), "--normalisation", "none").code == 0
    for format in ("terminal", "markdown", "latex", "csv", "json", "html"):
        result = bench("report", "--format", format, "--results", results, "--published", "--sort", "gap")
        assert result.code == 0, result.err
        assert "evaluated only" in result.out or format in {"csv", "json"}
        assert file_sha256(weights) in result.out
    assert "bench evaluate WEIGHTS --suite" in result.out
    for words, count in (((), 5), (("--selection", "test", "--figure", "gap"), 1)):
        folder = tmp_path / str(count)
        plotted = bench("plot", "--results", results, "--output", folder, *words)
        assert plotted.code == 0, plotted.err
        assert len(list(folder.glob("*.png"))) == count
    shown = bench("show", "run", "evaluated", "--results", results, "--json")
    assert json.loads(shown.out)["params"]["weights_sha256"] == file_sha256(weights)
    assert NAME in bench("list", "runs", "--results", results).out
    assert bench("check", suite(), "--results", results).code == 2  # no baseline


def test_one_of_several_networks_is_named(evaluate, suite, weights, tmp_path):
    state = torch.load(weights)["net"]
    torch.manual_seed(2)
    other = {f"module.{name}": value for name, value in SmallCNN(classes=10, channels=1).state_dict().items()}
    torch.save({**state, **other}, tmp_path / "two.pt")
    words = ("--normalisation", "none", "--json")
    check_refused(evaluate(tmp_path / "two.pt", suite(), *words), "several networks, with the prefixes '', 'module.'")
    assert not (tmp_path / "results").exists()
    found = {}
    for prefix in ("", "module"):
        result = evaluate(tmp_path / "two.pt", suite(), *words, "--prefix", prefix, name=f"ours, {prefix!r}")
        assert result.code == 0, result.err
        found[prefix] = json.loads(result.out)
        assert found[prefix]["network"]["prefix"] == prefix
    assert found[""]["outcomes"] != found["module"]["outcomes"]


def test_a_factory_that_talks_leaves_json_alone(bench, evaluate, suite, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "import os\nfrom torch import nn\nprint('imported')\ndef build():\n    print('built')\n"
        "    os.system('echo from a process')\n    return nn.Sequential(nn.Flatten(), Talking())\n"
        "class Talking(nn.Linear):\n    def __init__(self):\n        super().__init__(64, 10)\n"
        "    def forward(self, x):\n        print('called')\n        return super().forward(x)\n"
    )
    result = evaluate(f"{file}:build", suite(), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["status"] == "finished"
    assert "called" in folder_of(tmp_path / "results").log.read_text()


def test_a_helper_that_changes_makes_another_row(evaluate, suite, tmp_path):
    (tmp_path / "helper.py").write_text("SCALE = 1.0\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nimport helper\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x.flatten(1)) * helper.SCALE\ndef build():\n    return Net(64, 10)\n"
    )
    assert evaluate(f"{tmp_path / 'net.py'}:build", suite()).code == 0
    assert "nothing to do" in evaluate(f"{tmp_path / 'net.py'}:build", suite()).err
    (tmp_path / "helper.py").write_text("SCALE = 2.0\n")
    assert "nothing to do" not in evaluate(f"{tmp_path / 'net.py'}:build", suite(), name="other").err
    assert len(list((tmp_path / "results/runs").glob("evaluated-*"))) == 2


def test_a_network_without_gradients_leaves_no_run(evaluate, suite, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    @torch.no_grad()\n    def forward(self, x):\n"
        "        return super().forward(x.flatten(1))\ndef build():\n    return Net(64, 10)\n"
    )
    check_refused(evaluate(f"{tmp_path / 'net.py'}:build", suite()), "has no gradient with respect to the images")
    assert not (tmp_path / "results").exists()


# --- interrupted -----------------------------------------------------------------------------------------------------

AUTOATTACK = {
    "final: [clean, {name: pgd, steps: 3, step_size: 0.05}]": (
        "final: [clean, {name: autoattack, attacks: [apgd-ce, apgd-t], images: 24, batch_size: 6}]"
    ),
    "seeds: [0]": "seeds: [0]\nexecution: {threads: 1}",
    "eps: 0.15": "eps: 0.05",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of a network that AutoAttack does not fool at once: trained for a moment, on clean digits."""
    dataset = dataset_of(load_suite("quickstart").suite.protocol.dataset)
    images = dataset.splits(None).train
    torch.manual_seed(0)
    network = SmallCNN(classes=10, channels=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        index = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images.pixels[index] / 255), images.labels[index]).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


def outcomes(folder):
    return {key: (record["correct"], record["detail"]) for key, record in folder.read_outcomes().items()}


@pytest.mark.slow
def test_interrupted_within_autoattack_and_continued(suite, trained, tmp_path):
    path = suite(AUTOATTACK)
    loaded, where = load_suite(str(path)), ExternalModel(source=str(trained), normalisation="none")
    assert evaluate_network(loaded, where, NAME, results=tmp_path / "whole").status == "finished"
    words = ["evaluate", trained, "--suite", path, "--name", NAME, "--normalisation", "none"]
    command = [sys.executable, "-m", "bench", *map(str, words), "--results", str(tmp_path / "results")]
    places = set()
    for how in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + 120
        while not (found := {file.read_bytes() for file in tmp_path.glob("results/runs/*/partial/*.json")} - places):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        places |= found
        os.killpg(process.pid, how)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        folder = folder_of(tmp_path / "results")
        assert folder.status() == "interrupted"
    assert process.returncode == 130
    assert "resume with: bench evaluate" in err
    assert evaluate_network(loaded, where, NAME, results=tmp_path / "results").status == "finished"
    assert outcomes(folder) == outcomes(folder_of(tmp_path / "whole"))


def test_one_that_failed_goes_on(evaluate, suite, weights, tmp_path):
    path = suite()
    assert evaluate(weights, path, "--normalisation", "none").code == 0
    folder = folder_of(tmp_path / "results")
    for outcome in folder.outcomes.glob("*.json"):
        outcome.unlink()
    folder.reopen()
    folder.finish("failed", reason="some day")
    assert evaluate(weights, path, "--normalisation", "none").code == 0
    assert len(folder.read_outcomes()) == 2


# --- bad input -------------------------------------------------------------------------------------------------------


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_weights_that_are_refused(evaluate, suite, weights, tmp_path):
    torch.save(SmallCNN(classes=7, channels=1).state_dict(), tmp_path / "seven.pt")
    torch.save({**torch.load(weights)["net"], "extra": torch.ones(1)}, tmp_path / "extra.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Dangerous(tmp_path / "trace")))
    for network, words, said in (
        ("none.pt", (), "no such file"),
        ("seven.pt", ("--normalisation", "none"), "needs [10"),
        ("extra.pt", ("--normalisation", "none"), "1 tensor that the network does not have: 'extra'"),
        ("code.pt", ("--normalisation", "none"), "not a file of plain tensors"),
        ("weights.pt", (), "state the normalisation of training"),
        ("weights.pt", ("--normalisation", "nine"), "--normalisation 'nine' is invalid"),
        ("weights.pt", ("--normalisation", "none", "--model", "small_cn"), "did you mean 'small_cnn'?"),
        ("weights.pt", ("--normalisation", "none", "--model", "small cnn"), "'small cnn' is not a valid name"),
        ("weights.pt", ("--normalisation", "none", "--device", "cuda"), "sees no NVIDIA GPU"),
        ("weights.pt", ("--normalisation", "none", "--store", "nonsense"), "database"),
    ):
        check_refused(evaluate(tmp_path / network, suite(), *words), said)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "trace").exists()


def check_refused(result, said):
    assert result.code == 2, result.err
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert result.out == ""


@pytest.mark.parametrize("name", ["", "pgd_at", "PGD-AT", "evaluated", " ours", "a\nb", "x" * 81])
def test_names_that_are_refused(evaluate, suite, weights, tmp_path, name):
    result = evaluate(weights, suite(), "--normalisation", "none", name=name)
    check_refused(result, "--name")
    assert not (tmp_path / "results").exists()


def test_a_suite_that_is_refused(evaluate, suite, weights, tmp_path):
    check_refused(evaluate(weights, "quickstrat"), "did you mean 'quickstart'?")
    check_refused(
        evaluate(weights, suite({"methods: [pgd_at]": "methods: [evaluated]"})), "add one with `bench evaluate`"
    )
    check_refused(evaluate("robustbench:L2/Wong2020Fast", suite()), "has the threat 'L2', but the suite has Linf")
    assert not (tmp_path / "results").exists()


def test_autoattack_needs_enough_classes(evaluate, suite, tmp_path):
    torch.save(SmallCNN(classes=3, channels=1).state_dict(), tmp_path / "three.pt")
    pixels, labels = np.zeros((30, 8, 8, 1), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "three.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    files = "{name: npz, validation: 3, files: {path: three.npz, classes: 3, shape: [1, 8, 8]}}"
    path = suite({
        "{name: digits, validation: 200}": files,
        "batch_size: 64": "batch_size: 8",
        "final: [clean, {name: pgd, steps: 3, step_size: 0.05}]": "final: [autoattack]",
    })  # fmt: skip
    result = evaluate(tmp_path / "three.pt", path, "--normalisation", "none", "--data", tmp_path)
    check_refused(result, "at least 4 classes, not 3")
    assert not (tmp_path / "results").exists()


def test_images_that_are_not_there(evaluate, suite, tmp_path):
    torch.save(SmallCNN(classes=10, channels=3).state_dict(), tmp_path / "colours.pt")
    path = suite({"name: digits, ": "name: cifar10, "})
    result = evaluate(tmp_path / "colours.pt", path, "--normalisation", "none", "--data", tmp_path)
    check_refused(result, "dataset 'cifar10' not found")
    assert not (tmp_path / "results").exists()
