"""Checks of the ops' arguments: one device, known dtypes, matching shapes, numbers; and the casts of autocast."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.reference import state_dtype
from ..backends.torch_private import is_wrapped
from ..backends.transforms import is_transformed

FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast wants for features on this tensor's device, or None outside of autocast."""
    device = tensor.device.type if isinstance(tensor, Tensor) else ""
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def cast(tensors: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """Return arguments as autocast casts them: floating tensors in `dtype`; all else, float64 included, unchanged."""
    return [t.to(dtype) if isinstance(t, Tensor) and t.dtype in FEATURE_DTYPES[:3] else t for t in tensors]


# The checks that tensors have passed, by function, shapes, dtypes and devices.
_passed: set[tuple[Any, ...]] = set()
_MOST_PASSED = 4096


def check_once(check: Callable[..., None], *tensors: Tensor | None) -> None:
    """Call check(*tensors), unless tensors of the same shapes, dtypes and devices have passed it before.

    A check takes 5 us, as long as a small kernel; the comparison takes 1 us. The check should look at nothing else.
    """
    if torch.compiler.is_compiling():
        return check(*tensors)
    try:
        key = (check, *[None if t is None else (t.shape, t.dtype, t.device) for t in tensors])
        if key in _passed:
            return
    # An argument that is no tensor, or has symbolic sizes.
    except (AttributeError, TypeError):
        return check(*tensors)
    check(*tensors)
    if len(_passed) >= _MOST_PASSED:
        _passed.clear()
    _passed.add(key)


def check_features(op: str, **features: Tensor) -> None:
    """Raise unless all features are tensors of the same supported dtype on the same device."""
    first_name, first = next(iter(features.items()))
    for name, tensor in features.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; it should be a torch.Tensor")
        if tensor.dtype not in FEATURE_DTYPES:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}; it should be float32, bfloat16, float16 or float64"
            )
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}; it should be {first.dtype}, the dtype of {first_name}"
            )
        _check_device(op, name, tensor, first_name, first)


def check_state(
    op: str, feature_name: str, feature: Tensor, *, or_feature_dtype: bool = False, **state: Tensor
) -> None:
    """Raise unless motion state is float32, or float64 with float64 features, on the features' device.

    With `or_feature_dtype` the features' dtype is right as well.
    """
    wanted = state_dtype(feature.dtype)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; it should be a torch.Tensor")
        if tensor.dtype != wanted and not (or_feature_dtype and tensor.dtype == feature.dtype):
            also = f" or {feature.dtype}" if or_feature_dtype and wanted != feature.dtype else ""
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}; it should be {wanted}{also}, "
                f"because {feature_name} has dtype {feature.dtype}"
            )
        _check_device(op, name, tensor, feature_name, feature)


def _check_device(op: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}; it should be on {first.device}, the device of {first_name}"
        )


def check_rank(
    op: str, name: str, tensor: Tensor, rank: int, meaning: str, *, at_least: bool = False
) -> None:
    """Raise unless a tensor has this rank, or a higher one if `at_least`. `meaning` spells the shape: (B, C, H, W)."""
    if tensor.dim() != rank and not (at_least and tensor.dim() > rank):
        more = " or more" if at_least else ""
        raise ValueError(f"{op}: {name} has rank {tensor.dim()}; it should have rank {rank}{more}: {meaning}")


def check_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int], because: str) -> None:
    """Raise unless a tensor has this shape. `because` ends the message, and says where the shape comes from."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(
            f"{op}: {name} has shape {tuple(tensor.shape)}; it should be {tuple(shape)}, {because}"
        )


# ---- Numbers

# The largest bound, since motion state may be float32.
_LARGEST = torch.finfo(torch.float32).max


def number(op: str, name: str, value: Any, features: Tensor) -> float | Tensor:
    """Return an op's number in the form in which the op hands it on.

    A tensor of one element whose value can be read at once on the CPU, and which gets no gradient, becomes a float.
    Any other tensor becomes a 0-d tensor in the dtype of arithmetic, by which the formulas differentiate. Its value is
    never read, since that would wait for a device, or break a graph.
    """
    if type(value) is float and value == value:
        return value
    if not isinstance(value, Tensor):
        return real(f"{op}: {name}", value)
    _check_scalar(f"{op}: {name}", value)
    gets_gradient = value.requires_grad and torch.is_grad_enabled()
    if not gets_gradient and _is_at_hand(value):
        return real(f"{op}: {name}", value.item())
    if value.device.type != "cpu":
        _check_device(op, name, value, "the features", features)
    return value.reshape(()).to(state_dtype(features.dtype))


def _check_scalar(what: str, value: Tensor) -> None:
    if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(
            f"{what} has shape {tuple(value.shape)} and dtype {value.dtype}; it should be one real number"
        )


def _is_at_hand(value: Tensor) -> bool:
    is_plain = type(value) in (Tensor, nn.Parameter) and value.device.type == "cpu"
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return is_plain and not (is_traced or is_transformed() or is_wrapped(value))


def real(what: str, value: Any) -> float:
    """Return a number of Python or NumPy as a float. `what` names it in the message."""
    if isinstance(value, bool) or not isinstance(value, (float, int, torch.SymFloat, numbers.Real)):
        raise TypeError(f"{what} is {' '.join(repr(value).split())}; it should be a number")
    if value != value:
        raise ValueError(f"{what} is nan; it should be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} is beyond float64; it should be a number") from None


def momentum(op: str, alpha: Any, features: Tensor) -> float | Tensor:
    """Return alpha for an op. A number has to be in [0, 1]; a tensor may have learned another value."""
    if type(alpha) is float and 0 <= alpha <= 1:
        return alpha
    value = number(op, "alpha", alpha, features)
    return value if isinstance(alpha, Tensor) else unit(f"{op}: alpha", value)


def momentum_of_module(alpha: Any) -> float | Tensor:
    """Return alpha for a module: a number in [0, 1], or a tensor that is a Parameter or asks for a gradient."""
    if not isinstance(alpha, Tensor):
        return unit("alpha", alpha)
    _check_scalar("alpha", alpha)
    if _is_at_hand(alpha):
        value = unit("alpha", alpha.item())
        return alpha if alpha.requires_grad or isinstance(alpha, nn.Parameter) else value
    return alpha


def check_read(alpha: Any, is_read: bool, instead: str) -> None:
    """Raise a TypeError if alpha asks for a gradient that it would never get; `instead` says what leaves it out."""
    if isinstance(alpha, Tensor) and alpha.requires_grad and not is_read:
        raise TypeError(f"alpha asks for a gradient; it should be a number, as {instead} leaves it out")


def unit(what: str, value: Any) -> float:
    """Return a number in [0, 1] as a float."""
    value = real(what, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{what} is {value}; it should be in [0, 1]")
    return value


def bound(what: str, value: Any) -> float:
    """Return max_offset for the kernels, which is inf for None."""
    if value is None:
        return math.inf
    if type(value) is float and 0 < value <= _LARGEST:
        return value
    if isinstance(value, Tensor):
        raise TypeError(f"{what} is a Tensor; it should be a number, or None: there is no gradient of it")
    value = real(what, value)
    if not (0 < value <= _LARGEST or value == math.inf):
        raise ValueError(f"{what} is {value}; it should be above 0 and at most 3.4e38, or None")
    return value
