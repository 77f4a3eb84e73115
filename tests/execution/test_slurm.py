"""The Slurm executor, against Slurm's own daemons on this machine: one node, two CPUs, no accounting."""

import getpass
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

pytest.importorskip("submitit")

from bench.errors import BenchError
from bench.execution import slurm, slurm_commands
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings, Paths
from bench.execution.slurm import SlurmExecutor, SlurmHandle
from bench.execution.slurm_commands import minutes, queue, request
from bench.execution.worker import Job, WorkerResult
from bench.storage.run_folder import RunFolder
from bench.testing.conformance import curve
from bench.utils.files import write_record

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
KillWait=1
CompleteWait=0
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE
PartitionName=short Nodes=node DefaultTime=30 MaxTime=1-00:00:00
"""

QUICK = {"epochs: 2": "epochs: 1"}

LATER = {"begin": "now+1hour"}  # jobs that stay in the queue


def free_ports():
    with socket.socket() as one, socket.socket() as other:
        for end in (one, other):
            end.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start a Slurm of one node; the folder in which its daemons write."""
    programs = ("slurmctld", "slurmd", "sbatch", "srun")
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONF.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports())
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", PATH)
        patch.setattr(slurm, "QUEUE_SECONDS", 0.3)
        daemons = []
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "node"]):
            with (folder / f"{command[0]}.log").open("w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        try:
            until = time.monotonic() + 20
            while "idle" not in (said := slurm.slurm("sinfo", "--noheader", "--format=%T").stdout):
                if time.monotonic() > until:
                    logs = [path.read_text()[-1500:] for path in folder.glob("*.log")]
                    pytest.fail(f"Slurm does not start: {said} {logs}")
                time.sleep(0.2)
            yield folder
            slurm.slurm("scancel", f"--user={os.getuid()}")
            wait_until(lambda: not queue(), 20)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(10)


def wait_until(true, seconds=30):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def result_of(cell, results):
    """What is to be the same wherever a cell runs: its weights, curve and verdicts."""
    folder = RunFolder.of(cell, results)
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.checkpoints.glob("*.safetensors")
    }
    assert weights
    return weights, curve(folder.epochs()), {key: record["correct"] for key, record in folder.read_outcomes().items()}


@pytest.fixture
def executor(cluster, tmp_path):
    """Make executors that are closed in the end."""
    made = []

    def make(results=tmp_path / "results", jobs=None, **options):
        made.append(SlurmExecutor(ExecutorSettings("slurm", jobs=jobs, slurm=options), Paths(results, None)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def arrays(results):
    return sorted(path.name for path in results.glob("slurm/*_cells.json"))


FAILING_METHODS = """
import os, signal, subprocess, time
from dataclasses import replace
from pathlib import Path
from methods.pgd_at import PGDAT

class Preempted(PGDAT):
    info = replace(PGDAT.info, name="preempted", title="Preempted")
    def begin_epoch(self, epoch):
        file = Path(__file__).with_name(self.info.name)
        with file.open("a") as begun:
            begun.write(f"{epoch}\\n")
        self.fail(len(file.read_text().splitlines()))
    def fail(self, time_begun):
        if time_begun == 2:
            os.kill(os.getpid(), signal.SIGUSR2)  # as Slurm does before it preempts a job or its time is over

class Killed(Preempted):
    info = replace(PGDAT.info, name="killed", title="Killed")
    def fail(self, time_begun):
        if time_begun == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if time_begun == 3:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
            time.sleep(600)

METHODS = {"preempted": Preempted, "killed": Killed}
"""


@pytest.mark.slow
def test_preempted_and_killed_jobs_give_the_results_of_a_local_run(cluster, load, tmp_path):
    (tmp_path / "plugin.py").write_text(FAILING_METHODS)
    loaded = load({"methods: [pgd_at]": "methods: [preempted, killed]\nplugins: [plugin.py]"})
    seen, results = [], tmp_path / "a folder"
    settings = ExecutorSettings("slurm", threads=1, slurm={"partition": "short", "comment": "a word, and 'another'"})
    states = run_suite(
        loaded, results=results, settings=settings, watch=lambda states: seen.append([state.status for state in states])
    )
    assert [(state.status, state.reason, state.attempts) for state in states] == [
        ("finished", "", 0),
        ("finished", "", 1),
    ]
    assert ["running", "running"] in seen
    preempted, killed = (RunFolder.of(cell, results) for cell in loaded.cells)
    assert (tmp_path / "preempted").read_text().split() == ["0", "1", "1"]
    log = preempted.log.read_text()
    assert log.count("Requeued job") == 1
    assert "ERROR" not in log
    assert log.splitlines()[-1].partition("INFO ")[2].startswith("finished in")
    assert preempted.incidents() == []
    assert (tmp_path / "killed").read_text().split() == ["0", "1", "1", "1"]
    (incident,) = killed.incidents()
    assert incident.startswith("the worker died: job ")
    assert incident.endswith(" is FAILED, exit code 137:0; srun: error: node: task 0: Killed (attempt 1 of 3)")

    # The methods fail no more: their counters passed the failing starts.
    run_suite(loaded, results=tmp_path / "local", settings=ExecutorSettings(threads=1))
    for cell in loaded.cells:
        assert result_of(cell, results) == result_of(cell, tmp_path / "local")

    first, second = arrays(results)
    assert stat.S_IMODE((results / "slurm").stat().st_mode) == 0o700
    text = (results / "slurm" / first.replace("cells.json", "submission.sh")).read_text()
    for option in ("job-name=tiny", "requeue", "time=30:00", "signal=USR2@90", "cpus-per-task=1", "array=0-1%2"):
        assert f"#SBATCH --{option}\n" in text
    assert "--wckey" not in text
    assert "export OMP_NUM_THREADS=1\n" in text
    assert re.search(r"^srun .*--cpus-per-task=1 ", text, re.MULTILINE)
    assert [state.action for state in run_suite(loaded, results=results, settings=settings)] == ["skip", "skip"]
    assert arrays(results) == [first, second]


@pytest.mark.slow
def test_detached_jobs_run_on_and_are_found_again(executor, load, tmp_path):
    loaded, results = load(QUICK | {"seeds: [0]": "seeds: [0, 1]"}), tmp_path / "results"
    one = executor(jobs=2)
    handles = one.submit(loaded.cells)
    one.detach()
    one.close()
    assert queue().keys() == {handle.task for handle in handles}
    (job,) = {handle.task.partition("_")[0] for handle in handles}
    assert "ArrayTaskThrottle=2 " in slurm.slurm("scontrol", "show", "job", "-o", job).stdout

    states = run_suite(loaded, results=results, settings=ExecutorSettings("slurm"))
    assert [state.status for state in states] == ["finished", "finished"]
    assert arrays(results) == [f"{job}_cells.json"], "nothing was submitted a second time"


@pytest.mark.slow
def test_closing_cancels_own_jobs_only(executor, load, tmp_path):
    (tmp_path / "plugin.py").write_text(
        FAILING_METHODS.replace("os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(600)")
    )
    cells = load({"methods: [pgd_at]": "methods: [killed]\nplugins: [plugin.py]", "seeds: [0]": "seeds: [0, 1]"}).cells
    one, other = executor(**{"cpus-per-task": "2"}), executor()
    handles = one.submit(cells)
    adopted = other.submit(cells)
    assert [handle.task for handle in adopted] == [handle.task for handle in handles]
    wait_until(lambda: handles[0].job.folder.last_heartbeat())
    assert other.wait(1) == []
    other.close()
    assert queue().keys() == {handle.task for handle in handles}
    one.close()
    assert queue() == {}
    with handles[0].job.folder.lock():
        assert handles[0].job.folder.status() == "interrupted"


def test_a_cancelled_job_is_not_retried(executor, load):
    cells = load({"seeds: [0]": "seeds: [0, 1]"}).cells
    one = executor(**LATER)
    first, second = one.submit(cells)
    slurm.slurm("scancel", first.task)
    wait_until(lambda: first in one.wait(0.2))
    assert first.result() == WorkerResult("interrupted", f"job {first.task} was cancelled")
    second.kill()
    second._hung = True
    wait_until(lambda: second in one.wait(0.2))
    assert second.result().status == "lost"
    assert "the worker hung" in second.result().reason


def test_many_cells_are_split_into_arrays(executor, load, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "largest_array", lambda: 2)
    handles = executor(**LATER).submit(load({"seeds: [0]": "seeds: [0, 1, 2, 3, 4]"}).cells)
    first, second, third = sorted(int(name.partition("_")[0]) for name in arrays(tmp_path / "results"))
    assert [handle.task for handle in handles] == [
        f"{first}_0",
        f"{first}_1",
        f"{second}_0",
        f"{second}_1",
        f"{third}",
    ]


def test_jobs_of_another_results_folder_are_not_adopted(executor, load, tmp_path):
    cells = load().cells
    (first,) = executor(tmp_path / "a", **LATER).submit(cells)
    (second,) = executor(tmp_path / "b", **LATER).submit(cells)
    assert first.task != second.task
    (tmp_path / "a" / "slurm" / f"{first.task}_cells.json").write_text("torn")
    other = {second.task: cells[0].fingerprint}  # as another cluster that shares the folder may have numbered it
    write_record(tmp_path / "a" / "slurm" / f"{second.task}_cells.json", other)
    (third,) = executor(tmp_path / "a", **LATER).submit(cells)
    assert third.task not in {first.task, second.task}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "mian"}, r"--slurm partition=mian: no such partition; did you mean 'main'\?"),
        ({"partition": "main,gpus"}, r"--slurm partition=gpus: no such partition; known: main, short"),
        ({"foo": "1"}, r"Slurm refuses the jobs: unrecognized option '--foo=1'"),
        ({"mem": "much"}, r"Slurm refuses the jobs: Invalid --mem specification"),
        ({"gres": "gpu:1"}, r"Slurm refuses the jobs: Invalid generic resource \(gres\) specification"),
        ({"constraint": "h100"}, r"Slurm refuses the jobs: allocation failure: Invalid feature specification"),
        (
            {"cpus-per-task": "99"},
            r"Slurm refuses the jobs: allocation failure: Requested node configuration is not av",
        ),
        ({"time": "long"}, r"--slurm time=long: write minutes, "),
        ({"array": "0-9"}, r"--slurm array: this option cannot be set"),
        ({"p": "main"}, r"--slurm p: this option cannot be set"),
        ({"comment": "a\nrm"}, r"--slurm comment: its value has unprintable characters"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(cluster, tmp_path, options, words):
    with pytest.raises(BenchError, match=rf"^{words}"):
        SlurmExecutor(ExecutorSettings("slurm", slurm=options), Paths(tmp_path / "results", None))
    assert not (tmp_path / "results").exists()


def test_a_refused_submission_is_one_sentence(executor, load, capfd):
    one = executor()
    one._request.options["constraint"] = "h100"  # the cluster changes in the meantime
    with pytest.raises(BenchError, match=r"^Slurm refuses the jobs: Batch job submission failed: Invalid feature"):
        one.submit(load().cells)
    assert capfd.readouterr().err == ""


def test_options_override_slurm_environment_variables(executor, load, monkeypatch, caplog):
    for name, value in {
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_TIMELIMIT": "nonsense",
        "SQUEUE_STATES": "completed",
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_MEM_PER_NODE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    one = executor(partition="short", **LATER)
    (handle,) = one.submit(load().cells)
    assert os.environ["SBATCH_PARTITION"] == "nowhere"
    assert caplog.messages == []
    said = slurm.slurm("scontrol", "show", "job", "-o", handle.task).stdout
    assert " Partition=short " in said
    assert " TimeLimit=00:30:00 " in said
    assert " JobName=tiny/pgd_at " in said
    assert " Requeue=1 " in said
    assert one.wait(0.5) == []


def test_a_results_folder_not_shared_with_the_nodes_is_one_sentence(executor, load, monkeypatch, tmp_path):
    real = slurm_commands.slurm
    monkeypatch.setattr(
        slurm_commands,
        "slurm",
        lambda *words, **settings: real(*words[:-1], words[-1].replace(".probe", ".none"), **settings),
    )
    with pytest.raises(BenchError, match=r"the results folder .*/results is not seen on \S+; name one that all nodes"):
        executor().submit(load().cells)
    wait_until(lambda: not queue())  # that of the look itself takes a moment to go
    assert list((tmp_path / "results" / "slurm").iterdir()) == []


def test_a_job_without_its_folder_says_so(executor, load, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(slurm_commands, "PROBE_SECONDS", 1)
    slurm.slurm("scontrol", "update", "NodeName=node", "State=DRAIN", "Reason=test")
    try:
        one = executor()  # jobs may wait for nodes that are drained
        (handle,) = one.submit(load().cells)
        assert "unknown whether nodes see the results folder" in caplog.text
        (tmp_path / "results" / "slurm").rename(tmp_path / "elsewhere")
    finally:
        slurm.slurm("scontrol", "update", "NodeName=node", "State=RESUME")
    wait_until(lambda: handle in one.wait(0.2))
    assert handle.result().status == "lost"
    assert handle.result().reason.startswith(f"the worker died: job {handle.task} is FAILED, exit code ")
    assert handle.result().reason.endswith(f"left no log; its node may not see {tmp_path}/results/slurm")


def test_an_outage_of_slurm_ends_no_job_and_submits_none(executor, load, monkeypatch, caplog):
    one = executor(**LATER)
    cells = load({"seeds: [0]": "seeds: [0, 1]"}).cells
    one.submit(cells[:1])
    with monkeypatch.context() as gone:
        gone.setattr(slurm, "queue", lambda: None)
        for _ in range(2):
            time.sleep(slurm.QUEUE_SECONDS)
            assert one.wait(0.1) == []
        assert one.room() == 0
        with pytest.raises(BenchError, match="Slurm does not answer"):
            one.submit(cells[1:])
    time.sleep(slurm.QUEUE_SECONDS)
    assert one.wait(0.1) == []
    assert one.room() > 10_000
    assert caplog.messages == ["Slurm does not answer; its jobs keep running", "Slurm answers again"]


def test_one_squeue_call_covers_all_jobs(executor, load, monkeypatch):
    one = executor(**LATER)
    handles = one.submit(load({"seeds: [0]": f"seeds: {list(range(50))}"}).cells)
    handles[7].started = True  # and then it was put back into the queue
    looks = []
    real = slurm_commands.slurm
    monkeypatch.setattr(slurm_commands, "slurm", lambda *words: looks.append(words[0]) or real(*words))
    time.sleep(slurm.QUEUE_SECONDS)
    for _ in range(5):
        assert one.wait(0.01) == []
    assert looks == ["squeue"]
    assert not handles[7].started


def test_a_missing_slurm_is_one_sentence(cluster, monkeypatch, tmp_path):
    (tmp_path / "slurm.conf").write_text("nonsense=1")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(BenchError, match=r"^Slurm does not answer: Unable to process configuration file"):
        request(ExecutorSettings("slurm"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"^there is no sbatch on this machine"):
        request(ExecutorSettings("slurm"))


# --- without Slurm ---------------------------------------------------------------------------------------------------


def test_a_missing_submitit_is_one_sentence(monkeypatch, load, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "bench.execution.slurm")
    with pytest.raises(BenchError, match=r"pip install 'robust-overfitting-bench\[slurm\]'"):
        run_suite(load(), results=tmp_path / "results", settings=ExecutorSettings("slurm"))
    assert not (tmp_path / "results").exists()


def test_times_in_slurm_formats():
    known = {"90": 90, "0:30": 1, "90:30": 90, "12:00:00": 720, "1-12": 2160, "1-12:30": 2190, "2-00:00:00": 2880}
    assert {text: minutes(text) for text in known} == known
    for text in ("", "abc", "1:2:3:4", "1-", "-5"):
        with pytest.raises(BenchError, match="--slurm time="):
            minutes(text)


def test_requested_devices(monkeypatch):
    def answer(*words, **_):
        return subprocess.CompletedProcess(words, 0, "main*|n/a|infinite\n" if words[0] == "sinfo" else "", "")

    monkeypatch.setattr(slurm_commands, "slurm", answer)
    monkeypatch.setattr(slurm_commands.shutil, "which", lambda _name: "sbatch")

    def asked(**settings):
        found = request(ExecutorSettings("slurm", **settings))
        return found.devices, found.flags("cpus_per_task", "gres", "exclusive")

    assert asked() == (("cpu",), ["--cpus-per-task=1"])
    assert asked(threads=4, devices=2) == (("cpu", "cpu"), ["--cpus-per-task=8"])
    assert asked(device="cuda", devices=2) == (("cuda:0", "cuda:1"), ["--gres=gpu:2", "--cpus-per-task=2"])
    assert asked(slurm={"gres": "gpu:a100:1"}) == (("cuda:0",), ["--gres=gpu:a100:1", "--cpus-per-task=1"])
    assert asked(slurm={"gpus-per-node": "1", "exclusive": "true"}) == (
        ("cuda:0",),
        ["--exclusive", "--cpus-per-task=1"],
    )
    assert asked(device="cpu", slurm={"gres": "gpu:1"})[0] == ("cpu",)
    assert asked(device="cuda", slurm={"cpus_per_task": "9", "gpus": "1"}) == (("cuda:0",), ["--cpus-per-task=9"])
    assert request(ExecutorSettings("slurm")).options["time"] == "UNLIMITED"
    for settings, words in (
        ({"device": "cuda:1"}, "auto, cpu or cuda"),
        ({"gpus": (0,)}, "do not apply to Slurm"),
        ({"jobs_per_gpu": 2}, "do not apply to Slurm"),
    ):
        with pytest.raises(BenchError, match=words):
            asked(**settings)


def test_a_requeued_job_is_not_counted_as_hung(load, tmp_path):
    cell = load().cells[0]
    handle = SlurmHandle(Job(cell, tmp_path, ("cpu",), None, 1), "1", tmp_path)
    handle.started, handle._silence = True, 1e6
    handle.waits()
    handle.check_heartbeat(60)
    assert not handle.started
    assert not handle._hung


def test_a_slurm_folder_of_another_owner_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "slurm").symlink_to(tmp_path / "real")
    with pytest.raises(BenchError, match=r"must be owned by you"):
        slurm._make_private(tmp_path / "slurm")
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match=r"cannot be created: "):
        slurm._make_private(tmp_path / "file" / "slurm")


def test_an_error_during_requeue_ends_the_worker_only():
    def fail(_number, _frame):
        raise subprocess.CalledProcessError(1, "scontrol")

    with pytest.raises(SystemExit):
        slurm._leave(fail, signal.SIGUSR2, None)
