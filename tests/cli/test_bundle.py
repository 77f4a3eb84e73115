"""`bench bundle`, `bench check-bundle` and `bench ingest BUNDLE`: runs that move from one results folder to another."""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.attacks.identity import key_of
from bench.attacks.outcome import PackedBits
from bench.errors import BenchError
from bench.storage.bundle import check_bundle, read_bundle
from bench.utils.files import fingerprint, record_bytes

ROOT = Path(__file__).parents[2]
LEADERBOARDS = ROOT / "results" / "leaderboards"
SUBMIT = ROOT / "docs" / "submit.md"


def board(bench, results):
    """Return the leaderboards as data, without the bundles that the runs came in."""
    report = bench("report", "--results", results, "--format", "json")
    assert report.code == 0, report.err
    boards = json.loads(report.out)["boards"]
    for one in boards:
        one.pop("bundles", None)
    return boards


def refused(result, *words):
    """One sentence on stderr, and exit code 2."""
    assert (result.code, result.out) == (2, ""), result
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err


@pytest.fixture(scope="module")
def trained(tiny_results, tmp_path_factory):
    """The bundle of the trained run of the tiny suite."""
    from bench.storage.bundle import make_bundle
    from bench.storage.run_folder import run_folders

    path = tmp_path_factory.mktemp("bundle") / "bundle.json"
    path.write_bytes(make_bundle(run_folders(tiny_results), "a lab").data)
    return path


# --- from one results folder to another ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_committed_runs_give_the_same_board_elsewhere(bench, tmp_path):
    """They are records without weights."""
    path, results = tmp_path / "bundle.json", tmp_path / "results"
    source = shutil.copytree(LEADERBOARDS / "cifar10_small", tmp_path / "source")
    made = bench("bundle", "--results", source, "--output", path, "--origin", "A lab, 2026")
    assert made.code == 0, made.err
    before = board(bench, source)
    ingested = bench("ingest", path, "--results", results)
    count = len(read_bundle(path).runs)
    assert (ingested.code, ingested.out) == (0, f"{path}: {count} runs imported, 0 already existed\n")
    assert board(bench, results) == before
    for folder in (source / "runs").iterdir():
        for file in (path for path in folder.rglob("*") if path.is_file()):
            assert (results / "runs" / folder.name / file.relative_to(folder)).read_bytes() == file.read_bytes()
    table = bench("report", "--results", results, "--format", "markdown").out
    assert f"ingested from bundle {read_bundle(path).sha256[:12]}, origin: A lab, 2026: " in table
    assert "ingested" not in bench("report", "--results", source, "--format", "markdown").out


def test_a_trained_run(bench, copy_of_results, trained, tmp_path, suite):
    """Its weights stay behind, and are not missed."""
    results = tmp_path / "other"
    assert bench("ingest", trained, "--results", results).code == 0
    assert board(bench, results) == board(bench, copy_of_results)
    (folder,) = (results / "runs").iterdir()
    assert not list(folder.rglob("*.safetensors"))
    assert not (folder / "log.txt").exists()
    assert "1 folders: all digests and accuracies match" in bench("doctor", "--results", results).out
    shown = json.loads(bench("show", "run", "pgd", "--results", results, "--json").out)
    origin = {"bundle": read_bundle(trained).sha256, "origin": "a lab"}
    assert shown["environment"]["ingested"] == origin
    assert "origin: a lab" in bench("show", "run", "pgd", "--results", results).out
    again = tmp_path / "again.json"
    assert bench("bundle", "--results", results, "-o", again, "--origin", "a lab").code == 0
    assert again.read_bytes() == trained.read_bytes(), "equal records and origins give equal bytes"
    assert "nothing to do" in bench("run", suite(), "--results", results, "--rerun", "failed").err
    for left in results.glob("bench.sqlite*"):
        left.unlink()
    assert bench("ingest", "--results", results).code == 0
    assert json.loads(bench("show", "run", "pgd", "--results", results, "--json").out) == shown


@pytest.mark.slow
def test_every_kind_of_final_attack(bench, suite, tmp_path):
    """Joint accuracy, an unseen threat, corruptions, whose images count once for each version, an external model."""
    threat = "{name: pgd, steps: 2, step_size: 0.1, images: 60, threat: {norm: l2, eps: 0.5}}"
    finals = f"{threat}, joint, {{name: corruptions, severity: 3, kinds: [contrast, brightness]}}, "
    path, results = tmp_path / "bundle.json", tmp_path / "results"
    file = suite({"final: [clean, ": f"final: [clean, {finals}"})
    assert bench("run", file, "--results", results).code == 0
    weights = next(results.glob("runs/*/checkpoints/*.safetensors"))
    assert bench("evaluate", weights, "--suite", file, "--name", "ours", "--results", results).code == 0
    assert bench("bundle", "--results", results, "-o", path).code == 0
    assert bench("ingest", path, "--results", tmp_path / "other").code == 0
    assert board(bench, tmp_path / "other") == board(bench, results)


def test_ingesting_twice_changes_nothing(bench, trained, tmp_path):
    assert bench("ingest", trained, "--results", tmp_path / "results").code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix == ".json"}
    result = bench("ingest", trained, "--results", tmp_path / "results", "--json")
    (row,) = json.loads(result.out)
    assert (result.code, row["ok"], row["reason"]) == (0, True, "exists already")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix == ".json"} == before


def test_own_runs_stay_as_they_are(bench, copy_of_results, trained):
    before = sorted(copy_of_results.rglob("*"))
    assert "0 runs imported, 1 already existed" in bench("ingest", trained, "--results", copy_of_results).out
    assert sorted(copy_of_results.rglob("*")) == before
    assert "ingested" not in bench("report", "--results", copy_of_results).out


def test_another_run_of_the_same_cell_is_not_replaced(bench, copy_of_results, trained):
    (folder,) = (copy_of_results / "runs").iterdir()
    done = json.loads((folder / "done.json").read_text())["content"]
    (folder / "done.json").write_bytes(record_bytes({**done, "train_seconds": 1.0}))
    before = (folder / "done.json").read_bytes()
    refused(bench("ingest", trained, "--results", copy_of_results), folder.name, "exists with other contents")
    assert (folder / "done.json").read_bytes() == before
    bench("ingest", "--results", copy_of_results)
    shutil.rmtree(folder)
    refused(bench("ingest", trained, "--results", copy_of_results), folder.name, "the database holds another run")
    assert not folder.exists()


def test_what_is_bundled(bench, copy_of_results, tmp_path, suite):
    path = tmp_path / "bundle.json"
    (folder,) = (copy_of_results / "runs").iterdir()
    shutil.copytree(folder, copy_of_results / "runs" / "unfinished-seed0-0-0")
    (copy_of_results / "runs" / "unfinished-seed0-0-0" / "done.json").unlink()
    everything = bench("bundle", "--results", copy_of_results, "-o", path, "--json")
    assert json.loads(everything.out)["runs"] == [folder.name]
    assert everything.err == "bench: left out 1 unfinished run\n"
    words = ("--results", copy_of_results, "-o", path)
    assert bench("bundle", "--suite", suite(), *words).code == 0
    assert bench("bundle", "pgd", *words).code == 0
    none = bench("bundle", "--suite", "quickstart", *words)
    assert (none.code, "has finished" in none.err) == (4, True)
    assert bench("bundle", "nothing", *words).code == 4
    refused(bench("bundle", "unfinished", *words), "unfinished-seed0-0-0", "is interrupted; only finished runs")
    assert bench("bundle", "pgd", "--suite", suite(), *words).code == 2
    refused(bench("bundle", *words, "--origin", "two\nlines"), "origin", "one line")
    refused(bench("bundle", *words, "--origin", "x" * 201), "origin", "200")
    refused(bench("bundle", "pgd", "--results", copy_of_results, "-o", tmp_path / "no" / "file"), "cannot be written")


def test_a_damaged_run_is_not_bundled(bench, copy_of_results, tmp_path):
    outcome = next(copy_of_results.glob("runs/*/outcomes/*.json"))
    outcome.write_bytes(outcome.read_bytes().replace(b'"right": ', b'"right": 1'))
    refused(bench("bundle", "--results", copy_of_results, "-o", tmp_path / "b.json"), outcome.name, "SHA-256")
    assert not (tmp_path / "b.json").exists()


def test_the_runs_are_listed(bench, trained, suite):
    done = bench("check-bundle", trained, "--suite", suite(), "--json")
    ((item,), (run,)) = (json.loads(done.out), json.loads(done.out)[0]["runs"])
    assert (done.code, item["origin"], item["sha256"]) == (0, "a lab", read_bundle(trained).sha256)
    assert (run["method"], run["seed"], run["code"]) == ("PGD-AT", 0, "the code here")
    assert f"{trained}: valid, SHA-256 {item['sha256']}, origin: a lab" in bench("check-bundle", trained).out
    refused(bench("check-bundle", trained, "--suite", "quickstart"), run["name"], "another protocol")


def test_what_a_killed_process_leaves_can_be_removed(bench, tmp_path):
    (tmp_path / ".bundle-x").mkdir()
    assert f"{tmp_path / '.bundle-x'}: left by a killed process" in bench("clean", "--results", tmp_path).out


@pytest.mark.slow
def test_the_workflow_of_the_docs(trained, suite, tmp_path):
    """Its commands, in a repository with one bundle; the installation is that of the tests."""
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", SUBMIT.read_text(), re.DOTALL)[1])
    assert workflow["permissions"] == {"contents": "read"}
    scripts = {step["name"]: step["run"] for step in workflow["jobs"]["board"]["steps"] if "run" in step}
    assert list(scripts) == ["Install", "Check", "Rebuild"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bench").write_text(f'#!/bin/sh\nexec {sys.executable} -m bench "$@"\n')
    (tmp_path / "bin" / "bench").chmod(0o755)
    suite()
    (tmp_path / "bundles").mkdir()
    shutil.copy(trained, tmp_path / "bundles" / "our-lab.json")
    summary = tmp_path / "summary.md"
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(summary)}
    for name in ("Check", "Rebuild"):
        words = ["bash", "-e", "-c", scripts[name]]
        done = subprocess.run(words, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "ingested from bundle" in summary.read_text()
    assert "PGD-AT" in (tmp_path / "site" / "index.html").read_text()
    (tmp_path / "bundles" / "forged.json").write_text(trained.read_text().replace("right", "wrong"))
    words = ["bash", "-e", "-c", scripts["Check"]]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert (done.returncode, "forged.json" in done.stderr) == (2, True)


# --- forged and damaged bundles --------------------------------------------------------------------------------------


def text_of(file):
    return "".join(file["text"])


def write(run, name, text):
    """Put a file into a run, with its digest."""
    run["files"][name] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text.splitlines(keepends=True)}


def edit(run, name, change):
    """Rewrite a record of a run, with all digests; `change` edits its content."""
    content = json.loads(text_of(run["files"][name]))["content"]
    change(content)
    write(run, name, record_bytes(content).decode())


def setting(*keys):
    """Return what sets a value, given the keys to it and the value."""
    *path, last, value = keys

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def outcome(run, attack="pgd"):
    return next(name for name in run["files"] if name.startswith(f"outcomes/best.{attack}"))


def forged_outcome(*keys):
    return lambda run: edit(run, outcome(run), setting(*keys))


def forged(name, *keys):
    return lambda run: edit(run, name, setting(*keys))


def fewer_images(record):
    bits = PackedBits.from_text(record["correct"], record["count"]).unpack()[:-8]
    record.update(count=len(bits), right=int(bits.sum()), correct=PackedBits.pack(bits).text)


def another_seed(run):
    edit(run, "cell.json", setting("cell", "seed", 1))


def consistent_cell(*keys):
    """Change the cell with all its fingerprints, as a run of another protocol would have them."""

    def change(run):
        def recompute(content):
            setting("identity", *keys)(content)
            setting("cell", *keys)(content)
            content["fingerprint"] = fingerprint(content["identity"])
            content["protocol_fingerprint"] = fingerprint(content["identity"]["protocol"])
            identity = json.loads(json.dumps(content["identity"]))
            del identity["protocol"]["evaluation"]["final"]
            content["training_fingerprint"] = fingerprint(identity)
            run["fingerprint"], run["protocol_fingerprint"] = content["fingerprint"], content["protocol_fingerprint"]
            end = f"{content['training_fingerprint'][:12]}-{content['fingerprint'][:12]}"
            run["folder"] = f"pgd-at-seed0-{end}"

        edit(run, "cell.json", recompute)

    return change


def shorter_curve(run):
    lines = run["files"]["epochs.jsonl"]["text"][:-1]
    write(run, "epochs.jsonl", "".join(lines))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    edit(run, "checkpoints/index.json", lambda index: index.update(finished_epochs=len(lines), curve_sha256=digest))


def another_line(run):
    write(run, "epochs.jsonl", text_of(run["files"]["epochs.jsonl"]).replace('"robust": 0.', '"robust": 0.9'))


def without(name):
    return lambda run: run["files"].pop(name(run) if callable(name) else name)


def one_attack_more(run):
    content = json.loads(text_of(run["files"][outcome(run)]))["content"]
    content["attack"]["steps"] = 7
    write(run, f"outcomes/best.{key_of(content['attack'])}.json", record_bytes(content).decode())


def exchanged(run):
    files, names = run["files"], [outcome(run), outcome(run, "clean")]
    files[names[0]], files[names[1]] = files[names[1]], files[names[0]]


def deep(run):
    value = []
    for _ in range(50):
        value = [value]
    edit(run, outcome(run), setting("detail", "note", value))


NO = "0" * 64

FORGED = {
    "absolute path": (lambda run: write(run, "/etc/passwd", "x"), "'/etc/passwd' is not the path of a record"),
    "path above": (lambda run: write(run, "outcomes/../../x.a.json", "x"), "is not the path of a record"),
    "weights": (lambda run: write(run, "checkpoints/last.safetensors", "x"), "is not the path of a record"),
    "log": (lambda run: write(run, "log.txt", "x"), "'log.txt' is not the path of a record"),
    "origin": (lambda run: write(run, "origin.json", "{}"), "'origin.json' is not the path of a record"),
    "folder above": (lambda run: run.update(folder="../other"), "runs.0.folder: must match"),
    "text": (lambda run: run["files"]["done.json"]["text"].append(" "), "the text does not match its SHA-256"),
    "another file's text": (
        lambda run: run["files"].update({"done.json": run["files"]["cell.json"]}), "its records are incomplete",
    ),
    "no cell": (without("cell.json"), "has no cell.json"),
    "no result": (without("done.json"), "has not finished: interrupted"),
    "no index": (without("checkpoints/index.json"), "index.json is missing"),
    "no outcome": (without(outcome), "lacks an outcome of the checkpoint 'best' under PGD-3"),
    "exchanged outcomes": (exchanged, "has the name of another attack than its content"),
    "one attack more": (one_attack_more, "is of an attack that the protocol does not have"),
    "status": (forged("done.json", "status", "diverged"), "has not finished: diverged"),
    "classes": (forged("done.json", "classes", 4), "states 4 classes, not 10"),
    "right": (forged_outcome("right", 500), "has not as many correct images as it states"),
    "bits": (forged_outcome("correct", base64.b64encode(bytes([255] * 63)).decode()), "not as many correct images"),
    "test images": (lambda run: edit(run, outcome(run), fewer_images), "has 492 test images, not 500"),
    "all with fewer": (
        lambda run: [edit(run, name, fewer_images) for name in run["files"] if name.startswith("outcomes")],
        "has 492 test images, not 500",
    ),
    "weaker attack": (forged_outcome("attack", "steps", 1), "lacks an outcome of the checkpoint 'best' under PGD-3"),
    "smaller radius": (forged_outcome("attack", "eps", 0.01), "lacks an outcome of the checkpoint 'best' under PGD-3"),
    "title": (forged_outcome("title", "AutoAttack"), "has the title 'AutoAttack', not 'PGD-3'"),
    "other weights": (forged_outcome("weights_sha256", NO), "is of other weights than those of the checkpoint 'best'"),
    "other index": (forged("checkpoints/index.json", "checkpoints", "best", "sha256", NO), "is of other weights"),
    "index that leads out": (forged("checkpoints/index.json", "checkpoints", "best", "file", "/x"), "outside"),
    "curve": (another_line, "its first 2 lines do not match their SHA-256"),
    "shorter curve": (shorter_curve, "has 1 epochs, but states 2 of at most 2"),
    "later checkpoint": (forged("checkpoints/index.json", "checkpoints", "best", "epoch", 7), "of epoch 7 of 2"),
    "fingerprint": (forged("cell.json", "fingerprint", NO), "states other fingerprints than those of its cell"),
    "fingerprint outside": (lambda run: run.update(fingerprint=NO), "has other fingerprints than the bundle states"),
    "protocol outside": (lambda run: run.update(protocol_fingerprint=NO), "has other fingerprints than the bundle"),
    "identity": (forged("cell.json", "identity", "seed", 1), "states another identity than that of its cell"),
    "seed": (another_seed, "states other fingerprints than those of its cell"),
    "folder": (lambda run: run.update(folder="x"), "is not the folder of its cell"),
    "another protocol": (consistent_cell("protocol", "threat", "eps", 0.1), "under PGD-3 as the protocol has it"),
    "more epochs": (consistent_cell("protocol", "training", "epochs", 1), "states 2 of at most 1"),
    "key of a newer version": (forged("cell.json", "cell", "protocol", "stars", 3), "unknown key 'stars'"),
    "seconds": (forged("done.json", "train_seconds", "long"), "has an invalid value of 'train_seconds': 'long'"),
    "negative": (forged("done.json", "train_seconds", -1.0), "has an invalid value of 'train_seconds'"),
    "huge": (forged_outcome("seconds", 1e301), "has an invalid value of 'seconds'"),
    "label": (forged("cell.json", "cell", "method", "label", "x" * 101), "has an invalid value of 'label'"),
    "environment": (forged("cell.json", "environment", "data", ["x"]), "environment.data"),
    "device": (forged("cell.json", "environment", "cpu", {}), "environment.cpu: must be text"),
    "flags": (forged_outcome("detail", "doubts", 3), "does not describe an outcome: detail.doubts"),
    "classes of images": (forged_outcome("detail", "per_class", [[1, 2]]), "per class that are not those of its"),
    "deep": (deep, "has an invalid value of 'detail'"),
}  # fmt: skip
"""Changes of a run with all digests recomputed, each with what is said of it."""


def rewritten(trained, path, change):
    """Write a bundle with other content and its digest."""
    content = json.loads(trained.read_text())["content"]
    change(content)
    path.write_bytes(record_bytes(content))
    return path


@pytest.mark.parametrize(("change", "said"), FORGED.values(), ids=FORGED)
def test_a_forged_run_is_refused(bench, trained, tmp_path, change, said):
    path = rewritten(trained, tmp_path / "forged.json", lambda content: change(content["runs"][0]))
    with pytest.raises(BenchError) as refusal:
        check_bundle(read_bundle(path), str(path))
    assert str(refusal.value).startswith(str(path))
    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content.update(version=2),
            "is a bundle of version 2, this package reads version 1; upgrade it",
        ),
        (lambda content: content.update(format="other"), "is not a bundle of runs"),
        (lambda content: content.update(runs=[]), "runs: must not be empty"),
        (lambda content: content.update(runs=content["runs"] * 2), "must be sorted by 'folder', each once"),
        (lambda content: content.update(origin="two\nlines"), "origin: must be one line"),
        (lambda content: content.update(more=1), "unknown key 'more'"),
    ],
    ids=["newer version", "other format", "no run", "twice", "origin", "key"],
)
def test_a_bundle_of_another_form_is_refused(bench, trained, tmp_path, change, said):
    path = rewritten(trained, tmp_path / "forged.json", change)
    refused(bench("check-bundle", path), str(path), said)
    refused(bench("ingest", path, "--results", tmp_path / "results"), str(path), said)
    assert not (tmp_path / "results").exists()


def test_what_is_no_bundle_is_refused(bench, trained, tmp_path, monkeypatch):
    refused(bench("check-bundle", tmp_path / "none.json"), "none.json cannot be read: No such file")
    refused(bench("check-bundle", tmp_path), "it is no file")
    refused(bench("ingest", tmp_path, "--results", tmp_path / "new"), f"with --results {tmp_path}")
    os.mkfifo(tmp_path / "pipe")
    refused(bench("check-bundle", tmp_path / "pipe"), "it is no file")
    (tmp_path / "zip.json").write_bytes(b"PK\3\4")
    refused(bench("check-bundle", tmp_path / "zip.json"), "is not a record with its SHA-256")
    monkeypatch.setattr("bench.storage.bundle.MAX_BYTES", 1000)
    refused(bench("check-bundle", trained), "is larger than any bundle: 1000 B")


def test_a_link_in_the_results_folder_is_not_followed(bench, trained, tmp_path):
    (folder,) = (run.folder for run in read_bundle(trained).runs)
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results" / "runs" / folder).symlink_to(tmp_path / "elsewhere")
    refused(bench("ingest", trained, "--results", tmp_path / "results"), folder, "is a symbolic link")
    assert not list((tmp_path / "elsewhere").iterdir())


def swapped(random, content):
    """Exchange the texts of two files, with their digests."""
    files = content["runs"][0]["files"]
    first, second = random.sample(sorted(files), 2)
    files[first], files[second] = files[second], files[first]


def extra(random, content):
    """Add a file, the copy of another one."""
    files = content["runs"][0]["files"]
    names = [
        "../x",
        "/x",
        "x",
        "log.txt",
        "outcomes/best.x.json",
        "outcomes/x.json",
        "cell.json/x",
        "outcomes/a.b/c.json",
    ]
    files[random.choice(names)] = files[random.choice(sorted(files))]


def rewrite(random, content):
    """Change a record's text, with the digests of the file and of the bundle, but not with its own."""
    run = content["runs"][0]
    name = random.choice(sorted(run["files"]))
    text = text_of(run["files"][name])
    at = random.randrange(len(text))
    write(run, name, text[:at] + random.choice('0123456789abcdef{}[]":, \n') + text[at + 1 :])


def mutated(number, data):
    """Return a mutation of a bundle's bytes."""
    chance = random.Random(number)
    kind = number % 5
    if kind == 0:
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[: chance.randrange(len(data))]
    content = json.loads(data)["content"]
    (swapped, extra, rewrite)[kind - 2](chance, content)
    return record_bytes(content)


@pytest.mark.slow
def test_a_thousand_mutated_bundles_are_refused_or_equal(bench, trained, tmp_path):
    path, data, original = tmp_path / "mutated.json", trained.read_bytes(), read_bundle(trained)
    equal = []
    for number in range(1000):
        path.write_bytes(mutated(number, data))
        result = bench("check-bundle", path)
        if result.code == 0:
            read = read_bundle(path)
            assert contents(read) == contents(original), number
            equal.append(number)
        else:
            refused(result, str(path))
    assert len(equal) < 100


def contents(bundle):
    """Return what the records of a bundle say, without the spaces of their texts."""
    split = {"epochs.jsonl": bytes.splitlines}
    return {
        (run.folder, name): [json.loads(text) for text in split.get(name, lambda data: [data])(file.data)]
        for run in bundle.runs
        for name, file in run.files.items()
    }


JUNK = [None, True, -1, 0, 10**30, 0.5, 1e300, "", "x" * 300, "\0", [], [1], {}, {"a": [1]}, "../x", NO]


def places(value, at=()):
    """Yield the keys that lead to every value inside a record."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


@pytest.mark.slow
def test_a_forged_value_is_refused_or_can_be_shown(bench, trained, tmp_path):
    """Any value of any record, with all digests recomputed: no command ends in a traceback."""
    accepted = 0
    for number in range(200):
        chance = random.Random(number)

        def change(content, chance=chance):
            run = content["runs"][0]
            name = chance.choice(sorted(set(run["files"]) - {"epochs.jsonl"}))
            record = json.loads(text_of(run["files"][name]))["content"]
            edit(run, name, setting(*chance.choice(list(places(record))), chance.choice(JUNK)))

        path, results = rewritten(trained, tmp_path / "forged.json", change), tmp_path / f"results{number}"
        ingested = bench("ingest", path, "--results", results)
        if ingested.code:
            refused(ingested, str(path))
            continue
        accepted += 1
        for format in ("json", "html"):
            result = bench("report", "--results", results, "--format", format, "-o", tmp_path / "report")
            assert result.code == 0, (number, result.err)
        assert bench("show", "run", "p", "--results", results).code == 0, number
    assert accepted > 10
