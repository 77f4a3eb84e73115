"""Formats of trained networks; imports nothing, so that the command line can name them."""

from enum import StrEnum


class WeightsFormat(StrEnum):
    """Formats of trained networks."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    TORCHSCRIPT = "torchscript"
    ONNX = "onnx"
    HUB = "hub"
