"""What only an NVIDIA GPU can show: no claim of `bench speed --what gpu` fails on it."""

import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]


def test_no_claim_fails():
    words = [sys.executable, "-m", "bench", "speed", "cifar10", "--what", "gpu", "--output", "gpu-check"]
    assert subprocess.run(words, check=False).returncode == 0
