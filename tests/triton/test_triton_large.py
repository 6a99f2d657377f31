"""Triton's kernels where an index needs more than 32 bits, in their interpreter: the tensors are sparse, and of each
launch the first program and the last ones are run. The interpreter fails where a sum or a product of 32 bits overflows.

Views that reach so far are read as compiled, too. This is not run: what compilers make of the rest, and all the
programs between.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from case import generator
from comparing import TOLERANCE, assert_close
from gates_cases import gates_inputs
from sparse_memory import channels_last_strides, sparse_zeros, use_sparse_results
from torch import Tensor
from under_test import KERNELS, PTX, REFERENCE, TRITON, UnderTest, on

from motionrnn_ext import ops
from motionrnn_ext.backends.registration.wanted import Wanted

IN_INTERPRETER = [TRITON] if TRITON in KERNELS and TRITON.is_slow else []
AS_COMPILED = [TRITON] if TRITON in KERNELS and PTX else []
if IN_INTERPRETER:
    from triton.runtime.interpreter import interpreter_builder

    from motionrnn_ext.backends.triton import launch, offset_warp, offset_warp_backward, offset_warp_finish
    from motionrnn_ext.backends.triton.launch import BLOCKS, MANY, Block

LAYOUTS = ("contiguous", "channels_last")
K, CHANNELS, WIDTH, TILE = 3, 9, 16, 256
# The programs that end a launch: all taps of two tiles, which are 32 rows. Taps reach 8 rows at most.
LAST_PROGRAMS, LAST_ROWS = 2 * K * K, 8
IMAGES_AND_MAPS = Wanted.X | Wanted.MOTION | Wanted.MASK


@pytest.fixture
def ends_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches run their first program and their last ones. Results are sparse, and a part of grad_weight is of one
    tile."""

    class Ends:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            programs = sorted({0, *range(grid[0])[-LAST_PROGRAMS:]})

            def choose(x: int, *rest: int) -> None:
                interpreter_builder.grid_idx = (programs[x], *rest)

            monkeypatch.setattr(interpreter_builder, "set_grid_idx", choose)
            return self.kernel[(len(programs),)]

    monkeypatch.setattr(launch, "_launchable", Ends)
    for op in ("offset_warp", "offset_warp_backward", "offset_warp_backward_deterministic"):
        monkeypatch.setitem(BLOCKS, op, [(MANY, Block(TILE, 4), Block(TILE, 4))])
    monkeypatch.setattr(offset_warp_backward, "MAX_PARTS", MANY)
    monkeypatch.setattr(offset_warp_finish, "FINISH_ADDENDS", MANY)
    use_sparse_results(monkeypatch)
    yield


@pytest.fixture(autouse=True)
def no_overflow_of_32_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if IN_INTERPRETER:
        # Without `debug`, the interpreter looks for overflows and does not tell.
        options = replace(interpreter_builder.options, sanitize_overflow=True, debug=True)
        monkeypatch.setattr(interpreter_builder, "options", options)
    yield


def warp_and_gradients(
    op: Callable[..., Any], inputs: list[Tensor], grad: Tensor, deterministic: bool
) -> list[Tensor]:
    """The output, and the gradients of x, offset and mask."""
    gradients = op("offset_warp_backward")(grad, *inputs, IMAGES_AND_MAPS, deterministic)
    return [op("offset_warp")(*inputs), *gradients[:3]]


def expected_of(inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    exact = [t.double().requires_grad_() for t in inputs]
    with REFERENCE.chosen():
        out = ops.offset_warp(*exact)
    return [out, *torch.autograd.grad(out, exact[:3], grad.double())]


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (scale * torch.randn(shape, generator=generator(seed))).to(dtype)


def weights(dtype: torch.dtype) -> Tensor:
    return normal(CHANNELS, CHANNELS, K, K, dtype=dtype, scale=(CHANNELS * K * K) ** -0.5, seed=4)


DTYPES = {"x": torch.bfloat16, "offset": torch.float32, "mask": torch.bfloat16, "grad": torch.bfloat16}
COUNTS = {"x": CHANNELS, "offset": 2 * K * K, "mask": K * K, "grad": CHANNELS}


def check_last_rows(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, a, e in zip(("out", "x", "offset", "mask"), actual, expected, strict=True):
        assert_close(a[-1:, :, -LAST_ROWS:], e[-1:, :, -LAST_ROWS:], TOLERANCE[torch.bfloat16], name)


@on(IN_INTERPRETER)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_image_of_more_than_32_bits(on: UnderTest, layout: str, deterministic: bool, ends_only: None):
    """x, offset, mask and the gradients have more than 2^31 elements an image."""
    height, filled = 2**24, 64
    parts, tensors = [], []
    for seed, (name, count) in enumerate(COUNTS.items()):
        shape = (1, count, height, WIDTH)
        strides = channels_last_strides(shape) if layout == "channels_last" else None
        tensors.append(sparse_zeros(shape, DTYPES[name], strides))
        parts.append(normal(1, count, filled, WIDTH, dtype=DTYPES[name], seed=seed))
        tensors[-1][:, :, -filled:] = parts[-1]
    *inputs, grad = tensors
    *inputs_of_part, grad_of_part = parts
    assert min(t.numel() for t in tensors) > 2**31
    weight = weights(torch.bfloat16)
    actual = warp_and_gradients(on.op, [*inputs, weight], grad, deterministic)
    check_last_rows(actual, expected_of([*inputs_of_part, weight], grad_of_part))


@on(IN_INTERPRETER)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_of_more_than_32_bits_from_one_image(
    on: UnderTest, layout: str, deterministic: bool, ends_only: None
):
    """The operands are one small image, expanded over the batch."""
    height, batch = 256, 2**16
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    one = [
        normal(1, count, height, WIDTH, dtype=DTYPES[name], seed=seed).contiguous(memory_format=memory_format)
        for seed, (name, count) in enumerate(COUNTS.items())
    ]
    *inputs, grad = (t.expand(batch, -1, -1, -1) for t in one)
    weight = weights(torch.bfloat16)
    actual = warp_and_gradients(on.op, [*inputs, weight], grad, deterministic)
    assert min(t.numel() for t in actual) > 2**31
    *inputs, grad = one
    check_last_rows(actual, expected_of([*inputs, weight], grad))


@pytest.fixture
def apart() -> Iterator[Callable[[Tensor, str], Tensor]]:
    """Return a tensor whose images ("batch"), or whose pixels of a row ("pixel"), lie more than 2^31 elements apart."""
    far, registered = 2**29 + 16, []

    def lay(t: Tensor, distance: str) -> Tensor:
        strides = [4 * far, *t.stride()[1:]] if distance == "batch" else channels_last_strides(t.shape, far)
        made = sparse_zeros(t.shape, t.dtype, strides).copy_(t)
        if PTX:
            registered.append(made.data_ptr())
            PTX.register(made.data_ptr(), made.untyped_storage().nbytes())
        return made

    if PTX:
        # A note of every byte would take as much memory as there is address space.
        PTX.set(check_global=0)
    yield lay
    if PTX:
        PTX.set(check_global=1)
        for address in registered:
            PTX.unregister(address)


@on(IN_INTERPRETER + AS_COMPILED)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("distance", ["batch", "pixel"])
def test_views_that_reach_beyond_32_bits(
    on: UnderTest, distance: str, deterministic: bool, apart: Callable[[Tensor, str], Tensor]
):
    shape = (2, 3, 5)
    tensors = [
        apart(normal(shape[0], count, *shape[1:], dtype=DTYPES[name], seed=seed), distance)
        for seed, (name, count) in enumerate(COUNTS.items())
    ]
    *inputs, grad = tensors
    weight = weights(torch.bfloat16)
    with on.chosen():
        actual = warp_and_gradients(on.op, [*inputs, weight], grad, deterministic)
    check_last_rows(actual, expected_of([*inputs, weight], grad))


@on(IN_INTERPRETER + AS_COMPILED)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("distance", ["batch", "pixel"])
def test_gates_of_views_that_reach_beyond_32_bits(
    on: UnderTest, distance: str, size: int, apart: Callable[[Tensor, str], Tensor]
):
    inputs = list(gates_inputs(generator(0), height=3, width=5, size=size).values())
    inputs = [t.detach().float() for t in inputs]
    far = [apart(t, distance) for t in inputs[:3]]
    found = []
    for maps in (inputs[:3], far):
        with on.chosen():
            outputs = on.op("motion_gates")(*maps, *inputs[3:], 0.5, 1.0)
            grad = maps[1]
            saved = (*maps[:2], *inputs[3:], *outputs[3:], outputs[0])
            found.append(
                [*outputs, *on.op("motion_gates_backward")(grad, grad, outputs[2], *saved, 0.5, 1.0, 3)]
            )
    for near, view in zip(*found, strict=True):
        assert_close(view, near, TOLERANCE[torch.float32])


# Of each pointwise op that reads or writes several maps of a tensor: how many, input by input; what follows the inputs.
SEVERAL_MAPS = {
    "memory_update": ((3, 3, 1), (1.0,)),
    "memory_update_backward": ((1, 3, 3, 1), (1.0,)),
    "st_lstm_update": ((3, 3, 1, 1), (1.0,)),
    "st_lstm_update_backward": ((2, 2, 1, 1, 1, 3, 3, 1, 1), (1.0,)),
    "conv_lstm_update": ((4, 1, 1), (1.0,)),
    "conv_lstm_update_backward": ((1, 1, 4, 1, 1, 1), (1.0,)),
}


@on(IN_INTERPRETER)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("op", SEVERAL_MAPS)
def test_maps_that_lie_beyond_32_bits(on: UnderTest, op: str, batch: int, ends_only: None):
    """A map has fewer than 2^31 elements; the third of its tensor does not begin within them."""
    maps, parameters = SEVERAL_MAPS[op]
    height, width, filled = 2**18 + 2**10, 4096, 4
    inputs, parts = [], []
    for seed, count in enumerate(maps):
        parts.append(normal(batch, count, filled, width, dtype=torch.float32, seed=seed))
        inputs.append(sparse_zeros((batch, count, height, width)))
        inputs[-1][:, :, -filled:] = parts[-1]
    found, expected = (on.op(op)(*given, *parameters) for given in (inputs, parts))
    for f, e in zip(*((t if isinstance(t, tuple) else (t,)) for t in (found, expected)), strict=True):
        assert f[-1, :, -filled:].equal(e[-1])


@on(IN_INTERPRETER)
def test_a_weight_of_more_than_32_bits(on: UnderTest, monkeypatch: pytest.MonkeyPatch, ends_only: None):
    """Forward only: backward reads and writes all of it."""
    channels, out_channels, filled = 2**15, 2**16, 4
    monkeypatch.setattr(offset_warp, "channel_block", lambda channels, most: 64 if most == 64 else 2**11)
    monkeypatch.setitem(BLOCKS, "offset_warp", [(MANY, Block(WIDTH, 4), Block(WIDTH, 4))])
    monkeypatch.setattr(sys.modules[__name__], "LAST_PROGRAMS", 1)
    weight = sparse_zeros((out_channels, channels, 1, 1), torch.bfloat16)
    last = normal(filled, channels, 1, 1, dtype=torch.bfloat16, scale=channels**-0.5)
    weight[-filled:] = last
    inputs = [
        normal(1, count, 1, WIDTH, dtype=dtype, seed=count)
        for count, dtype in ((channels, torch.bfloat16), (2, torch.float32), (1, torch.bfloat16))
    ]
    found = on.op("offset_warp")(*inputs, weight)[:, -filled:]
    with REFERENCE.chosen():
        expected = ops.offset_warp(*(t.double() for t in (*inputs, last)))
    assert_close(found, expected, TOLERANCE[torch.bfloat16])
