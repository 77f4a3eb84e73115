"""The same cells everywhere, and clusters in which things go wrong: `tox -e clusters` runs this."""

import os
import signal
import time

from bench.config.suite import load_suite
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings
from bench.storage.store import Store

from ..execution.test_ray import ONE_THREAD, result_of
from ..execution.test_ray import cluster as ray_cluster  # noqa: F401  (a fixture)
from .slurm import cluster as slurm_cluster  # noqa: F401  (a fixture)


def test_a_killed_worker_and_a_node_that_goes_and_comes(load, tmp_path, ray_cluster):  # noqa: F811
    loaded = load({**ONE_THREAD, "epochs: 2": "epochs: 40"})
    first = ray_cluster.add_node(num_cpus=2)
    done = []

    def act(states):
        where = states[0].progress
        if not done and where.get("epoch", 0) >= 2:
            os.kill(where["pid"], signal.SIGKILL)
            done.append("killed a worker")
        elif len(done) == 1 and states[0].attempts == 1 and states[0].progress.get("epoch", 0) >= 5:
            ray_cluster.remove_node(first, allow_graceful=False)
            done.append("removed its node")
        elif len(done) == 2 and all(state.attempts for state in states):
            ray_cluster.add_node(num_cpus=2)
            done.append("added a node")

    states = run_suite(
        loaded, results=tmp_path / "there", settings=ExecutorSettings("ray", address=ray_cluster.address), watch=act
    )
    assert done == ["killed a worker", "removed its node", "added a node"]
    assert states[0].attempts == 2
    assert states[1].attempts == 1
    with Store.of(tmp_path / "there") as store:
        assert sorted((run.seed, run.status) for run in store.runs()) == [(0, "finished"), (1, "finished")]
        assert all("try 1 of 3" in run.incidents[0] for run in store.runs())
    assert result_of(states) == result_of(run_suite(loaded, results=tmp_path / "here"))


def test_the_quickstart_suite_comes_to_the_same_everywhere(tmp_path, request):
    """One thread each, since sums depend on their number in the last bits."""
    loaded, came_to, took = load_suite("quickstart"), {}, {}
    for name, settings in {
        "local, one job": ExecutorSettings(jobs=1, threads=1),
        "local, two jobs": ExecutorSettings(jobs=2, threads=1),
        "ray": ExecutorSettings("ray", threads=1),
        "slurm": ExecutorSettings("slurm", threads=1),
    }.items():
        if name == "slurm":
            request.getfixturevalue("slurm_cluster")
        began = time.monotonic()
        came_to[name] = result_of(run_suite(loaded, results=tmp_path / name, settings=settings))
        took[name] = time.monotonic() - began
        print(f"\nquickstart, {name}: {took[name]:.1f} s")
        assert came_to[name] == came_to["local, one job"]
    print(f"two jobs on two cores: {took['local, one job'] / took['local, two jobs']:.2f} times one job's throughput")
