"""What surrounds a capture, with the functions of a GPU replaced."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from bench.utils import cuda_graphs
from bench.utils.cuda_graphs import capture_graph, host_waits


class FakeGenerator:
    """Remembers what is done to it; `capturing` as torch leaves a generator after a failed capture."""

    device = "cuda:0"

    def __init__(self, _device="cuda:0", state="drawn from"):
        self.state, self.capturing = state, False

    def get_state(self):
        return self.state

    def set_state(self, state):
        assert not self.capturing, "Offset increment outside graph capture encountered unexpectedly"
        self.state = state

    def graphsafe_get_state(self):
        return self.state, self.capturing

    def graphsafe_set_state(self, state):
        self.state, self.capturing = state


@pytest.fixture
def gpu(monkeypatch):
    """The default generator, and the pools that were ended, of a GPU whose captures fail if their body raises."""
    default, ended, registered = FakeGenerator(state="default"), [], []

    class Graph:
        def register_generator_state(self, generator):
            registered.append(generator)

        def replay(self):
            pass

    @contextmanager
    def graph(captured, *, pool, stream, capture_error_mode):
        assert (type(captured), pool, stream, capture_error_mode) == (Graph, "pool", "stream", "thread_local")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: ended.append(pool), raising=False)
    return default, ended, registered


def test_a_capture_returns_the_result_and_its_replay(gpu):
    default, ended, _ = gpu
    result, replay = capture_graph(lambda: "result", [FakeGenerator()])
    assert result == "result"
    replay()
    assert ended == []
    assert default.state == "default"


def test_graphs_in_one_pool_share_it(gpu, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "capture_on", lambda _device: capture_graph)
    capture = cuda_graphs.capture_in_one_pool(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "another")
    assert capture(lambda: "result", [])[0] == "result"  # the fake asserts the first pool
    with pytest.raises(AssertionError):
        capture_graph(lambda: None, [])


@pytest.mark.parametrize(
    "error", [RuntimeError("operation not permitted when stream is capturing"), KeyboardInterrupt()]
)
def test_after_a_failed_capture_eager_code_goes_on(gpu, error):
    default, ended, _ = gpu
    own = FakeGenerator()

    def compute():
        default.capturing = own.capturing = True
        raise error

    with pytest.raises(type(error)):
        capture_graph(compute, [own])
    assert (own.state, own.capturing) == ("drawn from", False)
    assert (default.state, default.capturing) == ("default", False)
    assert ended == [(0, "pool")]


@pytest.mark.parametrize(("version", "count"), [("2.13.1", 1), ("2.14.0", 0), ("2.6.0", 1)])
def test_generators_are_registered_where_torch_does_not_do_it_itself(gpu, monkeypatch, version, count):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    capture_graph(lambda: None, [FakeGenerator()])
    assert len(gpu[2]) == count


def test_waits_are_found_and_other_warnings_are_passed_on(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with warnings.catch_warnings(record=True, action="always") as others, host_waits(torch.device("cuda")) as waits:
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert modes == ["warn"]
    assert [str(other.message) for other in others] == ["old"]
    assert modes == ["warn", 0]
    (wait,) = waits
    assert wait.startswith(__file__)
    assert wait.endswith(": called a synchronizing CUDA operation")


def test_a_cpu_is_not_watched():
    with host_waits(torch.device("cpu")) as waits:
        torch.ones(1).item()
    assert waits == []
    assert cuda_graphs.capture_on(torch.device("cpu")) is None
    assert cuda_graphs.capture_in_one_pool(torch.device("cpu")) is None
