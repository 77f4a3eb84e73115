"""The same cells everywhere, and clusters in which things go wrong: `tox -e clusters` runs this."""

import os
import signal
import time

import pytest

from bench.driver import run_suite
from bench.execution.executor import Spread
from bench.spec import load_suite
from bench.store.store import Store
from bench.testing.conformance import curve

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")


from ..execution.test_slurm import cluster as slurm_cluster  # noqa: E402, F401  (a fixture)


@pytest.fixture
def cluster():
    """A Ray cluster whose head runs no cells."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def result_of(states):
    """Return what the cells came to: curve, weights and verdicts of each."""
    found = []
    for state in states:
        folder = state.planned.folder
        assert state.status == "finished", state.reason
        outcomes = {
            key: (record["weights_sha256"], record["correct"]) for key, record in folder.read_outcomes().items()
        }
        found.append((curve(folder.epochs()), outcomes))
    return found


def test_a_killed_worker_and_a_node_that_goes_and_comes(load, tmp_path, cluster):
    loaded = load({"seeds: [0]": "seeds: [0, 1]\nexecution: {threads: 1}", "epochs: 2": "epochs: 40"})
    first = cluster.add_node(num_cpus=2)
    done = []

    def act(states):
        where = states[0].progress
        if not done and where.get("epoch", 0) >= 2:
            os.kill(where["pid"], signal.SIGKILL)
            done.append("killed a worker")
        elif len(done) == 1 and states[0].tries == 1 and states[0].progress.get("epoch", 0) >= 5:
            cluster.remove_node(first, allow_graceful=False)
            done.append("removed its node")
        elif len(done) == 2 and all(state.tries for state in states):
            cluster.add_node(num_cpus=2)
            done.append("added a node")

    states = run_suite(loaded, results=tmp_path / "there", spread=Spread("ray", address=cluster.address), watch=act)
    assert done == ["killed a worker", "removed its node", "added a node"]
    assert states[0].tries == 2
    assert states[1].tries == 1
    with Store.of(tmp_path / "there") as store:
        assert sorted((run.seed, run.status) for run in store.runs()) == [(0, "finished"), (1, "finished")]
        assert all("try 1 of 3" in run.incidents[0] for run in store.runs())
    assert result_of(states) == result_of(run_suite(loaded, results=tmp_path / "here"))


def test_the_quickstart_suite_comes_to_the_same_everywhere(tmp_path, request):
    """One thread each, since sums depend on their number in the last bits."""
    loaded, came_to, took = load_suite("quickstart"), {}, {}
    for name, spread in {
        "local, one job": Spread(jobs=1, threads=1),
        "local, two jobs": Spread(jobs=2, threads=1),
        "ray": Spread("ray", threads=1),
        "slurm": Spread("slurm", threads=1),
    }.items():
        if name == "slurm":
            request.getfixturevalue("slurm_cluster")
        began = time.monotonic()
        came_to[name] = result_of(run_suite(loaded, results=tmp_path / name, spread=spread))
        took[name] = time.monotonic() - began
        print(f"\nquickstart, {name}: {took[name]:.1f} s")
        assert came_to[name] == came_to["local, one job"]
    print(f"two jobs on two cores: {took['local, one job'] / took['local, two jobs']:.2f} times one job's throughput")
