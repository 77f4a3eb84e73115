import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from bench.cli.main import main
from bench.config.suite import load_suite
from bench.errors import BenchError
from bench.registry import METHODS, load_plugin
from bench.testing import conform

EXAMPLES = Path(__file__).parents[1] / "examples"
PLUGIN, SUITE = EXAMPLES / "label_smoothing.py", EXAMPLES / "plugin.yaml"

pytestmark = pytest.mark.usefixtures("forget_plugins")


@pytest.fixture
def forget_plugins():
    """Let every test import the plug-in files anew, since what they register is forgotten."""
    yield
    for name in [name for name in sys.modules if name.startswith("bench_plugin_")]:
        del sys.modules[name]


# --- a plug-in file --------------------------------------------------------------------------------------------------


def test_the_suite_loads_the_method_of_its_plugin():
    loaded = load_suite(str(SUITE))
    rows = {row.label: row for row in loaded.methods}
    assert list(rows) == ["PGD-AT", "PGD-AT + LS", "PGD-AT + LS, 0.3"]
    ours = rows["PGD-AT + LS"]
    assert (ours.name, ours.params, ours.origin, ours.custom) == (
        "my_label_smoothing",
        {"smoothing": 0.1},
        "paper",
        False,
    )
    assert rows["PGD-AT + LS, 0.3"].custom
    assert loaded.cells[0].plugins == (str(PLUGIN),)


def test_the_method_conforms():
    load_plugin(PLUGIN)
    conform("my_label_smoothing")


def test_its_loss_is_what_it_says():
    load_plugin(PLUGIN)
    kind = METHODS.get("my_label_smoothing")
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.25, 3.0]], dtype=torch.float64)
    method = kind(kind.Params(smoothing=0.3), None)
    method.model = lambda _images: logits
    batch = type("Batch", (), {"labels": torch.tensor([0, 1])})
    total = 0.0
    for row, label in zip(logits.tolist(), (0, 1), strict=True):
        for place, logit in enumerate(row):
            weight = 0.3 / 3 + (0.7 if place == label else 0)
            total -= weight * (logit - math.log(sum(map(math.exp, row))))
    loss, returned = method.loss(batch, None)
    assert loss.item() == pytest.approx(total / 2)
    assert returned is logits


def suite_with(folder, plugin, method="my_label_smoothing"):
    content = yaml.safe_load(SUITE.read_text()) | {"plugins": [plugin], "methods": [method]}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("import torch.nn.functional as F", "import torch.nn.functinal as F", "does not import: ModuleNotFoundError: "),
        (
            "class LabelSmoothing(Method[Params]):",
            "class LabelSmoothing(Method[Params])",
            "does not import: SyntaxError",
        ),
        ('{"my_label_smoothing": Lab', '{"fomo": Lab', "the method name 'fomo' is registered already"),
        (
            'METHODS = {"my_label_smoothing": LabelSmoothing}',
            "",
            "lists no parts: it needs METHODS, DATASETS or MODELS",
        ),
    ],
    ids=["import", "syntax", "taken name", "no parts"],
)
def test_a_wrong_plugin_ends_the_command_before_anything_runs(tmp_path, monkeypatch, capsys, old, new, problem):
    text = PLUGIN.read_text()
    assert text.count(old) == 1
    (tmp_path / "mine.py").write_text(text.replace(old, new))
    suite = suite_with(tmp_path, "mine.py")
    monkeypatch.setattr(sys, "argv", ["bench", "run", str(suite), "--results", str(tmp_path / "results")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"bench: {suite}:4: plugins.0: plug-in {tmp_path / 'mine.py'}")
    assert problem in printed
    assert "\n" not in printed
    assert not (tmp_path / "results").exists()


def test_a_suite_that_does_not_name_the_file_does_not_know_the_method(tmp_path):
    (tmp_path / "suite.yaml").write_text(SUITE.read_text().replace("plugins:", "# plugins:"))
    with pytest.raises(BenchError, match=r"suite\.yaml:\d+: methods\.1: unknown method 'my_label_smoothing'"):
        load_suite(str(tmp_path / "suite.yaml"))


# --- an installed package --------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    find_spec("hatchling") is None or find_spec("pip") is None, reason="needs pip and hatchling to build the package"
)
def test_the_package_is_found_through_its_entry_point(tmp_path):
    site, source = tmp_path / "site", tmp_path / "examples" / "package"
    shutil.copytree(EXAMPLES, source.parent, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", site, source], check=True)
    assert (site / "bench_label_smoothing.py").read_text() == PLUGIN.read_text()
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    (tmp_path / "suite.yaml").write_text(SUITE.read_text().replace("plugins:", "# plugins:"))

    command = [sys.executable, "-m", "bench", "validate", "suite.yaml"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "3 cells" in done.stdout


# --- the notebook ----------------------------------------------------------------------------------------------------

NOTEBOOK = EXAMPLES / "leaderboard.ipynb"


def test_the_notebook_imports_from_bench_alone():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    tree = ast.parse(code.replace("%matplotlib inline", ""))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"bench", "pandas", "pathlib", "tempfile"}


@pytest.mark.slow
def test_the_notebook_shows_what_is_committed(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    committed, executed = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    nbclient.NotebookClient(executed, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def outputs(notebook):
        return [
            (output.output_type, sorted(output.get("data", [])), re.findall(r"<th>(.+?)</th>", str(output.get("data"))))
            for cell in notebook.cells
            for output in cell.get("outputs", [])
        ]

    def unordered(found):
        return [(kind, data, sorted(headings)) for kind, data, headings in found]

    assert unordered(outputs(executed)) == unordered(outputs(committed))
    assert [output for output in outputs(executed) if "image/png" in output[1]]
