"""Previews of AutoAttack: what they bound, where they are shown, and that they end with AutoAttack."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import pytest

from bench.attacks.evaluate import evaluate as attacked
from bench.attacks.outcome import Outcome
from bench.config.attacks import AutoAttack
from bench.errors import BenchError
from bench.execution import final_evaluation
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings
from bench.execution.worker import Job, execute
from bench.reporting.formats.json import render_json
from bench.reporting.leaderboard import leaderboards
from bench.reporting.notes import notes
from bench.storage.previews import preview_path, previews
from bench.storage.run_folder import RunFolder
from bench.storage.store import Store
from bench.storage.verify import folder_damage
from bench.utils.files import write_record

from ..reporting.test_data_formats import schema

FINAL = "[clean, {name: autoattack, images: 20, attacks: [apgd-ce, apgd-t]}]"


class Killed(BaseException):
    pass


@pytest.fixture
def cell(load, copy_of_results):
    """The tiny cell under AutoAttack, whose training is there already."""
    return load({"[clean, {name: pgd, steps: 3, step_size: 0.05}]": FINAL}).cells[0]


@pytest.fixture
def run(cell, tmp_path, monkeypatch):
    """Run the cell, perhaps killed at AutoAttack; return the names of the attacks that ran, and the bounds shown."""

    def run(*, preview: bool, killed: bool = False) -> list[tuple[str, float | None]]:
        ran = []

        def evaluate(*arguments, **settings):
            attack = arguments[3]
            ran.append((attack.name, job.folder.read_progress().get("at_most")))
            if killed and isinstance(attack, AutoAttack):
                raise Killed
            return attacked(*arguments, **settings)

        monkeypatch.setattr(final_evaluation, "evaluate", evaluate)
        job = replace(Job(cell, tmp_path / "results", ("cpu",), None, 1), preview=preview)
        if killed:
            with pytest.raises(Killed):
                execute(job)
        else:
            assert execute(job) == "finished"
        return ran

    return run


def test_a_preview_bounds_robust_accuracy_until_autoattack_has_finished(cell, run, tmp_path):
    results, folder = tmp_path / "results", RunFolder.of(cell, tmp_path / "results")
    ran = run(preview=True, killed=True)
    assert ran[0] == ("preview", None)
    files = sorted(folder.partial.glob("*.preview.json"))
    kept = [Outcome.from_record(json.loads(path.read_text())["content"]) for path in files]
    with Store.of(results, create=False) as store:
        (board,) = leaderboards(store, protocol=cell.protocol.fingerprint)
        shown = store.show_run(folder.path.name)
        jsonschema.validate(report := json.loads(render_json([board])), schema())
    (note,) = (note for note in notes(board) if note.startswith("Previews"))
    bounds = {bound.checkpoint: bound for bound in board.previews}
    assert set(bounds) == {"best", "best_on_test", "last"}
    assert {bound.images for bound in bounds.values()} == {20}
    assert {bound.at_most for bound in bounds.values()} == {outcome.accuracy for outcome in kept}
    assert ran[-1] == ("autoattack", bounds["best"].at_most), "progress shows it while AutoAttack runs"
    assert f"PGD-AT seed 0 at last, at most {100 * bounds['last'].at_most:.2f} % of 20 images" in note
    assert (board.rows[0].rank, board.rows[0].figures) == (None, ()), "it is neither ranked nor averaged"
    assert report["boards"][0]["previews"][0]["at_most"] == bounds["best"].at_most == shown["previews"][0]["at_most"]
    assert {outcome["title"] for outcome in shown["outcomes"]} == {"Clean"}
    assert not folder_damage(folder)

    assert "preview" not in dict(run(preview=True)), "it was kept"
    for outcome in map(Outcome.from_record, folder.read_outcomes().values()):
        if outcome.title != "Clean":
            (bound,) = (one for one in kept if one.weights_sha256 == outcome.weights_sha256)
            assert 0 < outcome.accuracy <= bound.accuracy < 1
    with Store.of(results, create=False) as store:
        (board,) = leaderboards(store, protocol=cell.protocol.fingerprint)
        assert "previews" not in store.show_run(folder.path.name)
    assert "previews" not in render_json([board])
    assert not any(note.startswith("Previews") for note in notes(board))


def test_a_damaged_preview_counts_as_none(tmp_path):
    folder, row = RunFolder(tmp_path), SimpleNamespace(sha256="a" * 64, outcomes={})
    preview_path(folder, row.sha256, "autoattack-1").parent.mkdir()
    preview_path(folder, row.sha256, "autoattack-1").write_text("{}")
    content = {"of": "AutoAttack", "count": 40, "right": 10}
    for weights, key in ((row.sha256, "autoattack-2"), ("b" * 64, "autoattack-2")):
        write_record(preview_path(folder, weights, key), content)
    expected = {"checkpoint": "last", "attack": "AutoAttack", "images": 40, "at_most": 0.25}
    assert previews(folder, {"last": row}) == [expected]
    row.outcomes["autoattack-2"] = "there"
    assert previews(folder, {"last": row}) == []


@pytest.mark.parametrize(
    ("execution", "option", "wanted"),
    [("", None, False), ("", True, True), ("{preview: true}", None, True), ("{preview: true}", False, False)],
)
def test_previews_are_off_unless_the_suite_or_the_command_asks(load, tmp_path, monkeypatch, execution, option, wanted):
    loaded, jobs = load({"seeds: [0]": f"seeds: [0]\nexecution: {execution or '{}'}"}), []

    def stop(*arguments):
        jobs.append(Job(*arguments))
        raise BenchError("stopped")

    monkeypatch.setattr("bench.execution.executor.Job", stop)
    with pytest.raises(BenchError, match="stopped"):
        run_suite(loaded, results=tmp_path / "results", settings=ExecutorSettings(preview=option, threads=1))
    assert [job.preview for job in jobs] == [wanted]
    assert loaded.cells[0].fingerprint == load().cells[0].fingerprint
