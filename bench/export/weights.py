"""Trained networks as files: state dicts, TorchScript, ONNX, and folders for a model hub.

What is written is read back, and its logits on test images are compared with the network's, before it gets its name.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.data.batches import to_float
from bench.errors import BenchError
from bench.export.formats import WeightsFormat
from bench.export.hub import write_hub_folder
from bench.export.trained import TrainedNetwork, trained_network
from bench.models.description import load_hub_folder
from bench.models.state_dict import read_plain

IMAGES = 256
"""Test images on which logits are compared: the first ones."""

BATCH = 100
"""Images in a batch of them; the last batch is smaller, so that a fixed size of the batch is noticed."""

TOLERANCE = 1e-4
"""Largest difference of a logit under TorchScript and ONNX, whose arithmetic is ordered in other ways."""

INSTALL = "pip install 'robust-overfitting-bench[onnx]'"

Logits = Callable[[Tensor], Tensor]
"""From images, float [n, channels, height, width] in [0, 1], to logits [n, classes]."""


@dataclass(frozen=True)
class Export:
    """What was written, the number of test images compared, and the largest difference of a logit on them."""

    run: str
    checkpoint: str
    format: WeightsFormat
    path: Path
    images: int
    difference: float


@dataclass(frozen=True)
class Format:
    """How to write a network to a path and to read it back; `tolerance`: of its logits."""

    write: Callable[[TrainedNetwork, Path], None]
    read: Callable[[TrainedNetwork, Path], Logits]
    tolerance: float


def export_weights(
    run: str | Path,
    format: WeightsFormat,
    output: Path,
    *,
    checkpoint: str | None = None,
    results: Path = Path("results"),
    data: Path | None = None,
) -> Export:
    """Write the network of a run, which takes images in [0, 1] and normalises them itself, to the new path `output`.

    Args:
        run, checkpoint, results: as in `trained_network`.
        format: a file, or for HUB a folder.
        output: must not exist.
        data: root folder of the datasets, for the test images.

    Raises:
        BenchError: as `trained_network`; `output` exists or cannot be written; a package or the test images are
            missing; the format does not take the network, or gives other logits. Nothing is left.
    """
    check_new(output)
    if format is WeightsFormat.ONNX and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise BenchError(f"--format onnx needs packages that are not installed: {INSTALL}")
    trained = trained_network(run, checkpoint, results)
    images = test_images(trained, data)
    difference = write_new(trained, _FORMATS[format], output, images, f"--format {format}")
    return Export(trained.folder.path.name, trained.checkpoint, format, output, len(images), difference)


def check_new(path: Path) -> None:
    """Raise BenchError if there is something at `path`."""
    if os.path.lexists(path):
        raise BenchError(f"{path} exists; choose another path, or remove it")


def test_images(trained: TrainedNetwork, data: Path | None) -> Tensor:
    """Return the first test images of a run's dataset: float [n, channels, height, width] in [0, 1]."""
    test = trained.dataset.splits(data).test
    return torch.cat([to_float(pixels) for pixels in test.read([torch.arange(min(IMAGES, len(test)))])])


def write_new(trained: TrainedNetwork, how: Format, output: Path, images: Tensor, what: str) -> float:
    """Write a network to a new path, and return the largest difference of a logit of what was read back.

    Raises:
        BenchError: `output` exists or cannot be written; `what` does not take the network, or gives other logits.
            Nothing is left.
    """
    check_new(output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        difference = _write_and_compare(trained, how, temporary, images, what)
        temporary.rename(output)
    except OSError as error:
        raise BenchError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
    return difference


def _write_and_compare(trained: TrainedNetwork, how: Format, path: Path, images: Tensor, what: str) -> float:
    """Write a network, read it back and return the largest difference of a logit.

    Raises:
        BenchError: this fails, or the difference is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the future of TorchScript, and on what a trace may miss
            how.write(trained, path)
            read = how.read(trained, path)
            with torch.no_grad():
                difference = max(float((read(x) - trained.network(x)).abs().max()) for x in torch.split(images, BATCH))
    except (BenchError, OSError):
        raise
    except Exception as error:  # exporters raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"{what} does not support the network of {trained.folder.path.name}: {reason:.200}") from error
    if not difference <= how.tolerance:  # also if it is no number
        raise BenchError(
            f"{what} does not support the network of {trained.folder.path.name}: read back, its logits differ by up to "
            f"{difference:.2g} on {len(images)} test images"
        )
    return difference


# --- state dicts -----------------------------------------------------------------------------------------------------


def _write_torch(trained: TrainedNetwork, path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch says in its own words that it cannot be written
        torch.save(trained.tensors(), file)


def _read_state(trained: TrainedNetwork, path: Path) -> Logits:
    network = copy.deepcopy(trained.network)
    network.load_state_dict(read_plain(path))  # type: ignore[arg-type]
    return network


def _read_hub(_trained: TrainedNetwork, path: Path) -> Logits:
    return load_hub_folder(path).to(memory_format=torch.channels_last)


# --- programs --------------------------------------------------------------------------------------------------------


def _example(trained: TrainedNetwork) -> Tensor:
    return torch.zeros(2, *trained.dataset.shape)  # exporters take a size of 1 for a constant


def _write_torchscript(trained: TrainedNetwork, path: Path) -> None:
    script = torch.jit.trace(trained.network, _example(trained), check_trace=False)  # type: ignore[no-untyped-call]
    with path.open("wb") as file:
        torch.jit.save(script, file)


def _read_torchscript(_trained: TrainedNetwork, path: Path) -> Logits:
    script: Logits = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return script


def _write_onnx(trained: TrainedNetwork, path: Path) -> None:
    torch.onnx.export(
        trained.network,
        (_example(trained),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,  # one file
        verbose=False,
    )


def _read_onnx(_trained: TrainedNetwork, path: Path) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


_FORMATS = {
    WeightsFormat.SAFETENSORS: Format(TrainedNetwork.write_safetensors, _read_state, 0),
    WeightsFormat.TORCH: Format(_write_torch, _read_state, 0),
    WeightsFormat.TORCHSCRIPT: Format(_write_torchscript, _read_torchscript, TOLERANCE),
    WeightsFormat.ONNX: Format(_write_onnx, _read_onnx, TOLERANCE),
    WeightsFormat.HUB: Format(write_hub_folder, _read_hub, 0),
}
