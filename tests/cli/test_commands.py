"""The commands do what they say, on stdout what was asked for and on stderr the rest."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.cli.doctor import _processor
from bench.cli.options import without_rerun
from bench.cli.run import run
from bench.config.suite import load_suite, shipped_suites
from bench.errors import BenchError
from bench.execution.driver import HEARTBEAT_TIMEOUT, MAX_ATTEMPTS
from bench.registry import DATASETS, METHODS
from bench.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def ran(tmp_path_factory, request):
    """Run the tiny suite once, and return (its path, the results folder, what the command printed)."""
    folder = tmp_path_factory.mktemp("ran")
    path = folder / "suite.yaml"
    path.write_text(request.getfixturevalue("tiny_suite"))
    command = [sys.executable, "-m", "bench", "run", str(path), "--results", str(folder / "results")]
    return path, folder / "results", subprocess.run(command, capture_output=True, text=True, check=False)


def test_run_trains_reports_and_then_has_nothing_to_do(bench, ran):
    path, results, first = ran
    assert first.returncode == 0
    assert "PGD-AT" in first.stdout
    assert "PGD-3" in first.stdout
    assert "1 of 1 cell ran" in first.stderr
    second = bench("run", path, "--results", results)
    assert second.code == 0
    assert "nothing to do" in second.err
    assert second.out == first.stdout


def test_run_as_json(bench, ran):
    path, results, _ = ran
    (run,) = json.loads(bench("run", path, "--results", results, "--json").out)
    assert (run["method"], run["seed"], run["status"]) == ("PGD-AT", 0, "finished")
    assert os.path.isdir(run["folder"])  # noqa: PTH112


def test_report_prints_the_table_alone(bench, ran):
    path, results, _ = ran
    for words in ((), (path,), ("--methods", "pgd_at"), ("--selection", "test")):
        result = bench("report", *words, "--results", results, "--format", "markdown")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("### ")
        assert "| PGD-AT |" in result.out
    accuracies = RunFolder.of(load_suite(str(path)).cells[0], results).epochs()[-1]["test"]["clean"]
    assert f"| {100 * accuracies:.2f} |" in result.out, "clean accuracy at last, as it was tracked"


def test_dry_run_says_what_would_run_and_writes_nothing(bench, suite, tmp_path, ran):
    path, results, _ = ran
    result = bench("run", path, "--results", tmp_path / "other", "--dry-run")
    assert "1 of 1 cell would run" in result.out
    assert not (tmp_path / "other").exists()
    (row,) = json.loads(bench("run", path, "--results", results, "--dry-run", "--json").out)
    assert (row["status"], row["action"], row["pflop"]) == ("finished", "skip", 0)


def test_dry_run_warns_of_images_that_are_not_there(bench, tmp_path):
    result = bench("run", "cifar10_small", "--methods", "pgd_at", "--seeds", "0", "--data", tmp_path, "--dry-run")
    assert (result.code, "1 of 1 cell would run" in result.out) == (0, True)
    assert result.err.startswith("warning: the same command would not start here without --dry-run: dataset 'cifar10'")


@pytest.mark.parametrize(("words", "preview"), [((), None), (("--preview",), True), (("--no-preview",), False)])
def test_run_previews_if_the_command_says_so(bench, suite, monkeypatch, words, preview):
    def stop(_loaded, *, settings, **_arguments):
        raise BenchError(f"preview={settings.preview}")

    monkeypatch.setattr("bench.execution.driver.run_suite", stop)
    assert bench("run", suite(), *words).err == f"bench: preview={preview}\n"


def test_emulated_bfloat16_is_said_before_anything_runs(bench, suite, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("bench.execution.estimate.measured_speed", lambda *_: 1e-6)
    warning = (
        r"warning: .+ has no bfloat16 and emulates it: a cell takes about .+ here, and about .+ with 'precision: f"
    )
    path, results = suite({"batch_size: 64": "batch_size: 64\n  precision: bf16"}), tmp_path / "results"
    assert re.match(warning, bench("run", path, "--results", results, "--dry-run").err)
    rows = json.loads((ran := bench("run", path, "--results", results, "--json")).out)
    assert [(row["status"], row["reason"]) for row in rows] == [("finished", "")]
    assert re.match(warning, ran.err)
    assert bench("run", path, "--results", results).err.count("emulates") == 0, "nothing is to be run"
    fp32 = suite({"batch_size: 64": "batch_size: 64\n  precision: fp32"})
    assert bench("run", fp32, "--results", results, "--dry-run").err == ""
    assert "bfloat16 is emulated" in _processor()
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert bench("run", path, "--results", tmp_path / "other", "--dry-run").err == ""
    assert "bfloat16 in hardware" in _processor()


def test_a_diverged_cell_is_exit_code_3(bench, suite, tmp_path):
    path = suite({"batch_size: 64": "batch_size: 64\n  optimizer: {lr: 1e30}"})
    result = bench("run", path, "--results", tmp_path / "results")
    assert result.code == 3
    assert "diverged" in result.err
    assert "epoch 0" in result.err


@pytest.mark.parametrize("kind", ["methods", "models", "datasets", "suites", "runs"])
def test_list(bench, ran, kind):
    _, results, _ = ran
    rows = json.loads(bench("list", kind, "--json", "--results", results).out)
    assert rows
    assert all(row["name"] for row in rows)
    if kind != "models":  # which take long to measure again
        text = bench("list", kind, "--results", results).out
        assert all(row["name"] in text for row in rows)
    else:
        sizes = {row["name"]: (row["parameters"], row["gflops"]) for row in rows}
        assert sizes["preact_resnet18"][0] == 11_172_170
        assert sizes["preact_resnet18"][1] == pytest.approx(1.11, rel=0.01)


def test_show(bench, ran):
    _, results, _ = ran
    method = json.loads(bench("show", "method", "early_stopping", "--json").out)
    assert method["parameters"][0]["source"] == "declared"
    assert "patience" in bench("show", "method", "early_stopping").out
    assert json.loads(bench("show", "suite", "ci", "--json").out)["protocol"]["model"] == "small_cnn"
    assert "He et al." in bench("show", "model", "preact_resnet18").out
    assert "CC BY" in bench("show", "dataset", "digits").out
    run = json.loads(bench("show", "run", "pgd", "--json", "--results", results).out)
    assert run["status"] == "finished"
    assert len(run["curve"]) == 2
    assert "curve" in bench("show", "run", "pgd", "--results", results).out


def test_show_prints_settings_as_suites_state_them(bench):
    printed = bench("show", "suite", "cifar10_small").out
    suite = json.loads(bench("show", "suite", "cifar10_small", "--json").out)
    _, protocol = re.split("^protocol:$", printed.split("\nseeds: ")[0], flags=re.MULTILINE)
    assert yaml.safe_load(protocol) == suite["protocol"]
    assert "{threshold: 1.5, blend: 0.5, tries: 2}" in printed
    assert (
        "augmentation: {name: crop, padding: 4, mode: reflect}, {name: flip}" in bench("show", "dataset", "cifar10").out
    )


@pytest.mark.parametrize(
    ("kind", "names"), [("dataset", DATASETS.names()), ("method", METHODS.names()), ("suite", [*shipped_suites()])]
)
def test_everything_that_is_listed_can_be_shown(bench, kind, names):
    for name in names:
        shown = bench("show", kind, name)
        assert (shown.code, shown.err) == (0, ""), name
        assert f"name: {name.rpartition('/')[2]}" in shown.out


def test_show_a_method_of_a_plugin_of_the_suite(bench):
    suite = Path(__file__).parents[2] / "examples" / "plugin.yaml"
    assert "in suite" in bench("show", "method", "my_label_smoothing", "--suite", suite).out


def test_validate_and_schema(bench, suite):
    assert "1 method x 1 seed = 1 cell," in bench("validate", suite()).out
    for name in [name for name in shipped_suites() if "/" not in name]:
        assert bench("validate", name).code == 0
    assert bench("validate", "papers/rice2020_cifar10").code == 0
    (found,) = json.loads(bench("validate", "ci", "--json").out)
    assert len(found["protocol"]) == 64
    schema = json.loads(bench("validate", "--schema").out)
    assert "training" in schema["properties"]
    assert bench("validate").code == 2


def test_doctor(bench, tmp_path, monkeypatch):
    result = bench("doctor", "--results", tmp_path)
    assert result.code == 0, result.out
    assert "torch" in result.out
    checks = json.loads(bench("doctor", "--json", "--results", tmp_path).out)
    assert {check["check"] for check in checks} >= {"versions", "store", "results folder"}
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    broken = bench("doctor", "--results", tmp_path)
    assert broken.code == 2
    assert "BAD  AutoAttack" in broken.out


def test_version_and_help(bench):
    assert bench("--version").out.strip() == "0.1.0"
    assert "run" in bench("--help").out
    assert bench().code == 2


def test_help_summaries_are_short_and_complete(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for group in ((), ("data",), ("export",)):
        lines = bench(*group, "--help").out.partition("Commands:\n")[2].splitlines()
        assert lines
        for line in lines:
            name, summary = line.split(maxsplit=1)
            assert len(summary.rstrip(".")) <= 45, line
            described = bench(*group, name, "--help").out.splitlines()[2].strip()
            assert described == summary, "cut off"


HELP = """\
import sys; sys.argv = ['bench', '--help']
from bench.cli.main import main
try: main()
except SystemExit: pass
"""


@pytest.mark.slow
def test_help_takes_less_than_two_seconds():
    """Well under half a second on a machine with nothing else to do."""
    subprocess.run([sys.executable, "-c", HELP], capture_output=True, timeout=2, check=True)


def test_help_loads_nothing_heavy():
    """Nor do the modules behind `bench list runs` and `bench compare` load torch."""
    code = HELP + "print(sorted({'torch', 'pandas', 'sqlalchemy', 'numpy', 'pydantic'} & set(sys.modules)))"
    code += "\nimport bench.reporting.comparison, bench.storage.find; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["[]", "False"]


def test_the_command_that_continues_asks_for_no_rerun():
    words = ["run", "ci", "--rerun", "all", "--seeds", "0", "--rerun=failed"]
    assert without_rerun(words) == ["run", "ci", "--seeds", "0"]


def test_options_have_the_defaults_of_the_library():
    defaults = inspect.signature(run).parameters
    assert (defaults["max_attempts"].default, defaults["heartbeat_timeout"].default) == (
        MAX_ATTEMPTS,
        HEARTBEAT_TIMEOUT,
    )
