"""The pointwise ops of the recurrent cells around the MotionGRU: memory, output gate with motion highway, blend."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from . import _arguments as arguments


def memory_update(
    gates_x: Tensor, gates_h: Tensor, memory: Tensor, forget_bias: float | Tensor = 1.0
) -> Tensor:
    """Compute the LSTM's new memory from its gates, which are the sum of two packed addends.

        C' = s(f_x + f_h + b) . C + s(i_x + i_h) . tanh(g_x + g_h)

    Args:
        gates_x: (i, f, g) packed along the channels, (B, 3C, *S), features.
        gates_h: the other addend, in the form of gates_x.
        memory: C_{t-1}, (B, C, *S), in the features' dtype, or float32 with half-precision features.
        forget_bias: b. A tensor of one element that asks for a gradient gets one, by PyTorch's own operations, with the
            backends "auto" and "reference".

    Returns:
        (B, C, *S) in the dtype of memory.

    Source: ConvLSTM (b = 0) and both memories of PredRNN's ST-LSTM (b = 1).
    """
    op = "memory_update"
    dtype = arguments.autocast_dtype(gates_x)
    if dtype is not None:
        gates_x, gates_h = arguments.cast([gates_x, gates_h], dtype)
    arguments.check_once(_check_memory_update, gates_x, gates_h, memory)
    bias = arguments.number(op, "forget_bias", forget_bias, gates_x)
    dispatch = backends.dispatch_formulas if isinstance(bias, Tensor) else backends.dispatch
    return dispatch(op, gates_x, gates_h, memory, bias)


def highway_output(output_logits: Tensor, content: Tensor, highway: Tensor | None = None) -> Tensor:
    """Compute a cell's hidden state: its output gate, and the motion highway past that gate.

        H = s(o) . tanh(content) + (1 - s(o)) . highway          (the second term only with a highway)

    Args:
        output_logits: o, (B, C, *S), features.
        content: (B, C, *S), features.
        highway: the previous layer's hidden state, (B, C, *S), features, or None.

    Returns:
        (B, C, *S) in the features' dtype.

    Source: MotionRNN, the Motion Highway H_t^{l+1} += (1 - o_t^{l+1}) . H_t^l.
    """
    op = "highway_output"
    dtype = arguments.autocast_dtype(output_logits)
    if dtype is not None:
        output_logits, content, highway = arguments.cast([output_logits, content, highway], dtype)
    arguments.check_once(_check_highway_output, output_logits, content, highway)
    return backends.dispatch(op, output_logits, content, highway)


def gated_blend(gate_logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute s(g) . a + (1 - s(g)) . b.

    Args:
        gate_logits: g, (B, C, *S), features.
        a, b: (B, C, *S), features.

    Returns:
        (B, C, *S) in the features' dtype.

    Source: MotionRNN, the MotionGRU's output gate X = g . H + (1 - g) . Dec(H').
    """
    op = "gated_blend"
    dtype = arguments.autocast_dtype(gate_logits)
    if dtype is not None:
        gate_logits, a, b = arguments.cast([gate_logits, a, b], dtype)
    arguments.check_once(_check_gated_blend, gate_logits, a, b)
    return backends.dispatch(op, gate_logits, a, b)


def _check_memory_update(gates_x: Tensor, gates_h: Tensor, memory: Tensor) -> None:
    op = "memory_update"
    arguments.check_features(op, gates_x=gates_x, gates_h=gates_h)
    arguments.check_state(op, "gates_x", gates_x, or_feature_dtype=True, memory=memory)
    arguments.check_rank(op, "gates_x", gates_x, 2, "(B, 3C, *S)", at_least=True)
    if gates_x.shape[1] % 3:
        raise ValueError(
            f"{op}: gates_x has {gates_x.shape[1]} channels; it should have 3C, packed (i, f, g)"
        )
    arguments.check_shape(op, "gates_h", gates_h, gates_x.shape, "the shape of gates_x")
    wanted = (gates_x.shape[0], gates_x.shape[1] // 3, *gates_x.shape[2:])
    arguments.check_shape(op, "memory", memory, wanted, "(B, C, *S) of gates_x's (B, 3C, *S)")


def _check_highway_output(output_logits: Tensor, content: Tensor, highway: Tensor | None) -> None:
    op = "highway_output"
    optional = {} if highway is None else {"highway": highway}
    arguments.check_features(op, output_logits=output_logits, content=content, **optional)
    arguments.check_rank(op, "output_logits", output_logits, 2, "(B, C, *S)", at_least=True)
    for name, tensor in {"content": content, **optional}.items():
        arguments.check_shape(op, name, tensor, output_logits.shape, "the shape of output_logits")


def _check_gated_blend(gate_logits: Tensor, a: Tensor, b: Tensor) -> None:
    op = "gated_blend"
    arguments.check_features(op, gate_logits=gate_logits, a=a, b=b)
    arguments.check_rank(op, "gate_logits", gate_logits, 2, "(B, C, *S)", at_least=True)
    arguments.check_shape(op, "a", a, gate_logits.shape, "the shape of gate_logits")
    arguments.check_shape(op, "b", b, gate_logits.shape, "the shape of gate_logits")
