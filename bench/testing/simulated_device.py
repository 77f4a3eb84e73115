"""A simulated GPU: tensors that are said to be on another device than the CPU, which computes them.

Code that was only ever run on a CPU can mix tensors, generators and indices of two devices without an error. Here it
fails as on a GPU, and what it computes has the bits of the CPU. Not simulated: streams, kernels and autocast, so only
fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

SIMULATED = torch.device("meta")
"""The name of the device. Every build of torch has autograd for `meta`, and for other absent devices none has it."""

FUSED = "_get_fused_kernels_supported_devices"  # torch's function

COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""Operations that move indices from the CPU to the device by themselves."""


class DeviceTensor(Tensor):
    """A tensor on the simulated device; `host` is the one on the CPU that holds its values."""

    host: Tensor
    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        shown = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=SIMULATED,
        )
        shown.host = host
        return shown

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.host})"

    def tolist(self) -> Any:
        """Return the values, as of any tensor."""
        return self.host.tolist()

    def numpy(self, *, force: bool = False) -> NoReturn:
        """Refuse, as a tensor on a GPU does."""
        raise TypeError(
            "can't convert a tensor on a device to numpy. Use Tensor.cpu() to copy it to host memory first."
        )


class DeviceGenerator(torch.Generator):
    """A generator on the CPU that says it is on `device`."""

    _device: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> DeviceGenerator:
        created = super().__new__(cls)
        created._device = torch.device(device)
        return created

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that the generator belongs to."""
        return self._device


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """Yield the device; in the block, torch makes and computes tensors and generators on it."""
    with ExitStack() as stack:
        fused = [*vars(optimizer)[FUSED](), SIMULATED.type]
        stack.enter_context(patch.object(optimizer, FUSED, lambda: fused))
        stack.enter_context(patch.object(torch, "autocast", _autocast))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", _is_autocast_enabled))
        stack.enter_context(patch.object(torch, "Generator", DeviceGenerator))
        stack.enter_context(_Calls())
        stack.enter_context(_Operations())  # type: ignore[no-untyped-call]
        yield SIMULATED


def host_of(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU that holds the values of `tensor`."""
    return tensor.host if isinstance(tensor, DeviceTensor) else tensor


def crosses_devices(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation moves values between the CPU and the device."""
    if func not in COPIES and func not in INDEXED:
        return False
    on_device = {isinstance(tensor, DeviceTensor) for tensor in _tensors(args)}
    if kwargs.get("device") is not None:
        on_device.add(torch.device(kwargs["device"]) == SIMULATED)
    return len(on_device) == 2


_autocast_of_torch, _is_autocast_enabled_of_torch = torch.autocast, torch.is_autocast_enabled


def _autocast(device_type: str, dtype: torch.dtype | None = None, **settings: Any) -> torch.autocast:
    if device_type == SIMULATED.type:
        if settings.get("enabled", True):
            raise RuntimeError("the simulated device has no autocast")
        device_type = "cpu"
    return _autocast_of_torch(device_type, dtype, **settings)


def _is_autocast_enabled(device_type: str = "cpu") -> bool:
    return device_type != SIMULATED.type and _is_autocast_enabled_of_torch(device_type)


class _Calls(TorchFunctionMode):
    """Checks the devices of generators, which operations no longer show, and makes tensors of Python values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in {torch.tensor, torch.as_tensor} and device is not None and torch.device(device) == SIMULATED:
            return func(*args, **{**kwargs, "device": "cpu"}).to(SIMULATED)
        generator = kwargs.get("generator")
        if isinstance(generator, DeviceGenerator):
            computed_on = torch.device(device or next((tensor.device for tensor in _tensors(args)), "cpu"))
            if generator.device.type != computed_on.type:
                raise RuntimeError(f"{func.__name__}: a generator on '{generator.device}', values on '{computed_on}'")
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes the operations that create tensors, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; the result is on the device of the operation.

    Raises:
        RuntimeError: the tensors are on two devices, and torch would not move one of them.
    """
    tensors = list(_tensors((args, *kwargs.values())))
    on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    if on_device and func not in COPIES and not (func in INDEXED and isinstance(args[0], DeviceTensor)):
        for tensor in tensors:
            number = not tensor.dim() and torch.Tag.pointwise in func.tags
            if not isinstance(tensor, DeviceTensor) and not number:
                raise RuntimeError(
                    f"{func}: expected all tensors to be on the same device, but one of shape {list(tensor.shape)} is "
                    "on the CPU"
                )
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], DeviceTensor)
    hosts, options = _mapped(host_of, args), {key: _mapped(host_of, value) for key, value in kwargs.items()}
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]) == SIMULATED
        options |= {"device": "cpu", **({"pin_memory": False} if "pin_memory" in options else {})}
    result = func(*hosts, **options)
    if not on_device:
        return result
    result = _mapped(DeviceTensor, result)
    if _returns_an_argument(func):
        return return_and_correct_aliasing(func, args, kwargs, result)  # type: ignore[no-untyped-call]
    return result


@cache
def _returns_an_argument(func: Any) -> bool:
    """Return whether a result of an operation is, or is a view of, an argument."""
    return any(value.alias_info is not None for value in func._schema.returns)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation. (torch's own function for nested values takes long.)"""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return arguments or results with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(change, item) for item in value) if isinstance(value, list | tuple) else value
