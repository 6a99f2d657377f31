"""Export to ONNX, with the offset warp as the standard node DeformConv of opset 19.

    translation_table   for `torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())`
    export_onnx         a file of a `MotionRNN`, `MotionGRU` or `MotionGRULayer`, with any batch size

Both need the packages onnx and onnxscript. On a CPU, onnxruntime has the node from version 1.25 on.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backends.onnx_warp import offset_warp
from .files import write_atomically
from .layers import MotionGRU
from .layers.arguments import check_whole
from .layers.motion import MotionState
from .models import MotionRNN
from .models.frame_sizes import size_divisor
from .name import PACKAGE

# The first opset with DeformConv, and the one that torch 2.13 writes by default.
FIRST_OPSET, OPSET = 19, 20


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return translations of the package's ops for `torch.onnx.export`, as its `custom_translation_table`.

    The offset warp becomes DeformConv and the few nodes that lay out its inputs. All other ops become the plain nodes
    of their formulas, with or without the table.

    Raises:
        ModuleNotFoundError: the package onnxscript is not installed.

    Examples:
        >>> table = translation_table()
        >>> torch.onnx.export(model, (frames, 2), "model.onnx", dynamo=True, custom_translation_table=table)
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an export to ONNX needs the packages onnx and onnxscript: pip install onnx onnxscript"
        ) from error
    table: dict[Callable[..., Any], Callable[..., Any]] = {offset_warp: _deform_conv}
    # The kernels' op, for modules that call it by name, where the native library defines it.
    native = getattr(torch.ops, PACKAGE)
    if hasattr(native, "offset_warp"):
        table[native.offset_warp.default] = _deform_conv
    return table


def _deform_conv(x: Any, offset: Any, mask_logits: Any, weight: Any) -> Any:
    """Build the nodes of `ops.offset_warp` from ONNX values of its arguments; return the value of its result."""
    from onnxscript import evaluator, opset19

    # Any: onnxscript annotates its operators with type variables that say nothing of these values.
    op: Any = opset19
    written = getattr(evaluator.default(), "opset", op).version
    if written < FIRST_OPSET:
        raise ValueError(
            f"opset_version is {written}; it should be {FIRST_OPSET} or more, which has DeformConv"
        )
    k = int(weight.shape[2])
    taps, features = k * k, x.dtype
    if features != offset.dtype:  # half precision: the warp computes in float32
        x, mask_logits, weight = (op.Cast(value, to=offset.dtype) for value in (x, mask_logits, weight))

    # The node leaves open what a nan offset samples. Ours give nan, which the mask carries to the sum.
    unknown = op.IsNaN(offset)
    unknown_row, unknown_col = op.Split(unknown, axis=1, num_outputs=2)
    nan = op.Cast(op.Constant(value_float=math.nan), to=offset.dtype)
    mask = op.Where(op.Or(unknown_row, unknown_col), nan, op.Sigmoid(mask_logits))
    # The node's offsets are pairs (row, column), tap by tap; ours are all rows, then all columns.
    pairs = [axis * taps + tap for tap in range(taps) for axis in (0, 1)]
    ordered = op.Gather(op.Where(unknown, 0.0, offset), op.Constant(value_ints=pairs), axis=1)
    out = op.DeformConv(x, weight, ordered, None, mask, kernel_shape=[k, k], pads=[k // 2] * 4)
    return out if features == offset.dtype else op.Cast(out, to=features)


def export_onnx(
    model: MotionRNN | MotionGRU,
    frames: Tensor,
    path: str | os.PathLike[str],
    n_future: int | None = None,
    *,
    any_size: bool = False,
    opset: int = OPSET,
) -> None:
    """Write a model as an ONNX file that holds its weights and takes any batch size.

    The file computes what `model.predict(frames, n_future)` does, from the input "frames" to the output "prediction".
    Of a MotionGRU or MotionGRULayer it computes one call, with the motion going in and out: the inputs are "hidden",
    "offset" and "trend", the outputs "moved", "next_offset" and "next_trend". Motion of zeros begins a sequence.

    Args:
        model: the model, on any device.
        frames: an example of the input, (B, T, C, H, W) of a MotionRNN, or `hidden` of a MotionGRU or MotionGRULayer.
            The file is for its dtype, and for its sizes other than B. The values are not used.
        path: the file to write. If the export fails, an older file of that name stays as it is.
        n_future: the number of frames to predict, of a MotionRNN.
        any_size: whether height and width may be any that the model takes, too. Models with parameters per position
            have one size.
        opset: the version of ONNX's operators, at least 19.

    Raises:
        ModuleNotFoundError: the packages onnx and onnxscript are not installed.
        TypeError: model is another module, or n_future is missing, or given for a MotionGRU.
        ValueError: opset is below 19, n_future below 1, or the model takes no such frames, no other size, or starts
            from random states.
        OSError: the file cannot be written.

    Examples:
        >>> export_onnx(model, frames, "model.onnx", n_future=10)
    """
    table = translation_table()
    check_whole("opset", opset, at_least=FIRST_OPSET)
    export: dict[str, Any]
    if isinstance(model, MotionRNN):
        export = _prediction(model, frames, n_future, any_size)
    elif isinstance(model, MotionGRU):
        if n_future is not None:
            raise TypeError(f"n_future is {n_future}; it should be left out for a {type(model).__name__}")
        export = _motion(model, frames, any_size)
    else:
        raise TypeError(
            f"model is a {type(model).__name__}; it should be a MotionRNN, MotionGRU or MotionGRULayer; give "
            "torch.onnx.export the table of motionrnn_ext.onnx.translation_table() for another module"
        )
    with write_atomically(path, parents=False) as part, warnings.catch_warnings():
        # All inputs share the batch size, which the exporter reports for every one.
        warnings.filterwarnings("ignore", "# The axis name: ")
        torch.onnx.export(
            **export,
            f=part,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            external_data=False,
            custom_translation_table=table,
        )


class _Prediction(nn.Module):
    """`MotionRNN.predict` as a forward, which torch.export takes."""

    def __init__(self, model: MotionRNN, n_future: int) -> None:
        super().__init__()
        self.model, self.n_future = model, n_future
        # The mode is the model's, because the exporter warns where a module is in training mode.
        self.training = model.training

    def forward(self, frames: Tensor) -> Tensor:
        return self.model.predict(frames, self.n_future)


class _Motion(nn.Module):
    """A MotionGRU that takes and returns the motion as two tensors."""

    def __init__(self, model: MotionGRU) -> None:
        super().__init__()
        self.model = model
        # The mode is the model's, because the exporter warns where a module is in training mode.
        self.training = model.training

    def forward(self, hidden: Tensor, offset: Tensor, trend: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            moved, motion = self.model(hidden, MotionState(offset, trend))
        return moved, *motion


def _prediction(model: MotionRNN, frames: Tensor, n_future: int | None, any_size: bool) -> dict[str, Any]:
    """Return the arguments of torch.onnx.export for the prediction of a MotionRNN."""
    if n_future is None:
        raise TypeError("n_future is missing; it should be the number of frames to predict")
    if model.options.init_state != "zeros":
        raise ValueError(
            f"init_state is {model.options.init_state!r}; it should be 'zeros', because a file has no random start: "
            "load_checkpoint(..., init_state='zeros')"
        )
    if any_size and model.image_size is not None:
        raise ValueError(
            f"any_size is True; it should be False, because the model has parameters for frames of "
            f"{model.image_size[0]}x{model.image_size[1]}"
        )
    with torch.no_grad():  # the model's own checks, before the exporter hides them in a report
        model.predict(frames[:1], n_future)
    unit = size_divisor(model)
    return {
        "model": _Prediction(model, n_future),
        "args": (_example(frames, unit, any_size),),
        "dynamic_shapes": (_sizes(unit, 5, any_size),),
        "input_names": ["frames"],
        "output_names": ["prediction"],
    }


def _motion(model: MotionGRU, hidden: Tensor, any_size: bool) -> dict[str, Any]:
    """Return the arguments of torch.onnx.export for a step of a MotionGRU, or for a sequence of a MotionGRULayer."""
    with torch.no_grad():  # the layer's own checks, before the exporter hides them in a report
        model(hidden[:1])
    example = _example(hidden, 2, any_size)
    dims = _sizes(2, example.dim(), any_size)
    # With a depth axis every slice has its own motion, so that the first size of the motion is B*D.
    depth = example.shape[-3] if model.depth else 1
    batch, height, width = _open_sizes()
    motion = {0: depth * batch, **({2: height, 3: width} if any_size else {})}
    return {
        "model": _Motion(model),
        "args": (example, *model.initial_state(example)),
        "dynamic_shapes": (dims, motion, motion),
        "input_names": ["hidden", "offset", "trend"],
        "output_names": ["moved", "next_offset", "next_trend"],
    }


def _sizes(unit: int, rank: int, any_size: bool) -> dict[int, Any]:
    """Return the sizes that a file leaves open: B and, with `any_size`, height and width, which are multiples."""
    batch, height, width = _open_sizes()
    return {0: batch, **({rank - 2: unit * height, rank - 1: unit * width} if any_size else {})}


def _open_sizes() -> tuple[Any, Any, Any]:
    """Return symbols of the open sizes: B, and height and width in the steps that a model takes them in."""
    # The import loads sympy, which `import motionrnn_ext` should not.
    from torch.export import Dim

    return Dim("batch"), Dim("half_height"), Dim("half_width")


def _example(tensor: Tensor, unit: int, any_size: bool) -> Tensor:
    """Return zeros like the tensor, with at least 2 of each size that a file leaves open.

    The exporter takes a size of 1 in an example for a constant.
    """
    batch, *others, height, width = tensor.shape
    if any_size:
        height, width = max(height, 2 * unit), max(width, 2 * unit)
    return tensor.new_zeros(max(batch, 2), *others, height, width)
