import json
import os
import re
import signal

import pytest

from bench.errors import DamagedFile
from bench.storage import run_folder
from bench.storage.run_folder import CellStatus, RunFolder, RunFolderLocked


@pytest.fixture
def cell(load):
    return load().cells[0]


@pytest.fixture
def folder(cell, tmp_path):
    folder = RunFolder.of(cell, tmp_path / "results")
    folder.begin(cell, {"host": "here"})
    return folder


def records(count):
    return [{"epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(count)]


def test_the_name_tells_the_cell(load, tmp_path):
    one, two = load({"seeds: [0]": "seeds: [0, 7]"}).cells
    other_final = load({"steps: 3": "steps: 4"}).cells[0]
    names = [RunFolder.of(cell, tmp_path).path.name for cell in (one, two, other_final)]
    assert len(set(names)) == 3
    assert names[1].startswith("pgd-at-seed7-")
    assert names[0].endswith(one.fingerprint[:12])
    assert names[0].rpartition("-")[0] == names[2].rpartition("-")[0]  # the same training
    assert RunFolder.of(one, tmp_path).path.parent == tmp_path / "runs"
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names)


def test_a_run_keeps_its_first_statement(cell, folder):
    folder.begin(cell, {"host": "elsewhere"})
    said = folder.cell()
    assert said["environment"] == {"host": "here"}
    assert said["fingerprint"] == cell.fingerprint
    assert said["identity"] == cell.identity()
    assert type(cell).model_validate(said["cell"]) == cell


def test_status(cell, folder, tmp_path):
    assert RunFolder(tmp_path / "nowhere").status() == "new"
    assert folder.status() == "interrupted"
    assert folder.result() is None
    folder.finish("diverged", epoch=3)
    assert folder.status() == "diverged"
    assert folder.result() == {"status": "diverged", "epoch": 3}
    folder.reopen()
    folder.reopen()
    assert folder.status() == "interrupted"


def test_epochs_come_back_in_order(folder):
    assert folder.epochs() == []
    for record in records(3):
        folder.append_epoch(record)
    assert folder.epochs() == records(3)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append_epoch({"epoch": 3, "loss": float("nan")})
    assert folder.epochs() == records(3)


@pytest.mark.parametrize("rest", ["", '{"epoch": 2, "lo', '{"epoch": 2, "loss": 1}\n', "\x00\xff\n"])
def test_an_epoch_that_was_not_committed_is_dropped(folder, rest):
    for record in records(2):
        folder.append_epoch(record)
    path = folder.path / "epochs.jsonl"
    path.write_bytes(path.read_bytes() + rest.encode("latin-1"))
    assert folder.truncate_epochs(2) == records(2)
    folder.append_epoch(records(3)[2])
    assert folder.epochs() == records(3)


def test_a_committed_epoch_must_be_there(folder):
    folder.append_epoch(records(1)[0])
    with pytest.raises(DamagedFile, match=r"epochs\.jsonl is damaged: it has 1 epochs, though 2 were committed$"):
        folder.truncate_epochs(2)


@pytest.mark.parametrize("line", [b"{", b'{"epoch": 2}', b"[]", b'{"loss": 1}', b"\xff\xfe", b""])
def test_a_damaged_curve_names_its_line(folder, line):
    lines = [json.dumps(record).encode() for record in records(3)]
    lines[1] = line
    (folder.path / "epochs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DamagedFile, match=r"epochs\.jsonl:2: not the record of epoch 1$"):
        folder.epochs()


def test_set_aside_keeps_every_old_run(cell, folder, tmp_path):
    first = folder.archive()
    assert folder.status() == "new"
    folder.begin(cell, {"host": "again"})
    second = folder.archive()
    assert [first.name, second.name] == [f"{folder.path.name}.aside-1", f"{folder.path.name}.aside-2"]
    assert RunFolder(first).cell()["environment"] == {"host": "here"}
    assert RunFolder(second).cell()["environment"] == {"host": "again"}


def test_progress_is_renewed_now_and_then(folder, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now)
    assert folder.read_progress() == {}
    folder.progress(done=1)
    now += run_folder.PROGRESS_SECONDS / 2
    folder.progress(done=2)
    assert folder.read_progress()["done"] == 1
    folder.progress(done=3, force=True)
    assert folder.read_progress()["done"] == 3
    now += run_folder.PROGRESS_SECONDS
    folder.progress(done=4)
    assert folder.read_progress()["done"] == 4
    (folder.path / "progress.json").write_text("{")
    assert folder.read_progress() == {}


def test_outcomes_are_found_by_checkpoint_and_attack(folder):
    for checkpoint, attack in (("best", "0123abcd"), ("best_on_test", "0123abcd"), ("last", "ffff")):
        run_folder.write_record(folder.outcome_path(checkpoint, attack), {"right": len(checkpoint)})
    assert folder.read_outcomes() == {
        ("best", "0123abcd"): {"right": 4},
        ("best_on_test", "0123abcd"): {"right": 12},
        ("last", "ffff"): {"right": 4},
    }


# --- who may write, and what went wrong ------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_process(folder):
    with folder.lock():
        folder.progress(phase="starting")
        who = rf"^run folder is locked by another process \(PID {os.getpid()} on .+\)$"
        with pytest.raises(RunFolderLocked, match=who), RunFolder(folder.path).lock():
            pass
    with RunFolder(folder.path).lock():
        pass


def test_the_lock_of_a_dead_process_is_taken_over(folder):
    pid = os.fork()
    if not pid:
        with folder.lock():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert folder.lock_file.exists()
    with folder.lock():
        pass


def test_a_folder_that_is_set_aside_while_it_is_being_locked_is_not_held(folder, monkeypatch):
    real = run_folder.FileLock.acquire

    def late(lock, **settings):
        folder.archive()
        folder.path.mkdir()
        real(lock, **settings)

    monkeypatch.setattr(run_folder.FileLock, "acquire", late)
    with pytest.raises(RunFolderLocked), folder.lock():
        pass
    monkeypatch.undo()
    with folder.lock():
        pass


@pytest.mark.parametrize("name", ["checkpoints", "outcomes/best.clean-0.json", "log.txt", "."])
def test_a_link_is_refused(folder, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = folder.path / name
    if path.exists():
        path.rename(tmp_path / "moved")
    path.symlink_to(elsewhere)
    with pytest.raises(DamagedFile, match=f"^{re.escape(str(path))} is a symbolic link"), folder.lock():
        pass
    assert list(elsewhere.iterdir()) in ([], [elsewhere / "lock"])


def test_a_damaged_statement_is_written_anew(cell, folder):
    (folder.path / "cell.json").write_text("{")
    folder.begin(cell, {"host": "there"})
    assert folder.cell()["environment"] == {"host": "there"}
    (incident,) = folder.incidents()
    assert "cell.json is damaged" in incident


def test_incidents_are_kept_and_logged(folder, monkeypatch):
    assert folder.incidents() == []
    folder.record_incident("the worker died")
    folder.record_incident("a file was damaged")
    assert folder.incidents() == ["the worker died", "a file was damaged"]
    assert [line[20:] for line in folder.log.read_text().splitlines()] == [
        "WARNING the worker died",
        "WARNING a file was damaged",
    ]
    (folder.path / "incidents.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"incidents\.json is damaged"):
        folder.incidents()
    folder.record_incident("and that was noticed")
    assert len(folder.incidents()) == 2
    assert "incidents.json is damaged" in folder.incidents()[0]
    monkeypatch.setattr(run_folder, "INCIDENTS", 3)
    for number in range(5):
        folder.record_incident(f"{number}")
    assert folder.incidents() == ["2", "3", "4"]


def test_damaged_outcomes_are_named(folder):
    for name in ("best", "last"):
        run_folder.write_record(folder.outcome_path(name, "clean"), {"right": 1})
    path = folder.outcome_path("last", "clean")
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    (found,) = folder.damaged_outcomes().items()
    assert found[0] == path
    assert f"{path} is damaged" in str(found[1])


def test_the_curve_has_a_digest(folder):
    for record in records(3):
        folder.append_epoch(record)
    digest = folder.curve_sha256(2)
    assert folder.committed_epochs(2, digest) == folder.committed_epochs(2, None) == records(2)
    path = folder.path / "epochs.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.6"))  # still a number
    with pytest.raises(DamagedFile, match=r"epochs\.jsonl is damaged: its first 2 lines do not match their SHA-256$"):
        folder.committed_epochs(2, digest)


# --- signs of life ---------------------------------------------------------------------------------------------------


def test_signs_of_life(folder, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now)
    assert folder.last_heartbeat() == 0
    folder.progress(phase="loading")
    os.utime(folder.path / "progress.json", (0, 0))
    folder.heartbeat()
    assert folder.last_heartbeat() == 0, "it costs nothing to be alive all the time"
    now += run_folder.PROGRESS_SECONDS
    folder.heartbeat()
    assert folder.last_heartbeat() > 0
    assert folder.read_progress()["phase"] == "loading"


def test_a_full_disk_does_not_silence_a_run(folder, monkeypatch):
    folder.progress(force=True, phase="training")
    os.utime(folder.path / "progress.json", (0, 0))

    def full(*_arguments, **_settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_atomically", full)
    folder.progress(force=True, phase="evaluation")
    assert folder.last_heartbeat() > 0


def test_final_statuses_are_those_of_done_json():
    assert {status for status in CellStatus if status.is_final} == {"finished", "diverged", "failed"}
