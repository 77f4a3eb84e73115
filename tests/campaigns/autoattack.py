"""AutoAttack killed again and again, and on a real network with real images.

`tox -e autoattack` runs it, in some minutes on two cores; an ordinary pytest does not collect it. The second half needs
the dataset's images below BENCH_DATA, and skips without them.
"""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.attacks.autoattack import Cascade
from bench.attacks.evaluate import correct_under
from bench.config.attacks import STANDARD, AutoAttack, Clean, Threat
from bench.config.protocol import DatasetSettings
from bench.errors import DamagedFile
from bench.models.resnet import resnet18
from bench.storage.run_folder import RunFolder
from bench.utils.files import read_record
from bench.utils.rng import generator

KILLS = 20

SUITE = """\
name: killed
dataset: {name: digits, validation: 200}
model: small_cnn
threat: {norm: linf, eps: 0.15}
training:
  epochs: 4
  batch_size: 64
  attack: {name: pgd, steps: 3, step_size: 0.1}
evaluation:
  track: {attack: {name: pgd, steps: 1, step_size: 0.15}}
  final: [clean, {name: autoattack, images: 60, batch_size: 5}]
methods: [pgd_at]
"""


def evaluation(folder: Path, suite: Path, weights: Path) -> list[str]:
    words = ["evaluate", weights, "--suite", suite, "--name", "ours", "--results", folder, "--threads", "1"]
    return [sys.executable, "-m", "bench", *map(str, words)]


def outcome(folder: Path) -> dict:
    (path,) = folder.glob("runs/evaluated-*")
    (record,) = [
        record for record in RunFolder(path).read_outcomes().values() if record["attack"]["name"] == "autoattack"
    ]
    return {name: record[name] for name in ("attack", "count", "right", "correct", "detail", "weights_sha256")}


def places(folder: Path) -> list[tuple[int, int]]:
    """Return where the cascade stands, if it has begun and not ended."""
    found = []
    for path in folder.glob("runs/evaluated-*/partial/*.json"):
        try:
            record = read_record(path)
        except (OSError, DamagedFile):
            continue
        found.append((record["attack"], record["done"]))
    return found


def test_twenty_kills_change_no_verdict(tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    trained = tmp_path / "trained"
    bench = [sys.executable, "-m", "bench", "run", str(suite), "--results", str(trained)]
    subprocess.run(bench, check=True, capture_output=True)
    (weights,) = trained.glob("runs/*/checkpoints/weights-0003.safetensors")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(evaluation(undisturbed, suite, weights), check=True, capture_output=True)
    moments, draw, seen = 0, random.Random(0), set()
    while True:
        process = subprocess.Popen(
            evaluation(killed, suite, weights), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        before = places(killed)
        while process.poll() is None and places(killed) == before:  # until it has gone on from where it was
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        if moments == KILLS or process.poll() is not None:
            break
        seen |= set(places(killed))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        moments += 1
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    attacks = {STANDARD[attack] for attack, _ in seen}
    print(f"{moments} kills, at {len(seen)} different places in {', '.join(sorted(attacks))}")
    assert moments == KILLS
    assert outcome(killed) == outcome(undisturbed)


# --- a real network ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """Return the CIFAR-10 network that `pyautoattack` ships and the official test images there are, with labels."""
    from bench.data.dataset import dataset_of

    root = os.environ.get("BENCH_DATA")
    if not root or not (Path(root) / "cifar10-exact").is_dir():
        pytest.skip("BENCH_DATA names no folder with cifar10-exact")
    settings = DatasetSettings.model_validate(
        {
            "name": "image_folder", "validation": 100,
            "files": {"path": "cifar10-exact", "classes": 10, "shape": [3, 32, 32]},
        }
    )  # fmt: skip
    test = dataset_of(settings).splits(Path(root)).test
    examples = Path(importlib.util.find_spec("pyautoattack").origin).parent / "examples"
    weights = torch.load(examples / "model_test.pt", map_location="cpu", weights_only=True)
    network = resnet18.build(10, (3, 32, 32))
    network.load_state_dict(weights)
    spec = importlib.util.spec_from_file_location("shipped_resnet", examples / "resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = module.ResNet18()
    shipped.load_state_dict(weights)
    return network.eval().requires_grad_(False), shipped.eval(), test


def test_clean_accuracy_is_what_the_shipped_network_has(real):
    """Counted independently: the package's own network, images decoded one by one in the order of their paths."""
    from PIL import Image

    network, shipped, test = real
    folder = Path(os.environ["BENCH_DATA"]) / "cifar10-exact" / "test"
    names = sorted(path.name for path in folder.iterdir())
    right = 0
    with torch.no_grad():
        for path in sorted(folder.glob("*/*.png")):
            pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float() / 255
            right += int(shipped(pixels).argmax(1)) == names.index(path.parent.name)
    verdicts = correct_under(network, test, Clean(), Threat(norm="linf", eps=8 / 255), generator(0, "t"))
    print(f"{right} of {len(test)} test images are right, {100 * right / len(test):.2f} %")
    assert int(verdicts.sum()) == right
    assert len(test) == 512


@pytest.mark.parametrize("eps", [8 / 255, 0.5 / 255], ids=["none stands", "some stand"])
def test_verdicts_are_the_packages(real, eps):
    from pyautoattack import AutoAttack as Official

    network, shipped, test = real
    count = 32 if eps > 1 / 255 else 6
    (pixels,) = test.take(torch.arange(0, 512, 512 // count)[:count]).read([torch.arange(count)])
    images = (pixels.float() / 255).contiguous()
    labels = test.labels[torch.arange(0, 512, 512 // count)[:count]]
    official = Official(shipped, norm="Linf", eps=eps, seed=0)
    tracer = sys.gettrace()
    found, _ = official.run_standard_evaluation(images, labels, batch_size=count)
    sys.settrace(tracer)
    with torch.no_grad():
        expected = (shipped(found).argmax(1) == labels).numpy()
    cascade = Cascade(network.to(memory_format=torch.channels_last), Threat(norm="linf", eps=eps), AutoAttack(), 0)
    state = cascade.run(images, labels, None, lambda _state: None, lambda *_place: None)
    print(f"eps {255 * eps:g}/255: {expected.sum()} of {count} stand")
    np.testing.assert_array_equal(state.robust, expected)
