"""Is a figure ever measured with other code, data, weights, plug-ins or caches than those beside it, without a word?

Between every two steps of a run (start, interruption, continuation, a second method, an external model, further
attacks, ingestion, report, regression gate) something is swapped. The step then refuses with a sentence, or the board
says what is different, or its figures are those of the undisturbed run. Anything else is silent, and fails.

`tox -e identity` runs it, a quarter of an hour on two cores; an ordinary pytest does not collect it.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import bench

SUITE = """\
name: identity
dataset: {name: npz, validation: 40, files: {path: d.npz, classes: 4, shape: [1, 8, 8]}}
model: small_cnn
threat: {norm: linf, eps: 0.1}
training: {epochs: 4, batch_size: 40, attack: {name: pgd, steps: 2, step_size: 0.05}}
evaluation:
  track: {attack: {name: pgd, steps: 2, step_size: 0.05}, test: false}
  final: [clean, {name: pgd, steps: 5, step_size: 0.03}]
methods: [mine, pgd_at]
plugins: [plugin/mine.py]
"""

PLUGIN = """\
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from constants import SCALE
from methods.pgd_at import PGDAT

class Mine(PGDAT):
    info = replace(PGDAT.info, name="mine", title="Mine")
    def begin_epoch(self, epoch):
        if epoch == 2 and Path(__file__).with_name("PAUSE").exists():
            time.sleep(600)
    def loss(self, batch, adversarial):
        loss, logits = super().loss(batch, adversarial)
        return SCALE * loss, logits

METHODS = {"mine": Mine}
"""

FACTORY = """\
from pathlib import Path
import torch
from shift import SHIFT
from bench.models.small_cnn import SmallCNN

class Shifted(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, images):
        return self.inner((images - 0.5) / 0.5 + SHIFT)

def build():
    inner = SmallCNN(4, 1)
    inner.load_state_dict(torch.load(Path(__file__).with_name("plain.pt")))
    return Shifted(inner)
"""


LAUNCH = """\
from bench.cli.main import main
if __name__ == "__main__":
    main()
"""


class World:
    """One folder with a copy of the code, data, plug-ins, an external model, and results; restored from snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder / "world", folder
        (folder / "launch.py").write_text(LAUNCH)  # as the installed command
        self.results, self.suite = self.folder / "results", self.folder / "suite.yaml"

    def bench(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the world's code."""
        home = environment.pop("cwd", str(self.folder))
        variables = {**os.environ, "PYTHONPATH": str(self.folder / "code"), **environment}
        return subprocess.run(
            [sys.executable, self.kept / "launch.py", *map(str, words)],
            cwd=home, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def keep(self, name: str) -> None:
        shutil.copytree(self.folder, self.kept / name, symlinks=True)

    def restore(self, name: str) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept / name, self.folder, symlinks=True)

    def run_folder(self, method: str) -> Path:
        return next(
            folder
            for folder in sorted((self.results / "runs").iterdir())
            if folder.name.startswith(method.replace("_", "-"))
        )

    def board(self) -> tuple[dict[str, tuple[str, ...]], set[str]]:
        """Return the figures of every row, and what the notes say."""
        done = self.bench("report", "--results", self.results, "--format", "markdown")
        lines = (done.stdout + done.stderr).splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
        figures = {f"{number} {row[2]}": tuple(row[3:-5]) for number, row in enumerate(rows[2:])}
        return figures, {line for line in lines if line and line[0] not in "|#"}


# --- what is swapped -------------------------------------------------------------------------------------------------


def edit(path: str, old: str, new: str) -> Callable[[World], None]:
    def swap(world: World) -> None:
        file = world.folder / path
        text = file.read_text()
        assert old in text, (path, old)
        file.write_text(text.replace(old, new))

    return swap


def arrays(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[World], None]:
    def swap(world: World) -> None:
        file = world.folder / "data" / "d.npz"
        content = dict(np.load(file))
        np.savez(file, **{name: changes.get(name, lambda array: array)(array) for name, array in content.items()})

    return swap


def reweighted(method: str, pattern: str) -> Callable[[World], None]:
    """Replace weights of a run by others of the same names and shapes."""

    def swap(world: World) -> None:
        for file in world.run_folder(method).glob(f"checkpoints/{pattern}"):
            save_file({name: value.flip(0) if value.dim() else value for name, value in load_file(file).items()}, file)

    return swap


def plain_weights(world: World) -> None:
    file = world.folder / "net" / "plain.pt"
    torch.save({name: value * 0.5 for name, value in torch.load(file).items()}, file)


def outcomes(world: World) -> None:
    """Turn the outcomes of a run into those of another, with their digests."""
    own, other = (sorted(world.run_folder(name).glob("outcomes/*.json")) for name in ("mine", "pgd_at"))
    for one, another in zip(own, other, strict=True):
        shutil.copyfile(another, one)


def curve(world: World) -> None:
    file = world.run_folder("mine") / "epochs.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["train"]["robust"] = 0.99
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def stored_accuracy(world: World) -> None:
    with sqlite3.connect(world.results / "bench.sqlite") as store:
        store.execute("UPDATE outcome SET accuracy = 0.99")


def touched(world: World) -> None:
    for file in (world.folder / "data").rglob("*"):
        os.utime(file, (1, 1))


def shadows(world: World) -> None:
    for name in ("random.py", "numpy.py", "types.py", "queue.py"):
        (world.folder / name).write_text("raise SystemExit('shadowed')\n")
    (world.folder / "bench").mkdir()
    (world.folder / "bench" / "__init__.py").write_text("raise SystemExit('shadowed')\n")
    (world.folder / "methods").mkdir()
    (world.folder / "methods" / "__init__.py").write_text("raise SystemExit('shadowed')\n")


def nothing(_world: World) -> None:
    pass


def inverted(array: np.ndarray) -> np.ndarray:
    return 255 - array


def one_pixel(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[0] ^= 255
    return array


def next_class(array: np.ndarray) -> np.ndarray:
    return (array + 1) % 4


@dataclass(frozen=True)
class Swap:
    """A change, and the environment of the step that follows it; `kind` is what it exchanges."""

    kind: str
    name: str
    apply: Callable[[World], None] = nothing
    environment: tuple[tuple[str, str], ...] = ()


CODE = [
    Swap("code", "attacks take no step", edit("code/bench/attacks/pgd.py", "range(steps)", "range(0)")),
    Swap("code", "a method's source", edit("code/methods/pgd_at.py", "class PGDAT", "OTHER = True\n\n\nclass PGDAT")),
    Swap("code", "the loss", edit("code/bench/training/method.py", "loss.backward()", "(2 * loss).backward()")),
]
DATA = [
    Swap("data", "labels of the test images", arrays(y_test=next_class)),
    Swap("data", "pixels of the test images", arrays(x_test=inverted)),
    Swap("data", "one pixel of a test image", arrays(x_test=one_pixel)),
    Swap("data", "labels of the training images", arrays(y_train=next_class)),
    Swap("data", "pixels of the training images", arrays(x_train=inverted)),
    Swap("data", "time stamps alone", touched),
]
WEIGHTS = [
    Swap("weights", "best and last", reweighted("mine", "weights-*.safetensors")),
    Swap("weights", "the state to resume from", reweighted("mine", "resume-*.safetensors")),
]
PLUGINS = [
    Swap("plug-in", "the method", edit("plugin/mine.py", "SCALE * loss", "2 * SCALE * loss")),
    Swap("plug-in", "a module that it imports", edit("plugin/constants.py", "1.0", "3.0")),
]
EXTERNAL = [
    Swap("plug-in", "the factory", edit("net/factory.py", "/ 0.5 + SHIFT", "/ 0.4 + SHIFT")),
    Swap("plug-in", "a module that the factory imports", edit("net/shift.py", "0.0", "0.3")),
    Swap("weights", "those that the factory loads", plain_weights),
]
RECORDS = [
    Swap("results", "outcomes of another run", outcomes),
    Swap("results", "the curve", curve),
]
ENVIRONMENT = [
    Swap("environment", "modules in the working directory", shadows),
    Swap("environment", "a working directory elsewhere", nothing, (("cwd", "/"),)),
    Swap("environment", "settings of other tools", nothing, (("MPLBACKEND", "none"), ("COLUMNS", "0"))),
    Swap("environment", "PYTHONHASHSEED and the time zone", nothing, (("PYTHONHASHSEED", "7"), ("TZ", "Asia/Tokyo"))),
]


# --- the steps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A command, the snapshot that it starts from, and the one that it leaves."""

    name: str
    before: str
    words: Callable[[World], list[object]]
    swaps: list[Swap]


def run(*words: object) -> Callable[[World], list[object]]:
    return lambda world: ["run", world.suite, "--data", world.folder / "data", "--results", world.results, *words]


def further(world: World) -> list[object]:
    """Run the suite with one attack more, which takes over trained weights and what was measured."""
    other = world.folder / "further.yaml"
    other.write_text(world.suite.read_text().replace("final: [clean", "final: [clean, fgsm"))
    return ["run", other, "--data", world.folder / "data", "--results", world.results, "--methods", "mine"]


def evaluate(world: World) -> list[object]:
    model = f"{world.folder / 'net' / 'factory.py'}:build"
    return [
        "evaluate", model, "--suite", world.suite, "--name", "external",
        "--data", world.folder / "data", "--results", world.results,
    ]  # fmt: skip


def ingest(world: World) -> list[object]:
    (world.results / "bench.sqlite").unlink()
    return ["ingest", "--results", world.results]


def report(world: World) -> list[object]:
    return ["report", "--results", world.results]


def check(world: World) -> list[object]:
    return ["check", world.suite, "--baseline", world.kept / "baseline.json", "--results", world.results]


STEPS = [
    Step("continuation", "interrupted", run("--methods", "mine"), CODE + DATA + WEIGHTS + PLUGINS + ENVIRONMENT),
    Step("second method", "one method", run("--methods", "pgd_at"), CODE + DATA + WEIGHTS[:1] + PLUGINS + ENVIRONMENT),
    Step("run again", "two methods", run(), CODE + DATA + WEIGHTS[:1] + PLUGINS + RECORDS),
    Step("external model", "two methods", evaluate, CODE[:1] + DATA + EXTERNAL + ENVIRONMENT[:2]),
    Step("external model again", "evaluated", evaluate, CODE[:1] + DATA[:3] + EXTERNAL),
    Step("further attack", "two methods", further, CODE + DATA + WEIGHTS[:1] + PLUGINS + RECORDS),
    Step("ingestion", "two methods", ingest, CODE[:1] + DATA[:1] + WEIGHTS[:1] + PLUGINS[:1] + RECORDS),
    Step(
        "report", "two methods", report,
        CODE[:1] + DATA[:1] + RECORDS + ENVIRONMENT + [Swap("results", "the store", stored_accuracy)],
    ),
    Step("regression gate", "two methods", check, CODE + DATA[:2] + WEIGHTS[:1] + PLUGINS + RECORDS + ENVIRONMENT[:2]),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world and its snapshots: interrupted, one method, two methods, evaluated."""
    world = World(tmp_path_factory.mktemp("identity"))
    package = Path(bench.__file__).parent
    for source in (package, package.parent / "methods"):
        shutil.copytree(
            source, world.folder / "code" / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for folder, texts in (
        ("plugin", {"mine.py": PLUGIN, "constants.py": "SCALE = 1.0\n", "PAUSE": ""}),
        ("net", {"factory.py": FACTORY, "shift.py": "SHIFT = 0.0\n"}),
        ("data", {}),
    ):
        (world.folder / folder).mkdir()
        for name, text in texts.items():
            (world.folder / folder / name).write_text(text)
    world.suite.write_text(SUITE)
    digits = load_digits()
    few = digits.target < 4
    x, y = (digits.images[few] / 16 * 255).astype(np.uint8), digits.target[few]
    np.savez(world.folder / "data" / "d.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:700], y_test=y[400:700])

    words = [sys.executable, world.kept / "launch.py", *map(str, run("--methods", "mine")(world))]
    driver = subprocess.Popen(words, cwd=world.folder, env={**os.environ, "PYTHONPATH": str(world.folder / "code")})
    until = time.monotonic() + 120
    while not any(file.read_text().count("\n") == 2 for file in world.results.glob("runs/*/epochs.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    (world.folder / "plugin" / "PAUSE").unlink()
    world.keep("interrupted")
    for name, command in (
        ("one method", run("--methods", "mine")), ("two methods", run("--methods", "pgd_at")), ("evaluated", evaluate)
    ):  # fmt: skip
        if name == "evaluated":
            weights = load_file(next(iter(world.run_folder("pgd_at").glob("checkpoints/weights-*.safetensors"))))
            inner = {key.removeprefix("body."): value for key, value in weights.items() if key.startswith("body.")}
            torch.save(inner, world.folder / "net" / "plain.pt")
            shutil.rmtree(world.kept / "two methods")
            world.keep("two methods")
        done = world.bench(*command(world))
        assert done.returncode == 0, done.stderr
        world.keep(name)
    world.restore("two methods")
    done = world.bench("check", world.suite, "--baseline", world.kept / "baseline.json", "--update",
                       "--results", world.results)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return world


@pytest.fixture(scope="module")
def undisturbed(world: World) -> dict[str, tuple[int, dict, set[str]]]:
    """The exit code and the board after each step, with nothing swapped."""
    outcome = {}
    for step in STEPS:
        world.restore(step.before)
        done = world.bench(*step.words(world))
        assert done.returncode == 0, (step.name, done.stdout, done.stderr)
        outcome[step.name] = (done.returncode, *world.board())
    return outcome


@pytest.mark.parametrize(
    ("step", "swap"),
    [pytest.param(step, swap, id=f"{step.name}: {swap.kind}, {swap.name}") for step in STEPS for swap in step.swaps],
)
def test_no_swap_is_silent(world: World, undisturbed, step: Step, swap: Swap) -> None:
    world.restore(step.before)
    swap.apply(world)
    done = world.bench(*step.words(world), **dict(swap.environment))
    assert "Traceback" not in done.stderr
    _, figures, notes = undisturbed[step.name]
    after, said = world.board()
    new = sorted(said - notes)
    if done.returncode:
        outcome = f"refused ({done.returncode}): {done.stderr.strip().splitlines()[-1] if done.stderr else done.stdout}"
        assert done.returncode in {2, 3, 4}, outcome
        assert done.stderr.strip() or done.stdout.strip()
    elif after == figures:
        outcome = "nothing changed" + (f"; {new[0]}" if new else "")
    else:
        changed = sorted(key for key in figures if after.get(key) != figures[key])
        added = sorted(after.keys() - figures.keys())
        outcome = f"said: {new[0] if new else ''}; rows added: {added}, changed: {changed}"
        named = any("different" in line or "SHA-256" in line for line in new)
        logs = [log.read_text() for log in world.results.glob("runs/*/log.txt")]
        again = step.words is further and not any("reused the same training" in log for log in logs)
        outcome += "; trained again, on a board of its own" if again else ""
        assert named or again or (added and not changed), f"silent: {changed}, {new}"
    print(f"\n{step.name} | {swap.kind}: {swap.name} | {outcome[:230]}")
