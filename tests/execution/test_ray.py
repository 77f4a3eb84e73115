"""Cells on a real Ray cluster: started here, with nodes that come and go."""

import sys
import tempfile

import pytest

from bench.errors import BenchError
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings, Paths
from bench.storage.store import Store
from bench.testing.conformance import curve

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
RayExecutor = pytest.importorskip("bench.execution.ray").RayExecutor

ONE_THREAD = {"seeds: [0]": "seeds: [0, 1]\nexecution: {threads: 1}"}


@pytest.fixture(autouse=True)
def own_ray_folder(monkeypatch):
    """Keep other clusters of this machine out of sight; the path is short, because Ray puts sockets into it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture
def cluster():
    """A cluster whose head runs no cells."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def result_of(states):
    """Return what the cells came to: weights, curve and verdicts of each."""
    found = []
    for state in states:
        folder = state.folder
        assert state.status == "finished", state.reason
        outcomes = {
            key: (record["weights_sha256"], record["correct"]) for key, record in folder.read_outcomes().items()
        }
        found.append((curve(folder.epochs()), outcomes))
    return found


def test_ray_comes_to_what_this_machine_alone_does(load, tmp_path):
    loaded = load(ONE_THREAD)
    here = run_suite(loaded, results=tmp_path / "here")
    seen = set()
    there = run_suite(
        loaded,
        results=tmp_path / "there",
        settings=ExecutorSettings("ray"),
        watch=lambda states: seen.update(state.status for state in states),
    )
    assert result_of(here) == result_of(there)
    assert "running" in seen
    with Store.of(tmp_path / "there") as store:
        assert [run.status for run in store.runs()] == ["finished", "finished"]


@pytest.mark.slow
@pytest.mark.parametrize(("jobs_per_gpu", "share"), [(1, 1.0), (2, 0.5)])
def test_cells_go_where_the_gpus_are(load, tmp_path, cluster, jobs_per_gpu, share):
    """The node says that it has a GPU, which is not true, but enough to be asked for it."""
    cluster.add_node(num_cpus=2, num_gpus=1)
    executor = RayExecutor(
        ExecutorSettings("ray", address=cluster.address, jobs_per_gpu=jobs_per_gpu, threads=2), Paths(tmp_path, None)
    )
    try:
        assert executor.devices == ("cuda:0",)
        assert executor.needs == {"num_cpus": 2, "num_gpus": share}
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "127.0.0.1:9"}, r"no Ray cluster answers at --address 127\.0\.0\.1:9"),
        ({"address": "nonsense"}, "no Ray cluster answers at --address nonsense"),
        ({"address": "auto"}, "no Ray cluster can be reached at --address auto"),
        pytest.param({"threads": 500}, "no node of the Ray cluster has 500 CPUs", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_that_cannot_be_had(load, tmp_path, settings, words):
    with pytest.raises(BenchError, match=words):
        run_suite(load(), results=tmp_path, settings=ExecutorSettings("ray", **settings))
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_a_node_that_does_not_see_the_results(load, tmp_path, cluster, monkeypatch):
    from bench.execution import ray as module

    cluster.add_node(num_cpus=1)
    monkeypatch.setattr(module, "_sees", lambda path: False)
    with pytest.raises(BenchError, match="does not see the results folder .*; name one that all nodes share"):
        run_suite(load(), results=tmp_path, settings=ExecutorSettings("ray", address=cluster.address))
    assert not list(tmp_path.glob("**/.probe*"))


def test_without_ray(load, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "bench.execution.ray")
    with pytest.raises(BenchError, match=r"pip install 'robust-overfitting-bench\[ray\]'$"):
        run_suite(load(), results=tmp_path / "results", settings=ExecutorSettings(executor="ray"))
    assert not (tmp_path / "results").exists()
