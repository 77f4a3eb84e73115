"""Workers import the code of the driver, wherever it is started."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.utils.files import read_record

COMMAND = Path(sys.executable).with_name("bench")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COMMAND.exists(), reason="needs the installed command")]


def run(folder, suite, path="", **environment):
    """Run `suite` in `folder` by the installed command; return the outcomes of its one run, and its code's digest."""
    path = path or str(Path(bench.__file__).parents[1])
    done = subprocess.run(
        [COMMAND, "run", suite, "--results", "results"],
        cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (cell,) = (folder / "results").glob("runs/*/cell.json")
    outcomes = {file.name: read_record(file)["correct"] for file in cell.parent.glob("outcomes/*.json")}
    return outcomes, read_record(cell)["environment"]["code"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_suite):
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(tiny_suite)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, suite):
    return run(tmp_path_factory.mktemp("undisturbed"), suite)


def other_checkout(folder):
    """Put another checkout into `folder` whose attacks take no step."""
    package = Path(bench.__file__).parent
    shutil.copytree(package, folder / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    attack = folder / "bench" / "attacks" / "pgd.py"
    text = attack.read_text()
    assert "range(steps)" in text
    attack.write_text(text.replace("range(steps)", "range(0)"))


def shadows(folder, names):
    """Put modules into `folder` whose names are those of the standard library and of dependencies."""
    for name in names:
        (folder / name).write_text("open('EXECUTED', 'w').close()\nraise SystemExit('shadowed')\n")
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("open('EXECUTED', 'w').close()\n")


SHADOWED = ("numpy.py", "yaml.py", "typer.py")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        pytest.param("{}", (*SHADOWED, "random.py", "queue.py", "types.py"), id="PYTHONPATH"),
        pytest.param("{}:", SHADOWED, id="PYTHONPATH with an empty entry"),
    ],
)
def test_the_working_directory_is_not_imported(tmp_path, suite, undisturbed, path, names):
    other_checkout(tmp_path)
    shadows(tmp_path, names)
    assert run(tmp_path, suite, path=path.format(Path(bench.__file__).parents[1])) == undisturbed
    assert not (tmp_path / "EXECUTED").exists()
