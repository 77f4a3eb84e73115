"""The request for a cell's job, and the commands of Slurm."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.errors import BenchError, did_you_mean
from bench.execution.executor import ExecutorSettings

log = logging.getLogger(__name__)

PROBE_SECONDS = 20  # to wait for a free node that looks for the results folder

FOREVER = 365 * 24 * 60  # minutes, where there is no limit

OURS = frozenset(
    {"array", "clusters", "error", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output"}
    | {"parsable", "quiet", "test_only", "wrap"}
)
"""Options of sbatch that users cannot set, since they determine how a cell runs."""

WHERE = ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude")
"""Options of sbatch that select the nodes, and that srun has, too."""


@dataclass(frozen=True)
class Request:
    """The request for a job.

    `devices`: of the worker; `threads`: of each of its processes; `options`: of sbatch, with underscores, True for one
    without a value; `minutes`: the time limit as a number.
    """

    devices: tuple[str, ...]
    threads: int
    options: Mapping[str, str | int | bool]
    minutes: int

    def flags(self, *names: str) -> list[str]:
        """Return the options, or those among `names`, as words of a command line."""
        chosen = {name: value for name, value in self.options.items() if not names or name in names}
        flags = {f"--{name.replace('_', '-')}": value for name, value in chosen.items()}
        return [name if value is True else f"{name}={value}" for name, value in flags.items()]

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Hide the environment variables that would change the job.

        These are the variables of sbatch for the same options, which take precedence over them, and those of a job in
        which this process itself may run.
        """
        long = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE"}
        names = {f"SBATCH_{long.get(name, name.upper())}" for name in self.options}
        if "SLURM_JOB_ID" in os.environ:
            names |= {name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"}
        hidden = {name: os.environ.pop(name) for name in names & os.environ.keys()}
        try:
            yield
        finally:
            os.environ.update(hidden)


def request(settings: ExecutorSettings) -> Request:
    """Return the request for a cell's job, if Slurm would accept it.

    A login node does not know the cluster's GPUs: the device `auto` is a GPU if the options request one, else the CPU.
    The default time limit is that of the partition.

    Raises:
        BenchError: there is no Slurm here, no such partition, or an option is not possible.
    """
    if shutil.which("sbatch") is None:
        raise BenchError("there is no sbatch on this machine; run --executor slurm on a login node of the cluster")
    options = _options(settings.slurm)
    if settings.device not in {"auto", "cpu", "cuda"}:
        raise BenchError(f"--device '{settings.device:.60}': Slurm numbers GPUs itself; use auto, cpu or cuda")
    if settings.gpus or settings.jobs_per_gpu > 1:
        raise BenchError("--gpus and --jobs-per-gpu do not apply to Slurm; request GPUs with --slurm gres=gpu:1")
    each, threads = settings.devices or 1, settings.threads or 1
    gpus = any(name.startswith("gpus") for name in options) or re.search("gpu|shard", str(options.get("gres", "")))
    if settings.device == "cuda" and not gpus:
        options["gres"] = f"gpu:{each}"
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and gpus)
    devices = tuple(f"cuda:{number}" if on_gpu else "cpu" for number in range(each))
    options.setdefault("cpus_per_task", threads * each)
    options.setdefault("requeue", True)
    wanted = Request(devices, threads, options, _set_time(options))
    with wanted.undisturbed():
        refusal = _refusal(wanted.flags())
        # If there is no node even for a job without requests, nodes are down, and jobs may wait for them.
        if refusal and not ("not available" in refusal and "not available" in _refusal(wanted.flags(*WHERE))):
            raise BenchError(f"Slurm refuses the jobs: {refusal}")
    return wanted


def _refusal(flags: Sequence[str]) -> str:
    """Return why sbatch would refuse a job; empty if it would accept it."""
    done = slurm("sbatch", "--test-only", *flags, "--wrap=true")
    return last_line(done.stderr) if done.returncode else ""


def _options(words: Mapping[str, str]) -> dict[str, str | int | bool]:
    """Return the user's options with underscores. Raises BenchError for those that users cannot set."""
    options: dict[str, str | int | bool] = {}
    for word, value in words.items():
        name = word.strip("-").replace("-", "_")
        if name in OURS or not re.fullmatch(r"[a-z_]{2,}", name):
            raise BenchError(f"--slurm {word:.60}: this option cannot be set for the jobs of cells")
        if not value.isprintable():
            raise BenchError(f"--slurm {word}: its value has unprintable characters")
        options[name] = True if value == "true" else value
    return options


def _set_time(options: dict[str, str | int | bool]) -> int:
    """Return a job's time limit in minutes; without one, add that of the partition to `options`.

    submitit would request five minutes.

    Raises:
        BenchError: no such partition, the time cannot be read, or Slurm does not answer.
    """
    done = slurm("sinfo", "--noheader", "--format=%P|%L|%l")
    if done.returncode:
        raise BenchError(f"Slurm does not answer: {last_line(done.stderr)}")
    lines = [line.split("|") for line in done.stdout.splitlines()]
    limits = {name.rstrip("*"): (default, limit) for name, default, limit in lines}
    names = str(options.get("partition", "")).split(",")
    for name in filter(None, names):
        if name not in limits:
            raise BenchError(f"--slurm partition={name:.60}: no such partition{did_you_mean(name, limits)}")
    usual = next((name[:-1] for name, *_ in lines if name.endswith("*")), "")
    default, limit = limits.get(names[0] or usual, ("n/a", "infinite"))
    text = str(options.setdefault("time", limit if default == "n/a" else default))
    if text.lower() in {"infinite", "unlimited", "0", "-1"}:
        options["time"] = "UNLIMITED"
        return FOREVER
    return minutes(text)


def minutes(text: str) -> int:
    """Return the minutes, at least 1, of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        BenchError: it is none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise BenchError(f"--slurm time={text:.60}: write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, hours, mins, _ = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:
        hours, mins = 0, hours
    return max(1, (24 * days + hours) * 60 + mins)


def check_seen(folder: Path, wanted: Request) -> None:
    """Raise BenchError if a node does not see `folder`, in which a temporary file is created.

    If no node is free soon, nothing is known; a job without the folder fails with its own message.
    """
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    look = 'test -e "$0" && echo seen || echo not seen on $(hostname)'
    try:
        done = slurm(
            "srun", f"--immediate={PROBE_SECONDS}", "--quiet", "--ntasks=1", "--time=1", *wanted.flags(*WHERE),
            "sh", "-c", look, str(probe), patience=3 * PROBE_SECONDS,
        )  # fmt: skip
    finally:
        probe.unlink()
    answer = done.stdout.strip()
    if answer.startswith("not seen"):
        raise BenchError(f"the results folder {folder.parent} is {answer}; name one that all nodes share")
    if answer != "seen":
        log.warning("unknown whether nodes see the results folder: %s", last_line(done.stderr))


# --- Slurm's commands ------------------------------------------------------------------------------------------------


class Queued(NamedTuple):
    """A job in the output of `squeue`: its state, and its script."""

    state: str
    script: str


def slurm(*command: str, patience: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm, which may fail, without the user's settings of its output format."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SINFO_"))}
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=patience, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, -1, "", str(error))


def queue() -> dict[str, Queued] | None:
    """Return this user's jobs in the queue, by their numbers; None if Slurm does not answer."""
    done = slurm("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%o")
    if done.returncode:
        return None
    lines = [line.split("|", 2) for line in done.stdout.splitlines()]  # the command of another job may have several
    return {line[0]: Queued(*line[1:]) for line in lines if len(line) == 3}


def state_of(task: str) -> tuple[str, str]:
    """Return a job's state and exit code; Slurm keeps those of ended jobs for some minutes."""
    done = slurm("scontrol", "show", "job", "--oneliner", task)
    match = re.search(r" JobState=(\w+) .* ExitCode=(\S+)", done.stdout)
    return (match[1], match[2]) if match else ("gone", "unknown")


def largest_array() -> int:
    """Return how many jobs an array may have."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", slurm("scontrol", "show", "config").stdout)
    return max(1, int(match[1])) if match else 1001  # Slurm's default


def last_line(text: str) -> str:
    """Return the last line of an error output of Slurm, without the command's name and usage advice."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return re.sub(r"^(sbatch|srun|sinfo): (error: |fatal: )?", "", lines[-1])[:200] if lines else "no reason given"
