import base64
import json
import subprocess
import sys
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, event, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from bench.errors import BenchError, DamagedFile, NothingMeasured
from bench.storage.rows import read_run
from bench.storage.run_folder import RunFolder
from bench.storage.schema import EpochRow, ProtocolRow
from bench.storage.store import Store, mean_of_last_five
from bench.storage.verify import database_damage
from bench.utils.files import fingerprint, read_record, write_record

from .conftest import CODE, DATA, contents, empty, protocol_of

# --- taking in -------------------------------------------------------------------------------------------------------


def test_a_run_is_stored_whole(make_run, store):
    folder = make_run({"best": (150, 100, 50), "last": (160, 90, 40)}, seed=3, done={"classes": 10}, params={"a": 0.5})
    store.ingest(folder)
    (run,) = store.runs(bits=True)
    said = folder.cell()
    assert run.fingerprint == said["fingerprint"]
    assert run.training_fingerprint == said["training_fingerprint"]
    assert run.protocol.fingerprint == run.protocol_fingerprint == fingerprint(run.protocol.content)
    assert run.protocol.content == said["identity"]["protocol"]
    assert (run.suite, run.method, run.version, run.label, run.params) == ("tiny", "pgd_at", 1, "PGD_AT", {"a": 0.5})
    assert (run.custom, run.origin, run.final_is_best, run.seed) == (False, "paper", False, 3)
    assert (run.status, run.reason, run.diverged_in, run.classes, run.epochs) == ("finished", None, None, 10, 2)
    assert run.incidents is None
    assert (run.train_seconds, run.track_seconds, run.evaluation_seconds) == (3600, 360, 1440)
    assert run.peak_memory_bytes == 5 * 2**30
    assert run.train_pflop == 1.5
    assert run.environment == {"code": CODE, "data": DATA, "device": "cpu", "cpu": "A Processor"}
    assert run.folder == f"runs/{folder.path.name}"
    assert set(run.checkpoints) == {"best", "last"}  # the resume state is none that is judged
    assert run.checkpoints["last"].epoch == 1
    assert run.checkpoints["last"].sha256 == "last".ljust(64, "0")
    assert run.checkpoints["last"].file == "weights-last.safetensors"
    outcome = run.checkpoints["last"].outcomes["autoattack-2"]
    assert (outcome.attack, outcome.title, outcome.count, outcome.right) == ("autoattack", "AutoAttack", 100, 40)
    assert (outcome.accuracy, outcome.seconds, outcome.detail) == (0.4, 1.5, {"note": 2, "doubts": []})
    assert outcome.identity["images"] == 100
    assert outcome.bits.unpack().tolist() == [True] * 40 + [False] * 60


def test_the_curve_is_stored(make_run, store):
    store.ingest(make_run())
    curve = store.show_run("pgd-at")["curve"]
    assert [row["epoch"] for row in curve] == [0, 1]
    assert curve[1] == {
        "epoch": 1, "lr": 0.05, "train_loss": 1.0, "train_robust": 0.3, "validation_clean": 0.7,
        "validation_robust": 0.5, "test_clean": 0.69, "test_robust": 0.39, "train_pflop": None, "train_seconds": 4.0,
        "seconds": 5.0,
    }  # fmt: skip


def test_the_mean_of_the_last_five_epochs(make_run, store):
    def curve(*robust):
        return [EpochRow(epoch=epoch, test_clean=0.5, test_robust=value) for epoch, value in enumerate(robust)]

    mean = mean_of_last_five(curve(0.9, 0.1, 0.2, 0.3, 0.4, 0.5))
    assert mean == pytest.approx({"test_clean": 0.5, "test_robust": 0.3})
    assert mean_of_last_five(curve(0.1, 0.2, 0.3, 0.4)) is mean_of_last_five(curve(*[None] * 5)) is None
    store.ingest(make_run())
    assert store.show_run("pgd-at")["last_five"] is None  # two epochs


def test_a_curve_without_the_test_images(make_run, store):
    store.ingest(make_run(test_tracked=False))
    assert store.show_run("pgd-at")["curve"][0]["test_robust"] is None


def test_taking_in_again_changes_nothing_in_any_order(make_run, store_url, store):
    folders = [make_run(seed=seed) for seed in range(3)]
    for folder in folders:
        store.ingest(folder)
    before = contents(store_url)
    assert len(before) == 1 + 3 * (1 + 2 + 2 + 6)  # protocol; run, epochs, checkpoints, outcomes
    for folder in reversed(folders):
        store.ingest(folder)
    assert contents(store_url) == before
    empty(store_url)
    assert contents(store_url) == []
    for folder in folders[1:] + folders[:1]:
        store.ingest(folder)
    assert contents(store_url) == before


def test_a_run_that_ends_while_it_is_read_is_no_damage(make_run, store, monkeypatch):
    folder = make_run(status=None)
    path = folder.outcome_path("last", "clean-0")
    record = read_record(path)
    write_record(path, record | {"weights_sha256": "of weights that the index did not name yet"})
    real, asked = RunFolder.result, []

    def ends(self):
        found = real(self)
        asked.append(found)
        if len(asked) == 1:
            folder.finish("finished")
        elif len(asked) == 2:  # by then the index has long been written
            write_record(path, record)
        return found

    monkeypatch.setattr(RunFolder, "result", ends)
    store.ingest(folder)
    assert len(asked) > 2
    assert store.runs()[0].status == "finished"


def test_how_a_run_ended_is_not_replaced_by_what_was_before(make_run, store, store_url, monkeypatch):
    folder, read = make_run(status=None), []

    def read_slowly(folder):
        read.append(1)
        rows = read_run(folder)
        if len(read) == 1:  # another process is faster
            folder.finish("finished")
            with Store(store_url) as other:
                other.ingest(folder)
        return rows

    monkeypatch.setattr("bench.storage.store.read_run", read_slowly)
    store.ingest(folder)
    assert store.runs()[0].status == "finished"
    assert len(read) == 3


def test_taking_in_a_changed_run_replaces_all_of_it(make_run, store):
    folder = make_run(status="failed", done={"reason": "disk full"})
    store.ingest(folder)
    assert store.runs()[0].reason == "disk full"
    folder.outcome_path("last", "clean-0").unlink()
    folder.truncate_epochs(1)
    edit(folder, "checkpoints/index.json", finished_epochs=1)
    folder.finish("diverged", reason="the loss", epoch=1)
    folder.record_incident("the worker died")
    store.ingest(folder)
    shown = store.show_run("pgd-at")
    assert (shown["status"], shown["reason"], shown["diverged_in"]) == ("diverged", "the loss", 1)
    assert shown["incidents"] == ["the worker died"]
    assert shown["train_seconds"] is None
    assert len(shown["curve"]) == shown["epochs"] == 1
    assert len(shown["outcomes"]) == 5


def test_ingest_if_new(make_run, store, monkeypatch):
    taken = []
    monkeypatch.setattr(Store, "ingest", lambda self, folder, ingest=Store.ingest: taken.append(ingest(self, folder)))
    folder = make_run(status=None)
    store.ingest_if_new(folder)
    store.ingest_if_new(folder)  # it has not ended, so it may have gone on
    assert len(taken) == 2
    folder.finish("failed", reason="x")
    store.ingest_if_new(folder)
    store.ingest_if_new(folder)
    assert len(taken) == 3
    folder.finish("failed", reason="y")
    store.ingest_if_new(folder)
    assert len(taken) == 4
    assert store.runs()[0].reason == "y"


def test_an_interrupted_run_has_its_committed_epochs_only(make_run, store):
    folder = make_run({}, status=None)
    write_record(folder.checkpoints / "index.json", {"checkpoints": {}, "finished_epochs": 1, "finished": False})
    store.ingest(folder)
    run = store.runs()[0]
    assert (run.status, run.epochs, run.checkpoints, run.done_sha256) == ("interrupted", 1, {}, None)
    (folder.checkpoints / "index.json").unlink()
    store.ingest(folder)
    assert store.runs()[0].epochs == 0


def test_outcomes_of_other_weights(make_run, store):
    folder = make_run(status=None)
    path = folder.outcome_path("last", "clean-0")
    write_record(path, read_record(path) | {"weights_sha256": "other"})
    store.ingest(folder)  # as a run that takes over another's training leaves it before the weights have come
    assert set(store.runs()[0].checkpoints["last"].outcomes) == {"pgd-1", "autoattack-2"}
    folder.finish("finished")
    with pytest.raises(DamagedFile, match=r"last\.clean-0\.json is of other weights"):
        store.ingest(folder)


def edit(folder: RunFolder, name: str, **changes: object) -> None:
    write_record(folder.path / name, read_record(folder.path / name) | changes)


def damage_bytes(folder: RunFolder) -> None:
    path = folder.outcome_path("best", "pgd-1")
    path.write_bytes(path.read_bytes().replace(b'"right": 100', b'"right": 101'))


PGD = "outcomes/best.pgd-1.json"
DAMAGES = {
    "changed bytes": damage_bytes,
    "a record that is not JSON": lambda folder: (folder.path / "done.json").write_text("{"),
    "a missing epoch": lambda folder: (folder.path / "epochs.jsonl").write_text('{"epoch": 1}\n'),
    "an epoch less than committed": lambda folder: folder.truncate_epochs(1),
    "another curve": lambda folder: edit(folder, "checkpoints/index.json", curve_sha256="0" * 64),
    "a link": lambda folder: (folder.path / "log.txt").symlink_to("/dev/null"),
    "incidents of another shape": lambda folder: write_record(folder.path / "incidents.json", {}),
    "an epoch without figures": lambda folder: (folder.path / "epochs.jsonl").write_text('{"epoch": 0}\n'),
    "an index that names no file": lambda folder: edit(folder, "checkpoints/index.json", checkpoints={"best": {}}),
    "an index of another shape": lambda folder: edit(folder, "checkpoints/index.json", checkpoints=[]),
    "an outcome of no checkpoint": lambda folder: (folder.path / PGD).rename(folder.outcomes / "first.pgd-1.json"),
    "too few verdicts": lambda folder: edit(folder, PGD, count=201),
    "too many verdicts": lambda folder: edit(folder, PGD, count=192),
    "no verdicts": lambda folder: edit(folder, PGD, count=0, correct="", right=0),
    "a wrong sum": lambda folder: edit(folder, PGD, right=99),
    "verdicts that are not base64": lambda folder: edit(folder, PGD, correct="?"),
    "an attack without a name": lambda folder: edit(folder, PGD, attack={}),
    "a fingerprint of something else": lambda folder: edit(folder, "cell.json", fingerprint="0" * 64),
    "a protocol fingerprint of something else": lambda folder: edit(folder, "cell.json", protocol_fingerprint="0" * 64),
    "an identity of another shape": lambda folder: edit(folder, "cell.json", identity=[]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_and_the_store_stays_as_it_was(make_run, store_url, store, damage):
    folder = make_run()
    store.ingest(folder)
    before = contents(store_url)
    damage(folder)
    with pytest.raises(DamagedFile, match=folder.path.name):
        store.ingest(folder)
    assert contents(store_url) == before


def test_a_folder_that_is_none_of_a_run(store, tmp_path):
    for take in (store.ingest, store.ingest_if_new):
        with pytest.raises(BenchError, match=r"nowhere is not a run folder: it has no cell\.json"):
            take(RunFolder(tmp_path / "nowhere"))


@contextmanager
def before_each(act, part: str):
    """Within, `act` is called before each statement that `part` is in."""

    def listen(_connection, _cursor, statement, *_):
        if part in statement:
            act()

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", listen)


@pytest.mark.parametrize("table", ["run", "checkpoint", "outcome", "epoch"])
def test_all_or_nothing(make_run, store_url, store, table):
    folder = make_run()
    store.ingest(folder)
    before = contents(store_url)
    folder.finish("failed", reason="something new")

    def break_down():
        raise RuntimeError("power cut")

    with before_each(break_down, f"INSERT INTO {table} "), pytest.raises(RuntimeError):
        store.ingest(folder)
    assert contents(store_url) == before


def test_a_writer_that_loses_a_race_tries_again(make_run, store, store_url):
    folder, losses = make_run(), []

    def lose(times):
        if len(losses) < times:
            losses.append(1)
            raise IntegrityError("INSERT", {}, Exception("protocol.fingerprint is taken"))

    with before_each(lambda: lose(2), "INSERT INTO protocol"):
        store.ingest(folder)
    assert (len(store.runs()), len(losses)) == (1, 2)
    empty(store_url)
    with before_each(lambda: lose(2 + 3), "INSERT INTO protocol"), pytest.raises(IntegrityError):
        store.ingest(folder)
    assert contents(store_url) == []


def test_foreign_keys_are_enforced(make_run, store_url):
    with Store(store_url):
        pass
    with Store(store_url) as store:  # not the connection that made it
        check_foreign_keys(make_run, store)


def check_foreign_keys(make_run, store):
    with pytest.raises(IntegrityError), Session(store._writing) as session, session.begin():
        session.add(
            EpochRow(
                run="0" * 64, epoch=0, lr=0, train_loss=0, train_robust=0, validation_clean=0, validation_robust=0,
                train_seconds=0, seconds=0,
            )
        )  # fmt: skip
    store.ingest(make_run())
    with pytest.raises(IntegrityError), Session(store._writing) as session, session.begin():
        session.execute(delete(ProtocolRow))


# --- answering -------------------------------------------------------------------------------------------------------


def test_runs_come_in_order_and_by_protocol(make_run, store):
    for method, seed in (("trades", 0), ("pgd_at", 1), ("pgd_at", 0)):
        store.ingest(make_run(method=method, seed=seed))
    assert [(run.method, run.seed) for run in store.runs()] == [("pgd_at", 0), ("pgd_at", 1), ("trades", 0)]
    protocol = store.runs()[0].protocol_fingerprint
    assert len(store.runs(protocol=protocol)) == len(store.runs(protocol=protocol[:8])) == 3
    assert store.runs(protocol=f"{protocol}0") == store.runs(protocol="_") == store.runs(protocol="%") == []


def test_what_is_not_loaded_raises(make_run, store):
    store.ingest(make_run())
    (run,) = store.runs()
    with pytest.raises(SQLAlchemyError):
        run.checkpoints["best"].outcomes["clean-0"].correct  # noqa: B018
    with pytest.raises(SQLAlchemyError):
        run.curve  # noqa: B018


def test_list_runs(make_run, store):
    folders = [make_run(seed=1), make_run(method="mart", status="diverged")]
    for folder in folders:
        store.ingest(folder)
    listed = store.list_runs()
    assert [row["name"] for row in listed] == [folders[1].path.name, folders[0].path.name]
    assert listed[1] == {
        "name": folders[0].path.name, "suite": "tiny", "method": "PGD_AT", "seed": 1, "status": "finished",
        "epochs": 2, "protocol": folders[0].cell()["protocol_fingerprint"][:12],
    }  # fmt: skip


def test_show_run(make_run, store):
    folders = [make_run(seed=seed) for seed in (0, 1)]
    for folder in folders:
        store.ingest(folder)
    shown = store.show_run(folders[1].path.name)
    assert json.loads(json.dumps(shown)) == shown
    assert shown == store.show_run(folders[1].cell()["fingerprint"][:20])
    assert (shown["name"], shown["seed"]) == (folders[1].path.name, 1)
    assert shown["protocol"]["model"] == "small_cnn"
    assert [row["name"] for row in shown["checkpoints"]] == ["best", "last"]
    assert shown["attacks"]["autoattack-2"]["package"] == "1.0"
    assert [row["key"] for row in shown["outcomes"]] == ["autoattack-2", "clean-0", "pgd-1"] * 2
    assert shown["outcomes"][0]["title"] == "AutoAttack"
    assert shown["outcomes"][0]["accuracy"] == 0.5
    with pytest.raises(BenchError, match=r"'pgd-at' is the beginning of several runs, such as pgd-at-seed0.* and pgd"):
        store.show_run("pgd-at")
    for name in ("p%", "%"):
        with pytest.raises(NothingMeasured, match=f"no run begins with '{name}'; `bench list runs` names them"):
            store.show_run(name)


def test_describe(make_run, store, store_url):
    store.ingest(make_run())
    url = make_url(store_url)
    place = url.database if url.host is None else f"{url.host}/{url.database}"
    assert store.describe() == f"the {url.get_backend_name()} store {place}, 1 run"


# --- several processes, and imports ----------------------------------------------------------------------------------


def take_in(url: str, folders: list[Path], barrier) -> None:
    barrier.wait(30)
    with Store(url) as store:
        for folder in folders:
            store.ingest(RunFolder(folder))


@pytest.mark.parametrize(("processes", "runs"), [(2, 16), (4, 8)])
def test_processes_create_and_fill_a_store_together(make_run, store_url, processes, runs):
    """All write all runs, of two protocols, each beginning with another one: no row is lost, none is there twice."""
    protocols = [protocol_of(), protocol_of(model="preact_resnet18")]
    folders = [make_run(seed=seed, protocol=protocols[seed % 2]).path for seed in range(runs)]
    context = get_context("fork")
    barrier = context.Barrier(processes)
    starts = [runs * number // processes for number in range(processes)]
    orders = [folders[start:] + folders[:start] for start in starts]
    workers = [context.Process(target=take_in, args=(store_url, order, barrier)) for order in orders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * processes
    together = contents(store_url)
    with Store(store_url) as store:
        assert database_damage(store.engine) == []
        assert len(store.runs()) == runs
        empty(store_url)
        for folder in folders:
            store.ingest(RunFolder(folder))
    assert together == contents(store_url)


def test_an_up_to_date_store_opens_without_alembic_and_torch(make_run, store_url):
    with Store(store_url) as store:
        store.ingest(make_run())
    code = (
        "import sys; from bench.storage.store import Store\n"
        f"print(len(Store({store_url!r}).runs()), [m for m in ('alembic', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[0] == "1 []"


def test_the_bits_are_those_of_the_record(make_run, store):
    folder = make_run()
    store.ingest(folder)
    record = read_record(folder.outcome_path("best", "pgd-1"))
    stored = store.runs(bits=True)[0].checkpoints["best"].outcomes["pgd-1"].correct
    assert stored == base64.b64decode(record["correct"])
