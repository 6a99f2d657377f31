"""The pointwise kernels of the recurrent cells: LSTM memory, output gate with motion highway, blend."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import kernel_op
from .pointwise import elements, launch_pointwise, load, store
from .scalar import d_sigmoid, d_tanh, index, sigmoid, tanh


@triton.jit
def packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, WHICH: tl.constexpr):
    """Return one of the packed gates (i, f, g), the sum of its two addends."""
    at += WHICH * inner
    return load(gates_x, x_stride, row, at, inside) + load(gates_h, h_stride, row, at, inside)


@triton.jit
def memory_update_kernel(
    gates_x, gates_h, memory, out, x_stride, h_stride, memory_stride,
    rows, inner, forget_bias, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """C' = s(f_x + f_h + b) C + s(i_x + i_h) tanh(g_x + g_h)"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    inner = index(inner, WIDE)
    i = sigmoid(packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, 0))
    f = sigmoid(packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, 1) + forget_bias)
    g = tanh(packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, 2))
    store(out, inner, row, at, inside, f * load(memory, memory_stride, row, at, inside) + i * g)


@triton.jit
def memory_update_backward_kernel(
    grad, gates_x, gates_h, memory, grad_gates, grad_memory, grad_stride, x_stride, h_stride, memory_stride,
    rows, inner, forget_bias, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The two addends of the gates have the same gradient, which is written once."""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    inner = index(inner, WIDE)
    d = load(grad, grad_stride, row, at, inside)
    i = sigmoid(packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, 0))
    f = sigmoid(packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, 1) + forget_bias)
    g = tanh(packed_gate(gates_x, gates_h, x_stride, h_stride, row, at, inside, inner, 2))
    c = load(memory, memory_stride, row, at, inside)
    store(grad_gates, 3 * inner, row, at, inside, d * g * d_sigmoid(i))
    store(grad_gates, 3 * inner, row, at + inner, inside, d * c * d_sigmoid(f))
    store(grad_gates, 3 * inner, row, at + 2 * inner, inside, d * i * d_tanh(g))
    store(grad_memory, inner, row, at, inside, d * f)


@triton.jit
def gated_output_kernel(
    output_logits, content, out, output_stride, content_stride,
    rows, inner, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = s(o) tanh(content)"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    gate = sigmoid(load(output_logits, output_stride, row, at, inside))
    store(out, inner, row, at, inside, gate * tanh(load(content, content_stride, row, at, inside)))


@triton.jit
def gated_output_backward_kernel(
    grad, output_logits, content, grad_output_logits, grad_content, grad_stride, output_stride, content_stride,
    rows, inner, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    g = load(grad, grad_stride, row, at, inside)
    gate = sigmoid(load(output_logits, output_stride, row, at, inside))
    squashed = tanh(load(content, content_stride, row, at, inside))
    store(grad_output_logits, inner, row, at, inside, g * squashed * d_sigmoid(gate))
    store(grad_content, inner, row, at, inside, g * gate * d_tanh(squashed))


@triton.jit
def blend_kernel(
    gate_logits, a, b, out, gate_stride, a_stride, b_stride,
    rows, inner, SQUASH: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = s(g) a + (1 - s(g)) b, the first operand squashed to tanh(a) for a highway"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    gate = sigmoid(load(gate_logits, gate_stride, row, at, inside))
    first = load(a, a_stride, row, at, inside)
    if SQUASH:
        first = tanh(first)
    store(out, inner, row, at, inside, gate * first + (1 - gate) * load(b, b_stride, row, at, inside))


@triton.jit
def blend_backward_kernel(
    grad, gate_logits, a, b, grad_gate_logits, grad_a, grad_b, grad_stride, gate_stride, a_stride, b_stride,
    rows, inner, SQUASH: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    g = load(grad, grad_stride, row, at, inside)
    gate = sigmoid(load(gate_logits, gate_stride, row, at, inside))
    first = load(a, a_stride, row, at, inside)
    if SQUASH:
        first = tanh(first)
    second = load(b, b_stride, row, at, inside)
    store(grad_gate_logits, inner, row, at, inside, g * (first - second) * d_sigmoid(gate))
    into_first = g * gate
    if SQUASH:
        into_first *= d_tanh(first)
    store(grad_a, inner, row, at, inside, into_first)
    store(grad_b, inner, row, at, inside, g * (1 - gate))


@kernel_op
def memory_update(gates_x: Tensor, gates_h: Tensor, memory: Tensor, forget_bias: float) -> Tensor:
    channels = memory.shape[1]
    inputs = [gates_x, gates_h, memory]
    return launch_pointwise(
        memory_update_kernel, inputs, [(1, memory.dtype)], forget_bias, channels=channels
    )[0]


@kernel_op
def memory_update_backward(
    grad: Tensor, gates_x: Tensor, gates_h: Tensor, memory: Tensor, forget_bias: float
) -> tuple[Tensor, Tensor]:
    inputs, made = [grad, gates_x, gates_h, memory], [(3, gates_x.dtype), (1, memory.dtype)]
    channels = memory.shape[1]
    grads = launch_pointwise(
        memory_update_backward_kernel, inputs, made, forget_bias, leader=1, channels=channels
    )
    return grads[0], grads[1]


@kernel_op
def highway_output(output_logits: Tensor, content: Tensor, highway: Tensor | None) -> Tensor:
    made = [(1, output_logits.dtype)]
    if highway is None:
        return launch_pointwise(gated_output_kernel, [output_logits, content], made)[0]
    return launch_pointwise(blend_kernel, [output_logits, content, highway], made, SQUASH=True)[0]


@kernel_op
def highway_output_backward(
    grad: Tensor, output_logits: Tensor, content: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = output_logits.dtype
    if highway is None:
        inputs, made = [grad, output_logits, content], [(1, dtype)] * 2
        grads = launch_pointwise(gated_output_backward_kernel, inputs, made, leader=1)
        return grads[0], grads[1], grad.new_empty(0)
    inputs = [grad, output_logits, content, highway]
    grads = launch_pointwise(blend_backward_kernel, inputs, [(1, dtype)] * 3, leader=1, SQUASH=True)
    return grads[0], grads[1], grads[2]


@kernel_op
def gated_blend(gate_logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return launch_pointwise(blend_kernel, [gate_logits, a, b], [(1, gate_logits.dtype)], SQUASH=False)[0]


@kernel_op
def gated_blend_backward(
    grad: Tensor, gate_logits: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = [grad, gate_logits, a, b]
    grads = launch_pointwise(
        blend_backward_kernel, inputs, [(1, gate_logits.dtype)] * 3, leader=1, SQUASH=False
    )
    return grads[0], grads[1], grads[2]
