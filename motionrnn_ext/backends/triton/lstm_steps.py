"""The kernels of the LSTM cells' joints: what a step computes between two of its convolutions, in one launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import kernel_op
from .pointwise import elements, launch_pointwise, load, store
from .scalar import d_sigmoid, d_tanh, sigmoid, tanh


@triton.jit
def lstm_memory(i, f, g, memory, forget_bias):
    """C' = s(f + b) C + s(i) tanh(g)"""
    return sigmoid(f + forget_bias) * memory + sigmoid(i) * tanh(g)


@triton.jit
def lstm_memory_backward(grad, i, f, g, memory, forget_bias):
    """Return the gradients by i, f, g and C, from that of C'."""
    i, f, g = sigmoid(i), sigmoid(f + forget_bias), tanh(g)
    return grad * g * d_sigmoid(i), grad * memory * d_sigmoid(f), grad * i * d_tanh(g), grad * f


@triton.jit
def gate(tensor, stride, row, at, inside, inner, WHICH: tl.constexpr):
    """Return one map of a tensor that holds several."""
    return load(tensor, stride, row, at + WHICH * inner, inside)


@triton.jit
def summed_gate(
    x, h, x_stride, h_stride, row, at, inside, inner, logits, STREAMS: tl.constexpr, KEEP: tl.constexpr,
    OF_X: tl.constexpr, OF_H: tl.constexpr,
):  # fmt: skip
    """Return the sum of a map of x and one of h, and store it among the kept logits, where x has it."""
    total = gate(x, x_stride, row, at, inside, inner, OF_X) + gate(h, h_stride, row, at, inside, inner, OF_H)
    if KEEP:
        store(logits, STREAMS * inner, row, at + OF_X * inner, inside, total)
    return total


@triton.jit
def st_lstm_update_kernel(
    gates_x, gates_h, gates_m, cell, memory, memories, new_cell, new_memory, logits,
    x_stride, h_stride, m_stride, cell_stride, memory_stride,
    rows, inner, forget_bias, KEEP: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """C' of (i, f, g) of x and h, M' of (i', f', g') of x and m"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    i = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 6, KEEP, 0, 0)
    f = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 6, KEEP, 1, 1)
    g = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 6, KEEP, 2, 2)
    c = lstm_memory(i, f, g, load(cell, cell_stride, row, at, inside), forget_bias)
    store(memories, 2 * inner, row, at, inside, c)
    store(new_cell, inner, row, at, inside, c)
    i = summed_gate(gates_x, gates_m, x_stride, m_stride, row, at, inside, inner, logits, 6, KEEP, 3, 0)
    f = summed_gate(gates_x, gates_m, x_stride, m_stride, row, at, inside, inner, logits, 6, KEEP, 4, 1)
    g = summed_gate(gates_x, gates_m, x_stride, m_stride, row, at, inside, inner, logits, 6, KEEP, 5, 2)
    m = lstm_memory(i, f, g, load(memory, memory_stride, row, at, inside), forget_bias)
    store(memories, 2 * inner, row, at + inner, inside, m)
    store(new_memory, inner, row, at, inside, m)


@triton.jit
def st_lstm_update_backward_kernel(
    grad_memories, grad_content, grad_cell, grad_memory, grad_output, logits, cell, memory,
    grad_x, grad_h, grad_m, grad_old_cell, grad_old_memory,
    memories_stride, content_stride, grad_cell_stride, grad_memory_stride, output_stride, logits_stride,
    cell_stride, memory_stride,
    rows, inner, forget_bias, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gates' addends have the same gradient, which is written for each of their convolutions, o's behind it."""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    grad = load(grad_memories, memories_stride, row, at, inside) + load(
        grad_content, content_stride, row, at, inside
    )
    grad_i, grad_f, grad_g, grad_c = lstm_memory_backward(
        grad + load(grad_cell, grad_cell_stride, row, at, inside),
        gate(logits, logits_stride, row, at, inside, inner, 0),
        gate(logits, logits_stride, row, at, inside, inner, 1),
        gate(logits, logits_stride, row, at, inside, inner, 2),
        load(cell, cell_stride, row, at, inside),
        forget_bias,
    )
    store(grad_x, 7 * inner, row, at, inside, grad_i)
    store(grad_x, 7 * inner, row, at + inner, inside, grad_f)
    store(grad_x, 7 * inner, row, at + 2 * inner, inside, grad_g)
    store(grad_h, 4 * inner, row, at, inside, grad_i)
    store(grad_h, 4 * inner, row, at + inner, inside, grad_f)
    store(grad_h, 4 * inner, row, at + 2 * inner, inside, grad_g)
    store(grad_old_cell, inner, row, at, inside, grad_c)
    grad = gate(grad_memories, memories_stride, row, at, inside, inner, 1) + gate(
        grad_content, content_stride, row, at, inside, inner, 1
    )
    grad_i, grad_f, grad_g, grad_c = lstm_memory_backward(
        grad + load(grad_memory, grad_memory_stride, row, at, inside),
        gate(logits, logits_stride, row, at, inside, inner, 3),
        gate(logits, logits_stride, row, at, inside, inner, 4),
        gate(logits, logits_stride, row, at, inside, inner, 5),
        load(memory, memory_stride, row, at, inside),
        forget_bias,
    )
    store(grad_x, 7 * inner, row, at + 3 * inner, inside, grad_i)
    store(grad_x, 7 * inner, row, at + 4 * inner, inside, grad_f)
    store(grad_x, 7 * inner, row, at + 5 * inner, inside, grad_g)
    store(grad_m, 3 * inner, row, at, inside, grad_i)
    store(grad_m, 3 * inner, row, at + inner, inside, grad_f)
    store(grad_m, 3 * inner, row, at + 2 * inner, inside, grad_g)
    store(grad_old_memory, inner, row, at, inside, grad_c)
    output = load(grad_output, output_stride, row, at, inside)
    store(grad_x, 7 * inner, row, at + 6 * inner, inside, output)
    store(grad_h, 4 * inner, row, at + 3 * inner, inside, output)


@triton.jit
def summed_output_kernel(
    output_o, output_x, output_h, content, highway, hidden, output,
    o_stride, x_stride, h_stride, content_stride, highway_stride,
    rows, inner, HIGHWAY: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """H' = s(o) tanh(content) + (1 - s(o)) highway of the sum o of three addends; without a highway the first term"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    o = load(output_o, o_stride, row, at, inside) + load(output_x, x_stride, row, at, inside)
    o += load(output_h, h_stride, row, at, inside)
    store(output, inner, row, at, inside, o)
    opened = sigmoid(o)
    out = opened * tanh(load(content, content_stride, row, at, inside))
    if HIGHWAY:
        out += (1 - opened) * load(highway, highway_stride, row, at, inside)
    store(hidden, inner, row, at, inside, out)


@triton.jit
def conv_lstm_update_kernel(
    gates_x, gates_h, cell, highway, hidden, new_cell, logits, x_stride, h_stride, cell_stride, highway_stride,
    rows, inner, forget_bias, HIGHWAY: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """C' of (i, f, g), and s(o) tanh(C') + (1 - s(o)) highway; without a highway the first term"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    i = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 4, KEEP, 0, 0)
    f = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 4, KEEP, 1, 1)
    g = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 4, KEEP, 2, 2)
    o = summed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, logits, 4, KEEP, 3, 3)
    c = lstm_memory(i, f, g, load(cell, cell_stride, row, at, inside), forget_bias)
    store(new_cell, inner, row, at, inside, c)
    opened = sigmoid(o)
    out = opened * tanh(c)
    if HIGHWAY:
        out += (1 - opened) * load(highway, highway_stride, row, at, inside)
    store(hidden, inner, row, at, inside, out)


@triton.jit
def conv_lstm_update_backward_kernel(
    grad_hidden, grad_cell, logits, cell, new_cell, highway, grad_gates, grad_old_cell, grad_highway,
    hidden_stride, grad_cell_stride, logits_stride, cell_stride, new_cell_stride, highway_stride,
    rows, inner, forget_bias, HIGHWAY: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The two addends of the gates have the same gradient, which is written once."""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    grad = load(grad_hidden, hidden_stride, row, at, inside)
    opened = sigmoid(gate(logits, logits_stride, row, at, inside, inner, 3))
    squashed = tanh(load(new_cell, new_cell_stride, row, at, inside))
    grad_i, grad_f, grad_g, grad_c = lstm_memory_backward(
        load(grad_cell, grad_cell_stride, row, at, inside) + grad * opened * d_tanh(squashed),
        gate(logits, logits_stride, row, at, inside, inner, 0),
        gate(logits, logits_stride, row, at, inside, inner, 1),
        gate(logits, logits_stride, row, at, inside, inner, 2),
        load(cell, cell_stride, row, at, inside),
        forget_bias,
    )
    store(grad_gates, 4 * inner, row, at, inside, grad_i)
    store(grad_gates, 4 * inner, row, at + inner, inside, grad_f)
    store(grad_gates, 4 * inner, row, at + 2 * inner, inside, grad_g)
    store(grad_old_cell, inner, row, at, inside, grad_c)
    if HIGHWAY:
        squashed -= load(highway, highway_stride, row, at, inside)
        store(grad_highway, inner, row, at, inside, grad * (1 - opened))
    store(grad_gates, 4 * inner, row, at + 3 * inner, inside, grad * squashed * d_sigmoid(opened))


@kernel_op
def st_lstm_update(
    gates_x: Tensor,
    gates_h: Tensor,
    gates_m: Tensor,
    cell: Tensor,
    memory: Tensor,
    forget_bias: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, state = gates_x.dtype, cell.dtype
    inputs = [gates_x, gates_h, gates_m, cell, memory]
    made = [(2, dtype), (1, state), (1, state), (6 if keep else 0, dtype)]
    results = launch_pointwise(
        st_lstm_update_kernel, inputs, made, forget_bias, channels=cell.shape[1], KEEP=keep
    )
    return results[0], results[1], results[2], results[3]


@kernel_op
def st_lstm_update_backward(
    grad_memories: Tensor, grad_content: Tensor, grad_cell: Tensor, grad_memory: Tensor, grad_output: Tensor,
    logits: Tensor, cell: Tensor, memory: Tensor, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype, state = logits.dtype, cell.dtype
    inputs = [grad_memories, grad_content, grad_cell, grad_memory, grad_output, logits, cell, memory]
    made = [(7, dtype), (4, dtype), (3, dtype), (1, state), (1, state)]
    grads = launch_pointwise(
        st_lstm_update_backward_kernel, inputs, made, forget_bias, leader=5, channels=cell.shape[1]
    )
    return grads[0], grads[1], grads[2], grads[3], grads[4]


@kernel_op
def summed_output(
    output_o: Tensor, output_x: Tensor, output_h: Tensor, content: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Where there is no highway, the kernel does not read the tensor in its place.
    inputs = [output_o, output_x, output_h, content, highway if highway is not None else content]
    made = [(1, output_o.dtype)] * 2
    results = launch_pointwise(summed_output_kernel, inputs, made, HIGHWAY=highway is not None)
    return results[0], results[1]


@kernel_op
def conv_lstm_update(
    gates_x: Tensor, gates_h: Tensor, cell: Tensor, highway: Tensor | None, forget_bias: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = gates_x.dtype
    inputs = [gates_x, gates_h, cell, highway if highway is not None else cell]
    made = [(1, dtype), (1, cell.dtype), (4 if keep else 0, dtype)]
    channels = cell.shape[1]
    results = launch_pointwise(
        conv_lstm_update_kernel,
        inputs,
        made,
        forget_bias,
        channels=channels,
        HIGHWAY=highway is not None,
        KEEP=keep,
    )
    return results[0], results[1], results[2]


@kernel_op
def conv_lstm_update_backward(
    grad_hidden: Tensor, grad_cell: Tensor, logits: Tensor, cell: Tensor, new_cell: Tensor,
    highway: Tensor | None, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = logits.dtype
    inputs = [grad_hidden, grad_cell, logits, cell, new_cell, highway if highway is not None else cell]
    made = [(4, dtype), (1, cell.dtype), (0 if highway is None else 1, dtype)]
    kernel, channels = conv_lstm_update_backward_kernel, cell.shape[1]
    grads = launch_pointwise(
        kernel, inputs, made, forget_bias, leader=2, channels=channels, HIGHWAY=highway is not None
    )
    return grads[0], grads[1], grads[2]
