"""However a command ends: one sentence, no traceback, and exit code 1 for a regression alone."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from sqlalchemy.exc import IntegrityError

from bench.cli.app import app
from bench.errors import ExitCode

STORE, SUITE = "bench.storage.store.Store.__init__", "bench.config.suite.load_suite"

COMMANDS = {
    "run quickstart": SUITE,
    "watch": "bench.execution.watch.Watcher.states",
    "evaluate x.pt --suite quickstart --name x": SUITE,
    "report": STORE,
    "plot": STORE,
    "site --output x": STORE,
    "compare a b": STORE,
    "reproduce papers/rice2020_cifar10 --no-run": SUITE,
    "diff-protocol quickstart ci": "bench.reporting.protocol_difference.protocol_difference",
    "check quickstart": STORE,
    "speed": SUITE,
    "list runs": STORE,
    "show suite quickstart": SUITE,
    "validate quickstart": SUITE,
    "ingest": "bench.storage.ingest.run_folders",
    "clean": "bench.storage.cleanup.removable",
    "doctor": "bench.cli.doctor.diagnose",
    "data list": "bench.data.status.overview",
    "data check digits": "bench.data.status.check",
    "data prepare digits": "bench.data.status.fetch",
    "export robustbench x": STORE,
    "export tracker x --tracker tensorboard": "bench.storage.find.find_run",
    "bundle x --output y": "bench.storage.find.find_run",
    "check-bundle x": "bench.storage.bundle.read_bundle",
    "export weights x --format torch --output x.pt": "bench.export.weights.trained_network",
}
"""Each command, and something that it calls."""

ERRORS = {
    "torch": (RuntimeError("shape '[2]' is invalid\nfor input of size 3"), ExitCode.INTERNAL),
    "database": (IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed")), ExitCode.INTERNAL),
    "memory": (MemoryError(), ExitCode.INTERNAL),
    "recursion": (RecursionError("maximum recursion depth exceeded"), ExitCode.INTERNAL),
    "encoding": (UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range(128)"), ExitCode.INTERNAL),
    "import": (ModuleNotFoundError("No module named 'torch'"), ExitCode.INTERNAL),
    "end of file": (EOFError(), ExitCode.INTERNAL),
    "abort": (typer.Abort(), ExitCode.INTERNAL),
    "exit": (SystemExit(1), ExitCode.INTERNAL),
    "success": (SystemExit(0), ExitCode.INTERNAL),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "secret.pt"), ExitCode.INVALID),
    "disk": (OSError(errno.EIO, "Input/output error"), ExitCode.INVALID),
    "pipe of another program": (BrokenPipeError(errno.EPIPE, "Broken pipe"), ExitCode.INVALID),
    "interrupt": (KeyboardInterrupt(), ExitCode.INTERRUPTED),
}


def fail(monkeypatch, name, error):
    def failing(*_args, **_options):
        raise error

    monkeypatch.setattr(name, failing)


def test_every_command_is_here():
    names = {command.name for command in app.registered_commands}
    names |= {f"{group.name} {command.name or command.callback.__name__}"
              for group in app.registered_groups for command in group.typer_instance.registered_commands}  # fmt: skip
    assert names == {name for name in names for command in COMMANDS if f"{command} ".startswith(f"{name} ")}
    assert len(names) == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_ends_with_the_code_of_a_regression(bench, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail(monkeypatch, COMMANDS[command], RuntimeError("something deep"))
    result = bench(*command.split())
    assert result.code == ExitCode.INTERNAL
    (log,) = tmp_path.glob("bench-*.log")
    assert result.err == f"bench: internal error (the traceback is in {log}): RuntimeError: something deep\n"
    assert "in failing" in log.read_text()
    assert result.out == ""


@pytest.mark.parametrize("name", ERRORS)
def test_whatever_is_raised_is_one_sentence(bench, monkeypatch, tmp_path, name):
    error, code = ERRORS[name]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail(monkeypatch, SUITE, error)
    result = bench("validate", "quickstart")
    assert result.code == code
    if name != "interrupt":
        (line,) = filter(None, result.err.splitlines())
        assert line.startswith("bench: ")
        assert len(list(tmp_path.glob("bench-*.log"))) == 1


def test_installing_completion(tmp_path):
    variables = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "bench", "--install-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bash completion installed" in done.stdout


def test_without_a_folder_for_the_log(bench, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    fail(monkeypatch, SUITE, RuntimeError("deep"))
    result = bench("validate", "quickstart")
    assert result.code == ExitCode.INTERNAL
    assert "no file for the traceback could be written" in result.err


@pytest.mark.parametrize(
    "words", [(), ("run",), ("nothing",), ("run", "quickstart", "--jobs", "many"), ("report", "--")]
)
def test_usage_errors(bench, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    assert bench(*words).code in {2, 4}


def test_the_documented_codes_are_those_in_use():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    table = page.partition("## Exit codes")[2].partition("## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(ExitCode)


# --- processes of their own ------------------------------------------------------------------------------------------


def shell(script, folder, **variables):
    """Run a shell script in which `$B` is the command, and return (exit code, stdout, stderr)."""
    environment = {**os.environ, "B": f"{sys.executable} -m bench", **variables}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


BROKEN = """
import sys
sys.modules['typer'] = None
from bench.cli.main import main
main()
"""


def test_a_broken_installation():
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True)
    assert done.returncode == ExitCode.INTERNAL
    assert re.fullmatch(
        r"bench: internal error \(the traceback is in .*\): ModuleNotFoundError: .*typer.*\n", done.stderr
    )
    Path(re.search(r"in (.*)\): ", done.stderr)[1]).unlink()


@pytest.mark.parametrize(
    ("script", "code", "err"),
    [
        ("set -o pipefail; $B validate --schema | true", ExitCode.READER_ENDED, ""),  # print
        ("set -o pipefail; $B list runs | true", ExitCode.READER_ENDED, ""),  # rich
        ("$B list runs > /dev/full", ExitCode.INVALID, "No space left on device"),
        ("$B list runs >&-", 0, ""),
        ("$B list nothing 2>&-", 2, ""),
        ("$B list nothing <&- >&- 2>&-", 2, ""),
        ("$B list nothing 2>/dev/full", 2, ""),
    ],
)
def test_streams(tiny_results, script, code, err):
    """By commands that need no torch, whose import takes seconds."""
    if "/dev/full" in script and not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    result = shell(script, tiny_results.parent)
    assert result[0] == code
    assert err in result[2] if err else result[2] == ""
    assert "Traceback" not in result[2]
    assert "Exception ignored" not in result[2]


VARIABLES = [
    {"PYTHONIOENCODING": "ascii", "COLUMNS": "0", "TERM": "dumb", "NO_COLOR": "1", "OMP_NUM_THREADS": "1,2"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "abc", "LINES": "0"},
    {"PYTHONIOENCODING": "latin-1", "COLUMNS": "²", "TMPDIR": "/no/such/folder", "HOME": "/no/such/folder"},
]


@pytest.fixture(scope="module")
def board(tiny_results):
    return shell(f"$B report --results {tiny_results}", tiny_results)


@pytest.mark.slow
@pytest.mark.parametrize("variables", VARIABLES, ids=["ascii", "C", "Latin-1"])
def test_variables_of_other_programs(tiny_results, board, variables):
    assert board[0] == 0
    code, out, _ = shell(f"$B report --results {tiny_results}", tiny_results, **variables)
    assert code == 0
    assert "PGD-AT" in out
    assert out == board[1].encode("ascii", "replace").decode() or len(out) > 0.9 * len(board[1])


@pytest.mark.slow
def test_json_keeps_every_letter_in_any_encoding(tmp_path):
    texts = {shell("$B show method pgd_at --json", tmp_path, PYTHONIOENCODING=name)[1] for name in ("utf-8", "ascii")}
    first, *rest = map(json.loads, texts)
    assert [first] * len(rest) == rest


def test_plots_do_not_depend_on_the_backend_of_a_notebook(copy_of_results):
    backend = "module://matplotlib_inline.backend_missing"
    code, out, err = shell("$B plot --results . --figure gap", copy_of_results, MPLBACKEND=backend)
    assert code == 0, err
    assert out.endswith("-gap.png\n")


@pytest.mark.parametrize("name", ["/dev/stdout", pytest.param("/dev/stderr", marks=pytest.mark.slow)])
def test_an_output_that_is_no_file_is_written_to_and_not_replaced(tiny_results, tmp_path, name):
    """As root, a rename would put a file in the place of the device."""
    (tmp_path / "link").symlink_to(name)
    code, *streams = shell(f"$B report --results {tiny_results} --output link", tmp_path)
    assert code == 0
    assert "PGD-AT" in "".join(streams)
    assert (tmp_path / "link").is_symlink()


def test_an_output_that_is_a_pipe(bench, tiny_results, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert bench("report", "--results", tiny_results, "--format", "csv", "--output", tmp_path / "pipe").code == 0
    assert b"PGD-AT" in os.read(reader, 2**16)
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("width", [1, 10, 60])
def test_no_figure_is_cut_in_a_narrow_terminal(bench, monkeypatch, tiny_results, width):
    monkeypatch.setenv("COLUMNS", "80")
    expected = bench("report", "--results", tiny_results).out
    assert "…" not in expected
    monkeypatch.setenv("COLUMNS", str(width))
    assert bench("report", "--results", tiny_results).out == expected


def test_a_plugin_writes_nothing_between_data(suite, tmp_path):
    (tmp_path / "talks.py").write_text(
        "import atexit, os\nprint('imported')\nos.write(1, b'raw')\nos.system('echo from a process')\n"
        "atexit.register(print, 'at exit')\nfrom methods.pgd_at import PGDAT\n"
        "class Talks(PGDAT):\n    pass\nMETHODS = {'talks': Talks}\n"
    )
    path = suite({"methods: [pgd_at]": "methods: [pgd_at]\nplugins: [talks.py]"})
    command = [sys.executable, "-m", "bench", "validate", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)
    for words in ("imported", "raw", "from a process", "at exit"):
        assert words in done.stderr
