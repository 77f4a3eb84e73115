"""What `bench run` shows while it works."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench.cli import progress
from bench.cli.progress import View
from bench.execution.plan import Action

CELL = "FOMO [ours] [/b] seed 0"


class Folder:
    """A run folder whose worker is wherever a test says."""

    log = Path("log.txt")

    def __init__(self, epochs=()):
        self.where, self._epochs = {}, list(epochs)

    def epochs(self):
        return self._epochs


def evaluating(share, robust=None, attack="AutoAttack", checkpoint="best"):
    return {"phase": "evaluation", "checkpoint": checkpoint, "attack": attack, "share": share, "robust": robust}


@pytest.fixture
def shown(monkeypatch):
    """Show a running cell at each place in turn, on a terminal or elsewhere, and return all that was printed."""

    def shown(*places, terminal=False, status="running", reason=""):
        file = io.StringIO()
        console = Console(file=file, width=150, force_terminal=terminal)
        monkeypatch.setattr(progress, "Console", lambda **_options: console)
        monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
        state = SimpleNamespace(
            cell=CELL, folder=Folder(), action="run", work=None, status=status, reason=reason, progress={}
        )
        with View() as running:
            for place in places:
                state.progress = place
                running.show([state])
        return file.getvalue()

    return shown


def lines(text):
    return [line.removeprefix(f"{CELL}: ").partition(" (")[0] for line in text.splitlines()]


def test_lines_say_how_many_images_still_stand(shown):
    assert lines(shown(evaluating(0.5, attack="PGD-20"), evaluating(0.55, 0.431))) == [
        "PGD-20 on best",
        "AutoAttack on best, 43.1 % robust so far",
    ]


def test_a_long_attack_gets_a_line_now_and_then(shown):
    """A fifth of the evaluation each; what went by in between is not told."""
    places = [evaluating(number / 100, 0.9 - number / 200) for number in range(41)]
    assert lines(shown(*places, evaluating(0.41, 0.6, checkpoint="last"))) == [
        "AutoAttack on best, 90.0 % robust so far",
        "AutoAttack on best, 80.0 % robust so far",
        "AutoAttack on best, 70.0 % robust so far",
        "AutoAttack on last, 60.0 % robust so far",
    ]


def test_the_live_table_says_it_too(shown):
    text = shown(evaluating(0.55, 0.431), terminal=True)
    assert "AutoAttack on best, 43.1 % robust so far" in text


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"phase": "training", "epoch": 3, "epochs": 30, "done": 1, "of": 2}, "epoch 3 of 30"),
        ({"phase": "loading"}, "loading"),
        ({}, "started"),
        (evaluating(0.5, 0.0), "AutoAttack on best, 0.0 % robust so far"),
        (
            {**evaluating(0.5, 0.45), "at_most": 0.431},
            "AutoAttack on best, at most 43.1 % by preview, 45.0 % robust so far",
        ),
    ],
)
def test_where_it_is(shown, place, words):
    assert lines(shown(place)) == [words]


def test_an_exception_of_several_lines_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Folder, "log", tmp_path / "log.txt")
    state = SimpleNamespace(
        cell=CELL,
        folder=Folder(),
        action=Action.RUN,
        work=None,
        status="failed",
        reason="E: first\n  second",
        progress={},
    )
    with View() as view:
        view.finish([state])
    assert f"{CELL}: failed; E: first second" in capsys.readouterr().err


def test_a_stalled_cell_says_for_how_long(shown):
    reason = "no heartbeat for 3 minutes"
    text = shown(evaluating(0.5), terminal=True, status="stalled", reason=reason)
    assert f"AutoAttack on best; {reason}" in text


def test_a_locked_cell_did_not_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Folder, "log", tmp_path / "log.txt")
    Folder.log.touch()
    states = [
        SimpleNamespace(cell=CELL, folder=Folder(), action=action, work=None, status=status, reason=reason, progress={})
        for action, status, reason in [
            (Action.RUN, "locked", "by PID 7"),
            (Action.RUN, "finished", ""),
            (Action.SKIP, "finished", ""),
        ]
    ]
    with View() as view:
        view.finish(states)
    printed = capsys.readouterr().err
    assert f"{CELL}: locked; by PID 7 (" in printed
    assert f"{CELL}: locked; by PID 7; see {Folder.log}\n" in printed
    assert "1 of 3 cells ran in 0 s; 1 complete before" in printed


@pytest.mark.parametrize(("width", "columns"), [(150, {"train", "s/epoch"}), (80, set())])
def test_table_fits_the_terminal_and_has_a_limit_of_rows(monkeypatch, width, columns):
    file = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_options: Console(file=file, width=width, force_terminal=True))
    position = {"phase": "training", "epoch": 3, "epochs": 30, "done": 1, "of": 2, "left": 1234.5}
    states = [
        SimpleNamespace(
            cell=f"seed {seed}",
            folder=Folder(),
            action="run",
            work=None,
            status="running",
            reason="",
            progress=position,
        )
        for seed in range(20)
    ]
    with View() as view:
        view.show(states)
        text = file.getvalue()
    assert "20 cells: 20 running" in text
    assert "seed 11" in text
    assert "seed 12" not in text
    assert "... and 8 more" in text
    assert {name for name in ("train", "s/epoch") if name in text} == columns
    assert "21 min" in text
