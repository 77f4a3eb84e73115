"""Reading commands write nothing, need no right to write, and know what the run folders hold."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from bench.storage.run_folder import run_folders
from bench.storage.store import Store

READING = [
    ["report"],
    ["report", "--format", "html"],
    ["compare", "PGD-AT", "PGD-AT"],
    ["export", "robustbench", "pgd-at"],
    ["list", "runs"],
    ["show", "run", "pgd-at"],
    ["watch", "--once"],
    ["plot", "--figure", "gap", "--output", "../figures"],
    ["ingest"],
    ["run", "quickstart"],
]

CALLS = """
import contextlib, io, json, sys
from bench.cli.main import main
results, codes = sys.argv[1], []
for words in json.loads(sys.argv[2]):
    sys.argv = ["bench", *words, "--results", results]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main()
        except SystemExit as error: codes.append([int(error.code or 0), out.getvalue(), err.getvalue()])
print(json.dumps(codes))
"""

POWERS = "-dac_override,-dac_read_search"  # with which root writes and reads everything


def call(results, *commands):
    """Run commands in one process that may not write; return [exit code, stdout, stderr] of each."""
    limits = ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}"] if os.geteuid() == 0 else []
    words = [*limits, sys.executable, "-c", CALLS, str(results), json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=results.parent, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def protect(tmp_path):
    """Take the right to write from a folder and all in it, until the test ends."""

    def change(folder, mode):
        for path in [folder, *folder.rglob("*")]:
            path.chmod(mode if path.is_dir() else mode & 0o666)

    yield lambda folder: change(folder, 0o555)
    change(tmp_path, 0o755)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


STORES = {
    "whole": lambda path: None,
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "without the run": lambda path: change(path, "DELETE FROM run"),
    "with another end": lambda path: change(path, "UPDATE run SET status = 'interrupted', done_sha256 = NULL"),
    "unreadable": lambda path: path.chmod(0),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def rare(kinds, usual):
    """Mark all kinds but the usual one as slow."""
    return [kind if kind == usual else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


def change(path, statement):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(statement)


@pytest.mark.parametrize("kind", rare(STORES, "whole"))
def test_a_results_folder_that_may_only_be_read(bench, copy_of_results, protect, kind):
    expected = bench("report", "--format", "csv", "--results", copy_of_results)
    assert expected.code == 0
    store = copy_of_results / "bench.sqlite"
    STORES[kind](store)
    protect(copy_of_results)
    if kind == "unreadable":
        store.chmod(0)
    before = files(copy_of_results)
    commands = READING if kind == "whole" else READING[4:6]
    *done, again = call(copy_of_results, *commands, ["report", "--format", "csv"])
    assert again[:2] == [0, expected.out]
    for words, (code, out, err) in zip(commands, done, strict=True):
        refused = {"ingest", "run", "compare", "export"}  # two write, two do not suit these results
        assert code == (2 if words[0] in refused else 0), (words, err)
        assert "Traceback" not in err
        assert out or code
    assert files(copy_of_results) == before


@pytest.mark.slow
def test_doctor_on_a_folder_that_may_only_be_read(copy_of_results, protect):
    protect(copy_of_results)
    ((code, out, _),) = call(copy_of_results, ["doctor", "--json"])
    checks = {check["check"]: check for check in json.loads(out)}
    assert code == 0, out
    assert "may only be read" in checks["results folder"]["detail"]
    assert "all digests and accuracies match" in checks["runs"]["detail"]


def test_reading_writes_nothing_where_it_may(bench, copy_of_results):
    before = files(copy_of_results)
    for words in (["report"], ["list", "runs"], ["show", "run", "pgd-at"]):
        assert bench(*words, "--results", copy_of_results).code == 0
    assert files(copy_of_results) == before


def test_what_a_writer_has_not_moved_out_of_its_log_is_read(bench, copy_of_results):
    (folder,) = run_folders(copy_of_results)
    change(copy_of_results / "bench.sqlite", "DELETE FROM run")
    url = f"sqlite:///{copy_of_results / 'bench.sqlite'}"
    with Store(url) as store:
        store.ingest(folder)
        assert (copy_of_results / "bench.sqlite-wal").stat().st_size
        with Store(url, create=False) as other:
            assert len(other.runs()) == 1


def test_a_damaged_run_folder_is_left_out_by_name(bench, copy_of_results, caplog):
    (folder,) = run_folders(copy_of_results)
    (copy_of_results / "bench.sqlite").unlink()
    (folder.path / "done.json").write_text("{")
    result = bench("report", "--results", copy_of_results)
    assert result.code == 4
    assert "done.json is damaged" in caplog.text


def test_a_store_that_is_no_database(bench, copy_of_results):
    (copy_of_results / "bench.sqlite").write_text("no database " * 100)
    for words in (["report"], ["ingest"]):
        result = bench(*words, "--results", copy_of_results)
        assert result.code == 2
        assert "file is not a database; if it is a store, delete it and run `bench ingest`" in result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["cell.json", "done.json", "epochs.jsonl", "checkpoints/index.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_record_that_is_no_file(bench, copy_of_results, name, kind, caplog):
    (folder,) = run_folders(copy_of_results)
    (copy_of_results / "bench.sqlite").unlink()
    path = folder.path / name
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert bench("report", "--results", copy_of_results).code == 4
    assert name.rpartition("/")[2] in caplog.text
    result = bench("ingest", "--results", copy_of_results)
    assert result.code == 3
    assert str(path) in result.err


@pytest.mark.parametrize("name", ["results", "results/runs"])
def test_a_file_in_the_place_of_the_folder(bench, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    for words in (["report"], ["ingest"], ["clean"], ["list", "runs"], ["doctor"]):
        result = bench(*words, "--results", tmp_path / "results")
        assert result.code == 2, words
        assert f"{tmp_path / name} is no folder" in result.err + result.out


@pytest.mark.parametrize("name", rare(["", "cell.json", "done.json", "outcomes", "checkpoints/index.json"], "outcomes"))
def test_a_run_folder_that_may_not_be_read_is_left_out_by_name(copy_of_results, protect, name):
    """Outcomes that cannot be listed are not missing ones: a run without them would be a wrong row."""
    (folder,) = run_folders(copy_of_results)
    (copy_of_results / "bench.sqlite").unlink()
    (folder.path / name).chmod(0)
    report, ingest, doctor, watch, run = call(
        copy_of_results, ["report"], ["ingest"], ["doctor"], ["watch", "--once"], ["run", "quickstart", "--dry-run"]
    )
    assert (report[0], ingest[0], doctor[0], watch[0] in {0, 3, 4}, run[0]) == (4, 3, 2, True, 0)
    for _, _, err in (report, ingest):
        assert str(folder.path / name) in err
        assert "Permission denied" in err
    (folder.path / name).chmod(0o755)


@pytest.mark.parametrize("words", [["show", "run", "\udcff"], ["compare", "a", "b", "--protocol", "\udcff"]])
def test_words_that_are_no_utf_8(bench, tiny_results, words):
    assert bench(*words, "--results", tiny_results).code == 4
