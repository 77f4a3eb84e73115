"""Precision and memory of devices; those of a GPU with its functions replaced."""

import pytest
import torch

from bench.errors import BenchError
from bench.utils.device import check_precision, exact_arithmetic, out_of_memory, timed_convolutions


@pytest.fixture
def settings():
    """The three settings of TF32, set back after the test."""
    found = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [setting.fp32_precision for setting in found]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield found
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for setting, value in zip(found, before, strict=True):
        setting.fp32_precision = value


def test_exact_arithmetic_switches_tf32_off(settings):
    with exact_arithmetic():
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_exact_arithmetic_after_others_set_single_precisions(settings):
    """Reading `allow_tf32` raises then."""
    settings[0].fp32_precision, settings[1].fp32_precision, settings[2].fp32_precision = "tf32", "ieee", "tf32"
    with pytest.raises(RuntimeError):
        torch.backends.cudnn.allow_tf32  # noqa: B018
    with exact_arithmetic():
        assert [setting.fp32_precision for setting in settings] == ["ieee"] * 3
    assert [setting.fp32_precision for setting in settings] == ["tf32", "ieee", "tf32"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_exhausted_memory_is_recognised(error, expected):
    assert out_of_memory(error) == expected


def test_bfloat16_is_asked_of_the_named_device(monkeypatch):
    capabilities = {"cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[str(device)])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card of {device}")
    check_precision("bf16", torch.device("cuda:0"))
    check_precision("fp32", torch.device("cuda:1"))
    with pytest.raises(BenchError, match="the card of cuda:1 has no bfloat16; set 'precision: fp32'"):
        check_precision("bf16", torch.device("cuda:1"))


@pytest.mark.parametrize(
    ("device", "deterministic", "timed"), [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)]
)
def test_kernels_are_timed_on_a_gpu_unless_deterministic_ones_are_wanted(monkeypatch, device, deterministic, timed):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not timed)
    with timed_convolutions(torch.device(device)):
        assert torch.backends.cudnn.benchmark is timed
    assert torch.backends.cudnn.benchmark is not timed
