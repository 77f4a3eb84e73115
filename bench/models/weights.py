"""Weights from elsewhere: state dicts in safetensors or plain torch files, checked before they are used.

Nothing in such a file is executed: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import BenchError, did_you_mean
from bench.models.architecture import Network

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which training scripts put the state dict


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or a torch file, without `module.` prefixes.

    Raises:
        BenchError: no such file, or it holds anything but named tensors.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BenchError(f"weights {path}: no such file") from None
    except Exception as error:  # torch's reader raises nearly anything at a damaged file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BenchError(f"weights {path}: not a file of plain tensors: {reason[0][:200]}") from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(item, Tensor) for item in content.values())
    ):
        raise BenchError(f"weights {path}: not a state dict; it must map names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict into `network`, or into its body where the file knows no normalisation.

    Raises:
        BenchError: the file is no state dict, or keys are missing, left over, or of another shape.
    """
    state = read_state_dict(path)
    target = network
    if isinstance(network, Network) and not any(name.startswith("body.") for name in state):
        target = network.body
    own = target.state_dict()
    for name in own:
        if name not in state and not name.endswith("num_batches_tracked"):
            raise BenchError(f"weights {path}: '{name}' is missing{did_you_mean(name, state.keys() - own.keys())}")
    for name, tensor in state.items():
        if name not in own:
            raise BenchError(f"weights {path}: the network has no '{name}'")
        if tensor.shape != own[name].shape:
            raise BenchError(
                f"weights {path}: '{name}' has shape {list(tensor.shape)}, the network needs {list(own[name].shape)}"
            )
    target.load_state_dict({**own, **state})
