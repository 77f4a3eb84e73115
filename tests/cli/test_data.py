"""`bench data`: what is there, whether it is whole, and how it gets there."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from bench.cli.data import complete_name

FILES = "dataset: {name: image_folder, validation: 2, files: {path: pets, classes: 2, shape: [3, 8, 8]}}"


@pytest.fixture
def pets(tmp_path, suite):
    """Write an image folder and a suite for it; return (root, suite)."""
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(5):
                image = Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(tmp_path / "pets" / part / name / f"{number}.png")
    return tmp_path, suite({"dataset: {name: digits, validation: 200}": FILES, "batch_size: 64": "batch_size: 4"})


def test_list(bench, tmp_path):
    rows = {row["name"]: row for row in json.loads(bench("data", "list", "--json", "--data", tmp_path).out)}
    assert rows["digits"]["found"] == "yes"
    assert rows["tiny_imagenet"] == {
        "name": "tiny_imagenet", "title": "Tiny ImageNet", "classes": 200, "image": "3x64x64", "train": 100_000,
        "test": 10_000, "found": "no", "where": None, "prepared": "no",
    }  # fmt: skip
    assert "as a suite says" in bench("data", "list").out


def test_unread_files(bench, pets):
    root, path = pets
    (next(root.rglob("train/*")) / "more.jfif").touch()
    found = bench("data", "check", path, "--data", root)
    assert found.code == 2
    assert "unread: 1\n" in found.out
    assert "problem: 1 file is not read: " in found.out
    assert bench("data", "check", path, "--data", root, "--ignore-unread").code == 0


def test_check_and_prepare(bench, pets):
    root, path = pets
    found = json.loads(bench("data", "check", path, "--data", root, "--json").out)
    assert (found["prepared"], found["train"]["images"], found["problems"]) == ("no", 10, [])
    result = bench("data", "prepare", path, "--data", root)
    assert (result.code, result.err) == (0, "")
    assert "are prepared:" in result.out
    assert "nothing to do" in bench("data", "prepare", path, "--data", root).out
    result = bench("data", "check", path, "--data", root, "--decode")
    assert result.code == 0
    assert "prepared: yes" in result.out
    assert f"digest: {found['digest']}" in result.out
    assert bench("run", path, "--data", root, "--results", root / "results").code == 0


def test_check_names_every_problem_and_ends_with_2(bench, pets):
    root, path = pets
    for name in ("cat/1.png", "dog/4.png"):
        (root / "pets" / "test" / name).write_bytes(b"no image")
    assert bench("data", "check", path, "--data", root).code == 0  # nothing is decoded
    result = bench("data", "check", path, "--data", root, "--decode")
    assert result.code == 2
    assert [line.split()[2] for line in result.out.splitlines() if line.startswith("problem: image ")] == [
        str(root / "pets" / "test" / name) for name in ("cat/1.png", "dog/4.png")
    ]
    result = bench("data", "check", "restricted_imagenet", "--data", root)
    assert (result.code, result.err) == (2, "")
    assert "problem: dataset 'restricted_imagenet' not found" in result.out
    assert json.loads(bench("data", "check", "restricted_imagenet", "--json").out)["problems"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "digit"), "no dataset and no suite is called 'digit'; did you mean 'digits'?"),
        (("check", "none.yaml"), "no such suite file"),
        (("prepare", "image_folder"), "name the suite instead"),
        (("prepare", "tiny_imagenet"), "set --data or BENCH_DATA"),
    ],
)
def test_bad_input_is_one_sentence(bench, monkeypatch, words, said):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    result = bench("data", *words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert len(result.err.splitlines()) == 1


def test_names_are_completed():
    assert complete_name("tiny") == ["tiny_imagenet"]
    assert "quickstart" in complete_name("")


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys; sys.argv = ['bench', 'data', '--help']\nfrom bench.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\nheavy = {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
    code += "print(sorted(heavy), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prepare" in done.stdout
    assert done.stderr.strip().endswith("[]")


SLOW = """
import sys, time
from bench.data import prepare
from bench.data.readers import FileReader
load = FileReader.load
FileReader.load = lambda self, index, *rest: time.sleep(0.5) or load(self, index, *rest)
prepare.CHUNK = 1
from bench.cli.main import main
main()
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted(bench, pets, kind):
    root, path = pets
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "data", "prepare", str(path), "--data", str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(root.glob("prepared/*/*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "bench: interrupted; no incomplete file is left\n")
    assert [path.name for path in root.glob("prepared/*/*")] == ["lock"]
