"""The kernels of the LSTM cells' joints: what a step computes between two of its convolutions, in one launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import kernel_op
from .pointwise import elements, launch_pointwise, load, store
from .scalar import d_sigmoid, d_tanh, index, sigmoid, tanh


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
def st_lstm_update_kernel(
    cell_gates, memory_gates, cell, memory, memories, new_cell, new_memory,
    cell_gates_stride, memory_gates_stride, cell_stride, memory_stride,
    rows, inner, forget_bias, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """C' of (i, f, g), M' of (i', f', g')"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    inner = index(inner, WIDE)
    c = lstm_memory(
        gate(cell_gates, cell_gates_stride, row, at, inside, inner, 0),
        gate(cell_gates, cell_gates_stride, row, at, inside, inner, 1),
        gate(cell_gates, cell_gates_stride, row, at, inside, inner, 2),
        load(cell, cell_stride, row, at, inside),
        forget_bias,
    )
    store(memories, 2 * inner, row, at, inside, c)
    store(new_cell, inner, row, at, inside, c)
    m = lstm_memory(
        gate(memory_gates, memory_gates_stride, row, at, inside, inner, 0),
        gate(memory_gates, memory_gates_stride, row, at, inside, inner, 1),
        gate(memory_gates, memory_gates_stride, row, at, inside, inner, 2),
        load(memory, memory_stride, row, at, inside),
        forget_bias,
    )
    store(memories, 2 * inner, row, at + inner, inside, m)
    store(new_memory, inner, row, at, inside, m)


@triton.jit
def st_lstm_update_backward_kernel(
    grad_memories, grad_content, grad_cell, grad_memory, grad_output, cell_gates, memory_gates, cell, memory,
    grad_cell_gates, grad_memory_gates, grad_old_cell, grad_old_memory,
    memories_stride, content_stride, grad_cell_stride, grad_memory_stride, output_stride,
    cell_gates_stride, memory_gates_stride, cell_stride, memory_stride,
    rows, inner, forget_bias, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of the output gate's logits is written behind those of (i, f, g)."""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    inner = index(inner, WIDE)
    grad = load(grad_memories, memories_stride, row, at, inside) + load(
        grad_content, content_stride, row, at, inside
    )
    grad_i, grad_f, grad_g, grad_c = lstm_memory_backward(
        grad + load(grad_cell, grad_cell_stride, row, at, inside),
        gate(cell_gates, cell_gates_stride, row, at, inside, inner, 0),
        gate(cell_gates, cell_gates_stride, row, at, inside, inner, 1),
        gate(cell_gates, cell_gates_stride, row, at, inside, inner, 2),
        load(cell, cell_stride, row, at, inside),
        forget_bias,
    )
    store(grad_cell_gates, 4 * inner, row, at, inside, grad_i)
    store(grad_cell_gates, 4 * inner, row, at + inner, inside, grad_f)
    store(grad_cell_gates, 4 * inner, row, at + 2 * inner, inside, grad_g)
    store(grad_old_cell, inner, row, at, inside, grad_c)
    output = load(grad_output, output_stride, row, at, inside)
    store(grad_cell_gates, 4 * inner, row, at + 3 * inner, inside, output)
    grad = gate(grad_memories, memories_stride, row, at, inside, inner, 1) + gate(
        grad_content, content_stride, row, at, inside, inner, 1
    )
    grad_i, grad_f, grad_g, grad_c = lstm_memory_backward(
        grad + load(grad_memory, grad_memory_stride, row, at, inside),
        gate(memory_gates, memory_gates_stride, row, at, inside, inner, 0),
        gate(memory_gates, memory_gates_stride, row, at, inside, inner, 1),
        gate(memory_gates, memory_gates_stride, row, at, inside, inner, 2),
        load(memory, memory_stride, row, at, inside),
        forget_bias,
    )
    store(grad_memory_gates, 3 * inner, row, at, inside, grad_i)
    store(grad_memory_gates, 3 * inner, row, at + inner, inside, grad_f)
    store(grad_memory_gates, 3 * inner, row, at + 2 * inner, inside, grad_g)
    store(grad_old_memory, inner, row, at, inside, grad_c)


@triton.jit
def summed_output_kernel(
    output_o, output_x, content, highway, hidden, output, o_stride, x_stride, content_stride, highway_stride,
    rows, inner, HIGHWAY: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """H' = s(o) tanh(content) + (1 - s(o)) highway of the sum o of two addends; without a highway the first term"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    o = load(output_o, o_stride, row, at, inside) + load(output_x, x_stride, row, at, inside)
    store(output, inner, row, at, inside, o)
    opened = sigmoid(o)
    out = opened * tanh(load(content, content_stride, row, at, inside))
    if HIGHWAY:
        out += (1 - opened) * load(highway, highway_stride, row, at, inside)
    store(hidden, inner, row, at, inside, out)


@triton.jit
def conv_lstm_update_kernel(
    gates, cell, highway, hidden, new_cell, gates_stride, cell_stride, highway_stride,
    rows, inner, forget_bias, HIGHWAY: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """C' of (i, f, g), and s(o) tanh(C') + (1 - s(o)) highway; without a highway the first term"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    inner = index(inner, WIDE)
    c = lstm_memory(
        gate(gates, gates_stride, row, at, inside, inner, 0),
        gate(gates, gates_stride, row, at, inside, inner, 1),
        gate(gates, gates_stride, row, at, inside, inner, 2),
        load(cell, cell_stride, row, at, inside),
        forget_bias,
    )
    store(new_cell, inner, row, at, inside, c)
    opened = sigmoid(gate(gates, gates_stride, row, at, inside, inner, 3))
    out = opened * tanh(c)
    if HIGHWAY:
        out += (1 - opened) * load(highway, highway_stride, row, at, inside)
    store(hidden, inner, row, at, inside, out)


@triton.jit
def conv_lstm_update_backward_kernel(
    grad_hidden, grad_cell, gates, cell, new_cell, highway, grad_gates, grad_old_cell, grad_highway,
    hidden_stride, grad_cell_stride, gates_stride, cell_stride, new_cell_stride, highway_stride,
    rows, inner, forget_bias, HIGHWAY: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    inner = index(inner, WIDE)
    grad = load(grad_hidden, hidden_stride, row, at, inside)
    opened = sigmoid(gate(gates, gates_stride, row, at, inside, inner, 3))
    squashed = tanh(load(new_cell, new_cell_stride, row, at, inside))
    grad_i, grad_f, grad_g, grad_c = lstm_memory_backward(
        load(grad_cell, grad_cell_stride, row, at, inside) + grad * opened * d_tanh(squashed),
        gate(gates, gates_stride, row, at, inside, inner, 0),
        gate(gates, gates_stride, row, at, inside, inner, 1),
        gate(gates, gates_stride, row, at, inside, inner, 2),
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
    cell_gates: Tensor, memory_gates: Tensor, cell: Tensor, memory: Tensor, forget_bias: float
) -> tuple[Tensor, Tensor, Tensor]:
    inputs, state = [cell_gates, memory_gates, cell, memory], cell.dtype
    made = [(2, cell_gates.dtype), (1, state), (1, state)]
    results = launch_pointwise(st_lstm_update_kernel, inputs, made, forget_bias, channels=cell.shape[1])
    return results[0], results[1], results[2]


@kernel_op
def st_lstm_update_backward(
    grad_memories: Tensor, grad_content: Tensor, grad_cell: Tensor, grad_memory: Tensor, grad_output: Tensor,
    cell_gates: Tensor, memory_gates: Tensor, cell: Tensor, memory: Tensor, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype, state = cell_gates.dtype, cell.dtype
    inputs = [grad_memories, grad_content, grad_cell, grad_memory, grad_output]
    inputs += [cell_gates, memory_gates, cell, memory]
    made = [(4, dtype), (3, dtype), (1, state), (1, state)]
    grads = launch_pointwise(
        st_lstm_update_backward_kernel, inputs, made, forget_bias, leader=5, channels=cell.shape[1]
    )
    return grads[0], grads[1], grads[2], grads[3]


@kernel_op
def summed_output(
    output_o: Tensor, output_x: Tensor, content: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Where there is no highway, the kernel does not read the tensor in its place.
    inputs = [output_o, output_x, content, highway if highway is not None else content]
    made = [(1, output_o.dtype)] * 2
    results = launch_pointwise(summed_output_kernel, inputs, made, HIGHWAY=highway is not None)
    return results[0], results[1]


@kernel_op
def conv_lstm_update(
    gates: Tensor, cell: Tensor, highway: Tensor | None, forget_bias: float
) -> tuple[Tensor, Tensor]:
    inputs = [gates, cell, highway if highway is not None else cell]
    made, has_highway = [(1, gates.dtype), (1, cell.dtype)], highway is not None
    results = launch_pointwise(
        conv_lstm_update_kernel, inputs, made, forget_bias, channels=cell.shape[1], HIGHWAY=has_highway
    )
    return results[0], results[1]


@kernel_op
def conv_lstm_update_backward(
    grad_hidden: Tensor, grad_cell: Tensor, gates: Tensor, cell: Tensor, new_cell: Tensor,
    highway: Tensor | None, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = gates.dtype
    inputs = [grad_hidden, grad_cell, gates, cell, new_cell, highway if highway is not None else cell]
    made = [(4, dtype), (1, cell.dtype), (0 if highway is None else 1, dtype)]
    kernel, channels = conv_lstm_update_backward_kernel, cell.shape[1]
    grads = launch_pointwise(
        kernel, inputs, made, forget_bias, leader=2, channels=channels, HIGHWAY=highway is not None
    )
    return grads[0], grads[1], grads[2]
