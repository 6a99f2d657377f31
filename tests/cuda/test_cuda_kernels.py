"""The ops that join others on CUDA: motion and warp, which it alone has, and the gates. Their values and gradients are
compared in test_ops."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from case import Case, generator
from comparing import TOLERANCE, assert_close
from gates_cases import GATES_CASES, gates_inputs
from under_test import CUDA_KERNELS, REFERENCE, UnderTest, on
from warp_cases import MOTION_CASES

from motionrnn_ext import ops
from motionrnn_ext.backends.registration.wanted import Wanted
from motionrnn_ext.layers import MotionGRU, MotionGRUCell

PLAIN = MOTION_CASES[0]


@on(CUDA_KERNELS)
@pytest.mark.parametrize("wanted", range(1, 16))
def test_motion_warp_makes_the_gradients_that_are_wanted(on: UnderTest, wanted: int):
    inputs = PLAIN.inputs(torch.float32, on.device, grad=False)
    with on.chosen():
        out, offset, trend = PLAIN.run(inputs)
    x, update, candidate, previous, _, mask, weight = inputs.values()
    grads = [torch.randn(t.shape, generator=generator(1)).to(t) for t in (out, offset, trend)]
    saved = (x, update, candidate, previous, offset, mask, weight)
    every, some = (
        on.op("motion_warp_backward")(*grads, *saved, 0.5, 1e4, bits, False) for bits in (15, wanted)
    )
    for e, s, bit in zip(every, some, (1, 2, 2, 2, 2, 4, 8)):
        if wanted & bit:
            assert_close(s, e, 1e-6)
        else:
            assert s.numel() == 0


GATES = {case.name: case for case in GATES_CASES}


def gates(on: UnderTest, inputs: Sequence[torch.Tensor], wanted: int) -> tuple[list, list]:
    """Return the results of motion_gates and of its backward for random gradients."""
    outputs = on.op("motion_gates")(*inputs, 0.5, 1e4)
    grads = [torch.randn(t.shape, generator=generator(1)).to(t) for t in outputs[:3]]
    saved = (inputs[0], inputs[1], *inputs[3:], *outputs[3:], outputs[0])
    return outputs, on.op("motion_gates_backward")(*grads, *saved, 0.5, 1e4, wanted)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("wanted", [1, 2, 3, 8, 9, 10, 11])
def test_motion_gates_makes_the_gradients_that_are_wanted(on: UnderTest, wanted: int):
    inputs = list(GATES["usual"].inputs(torch.float32, on.device, grad=False).values())
    every, some = (gates(on, inputs, bits)[1] for bits in (11, wanted))
    for e, s, bit in zip(every, some, (1, 2, 2, 8, 8, 8, 8)):
        if wanted & bit:
            assert_close(s, e, 1e-6)
        else:
            assert s.numel() == 0


@on(CUDA_KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_motion_gates_keep_what_a_bad_number_does_not_reach(on: UnderTest, value: float):
    """A tile of eight columns may hold channels of r and z, or of x and F. One of them takes no part in a sum."""
    inputs = list(GATES["usual"].inputs(torch.float32, on.device, grad=False).values())
    offset = inputs[1].clone()
    offset[0, 2, 3, 4] = value
    (_, _, mask, *_), _ = gates(on, [inputs[0], offset, *inputs[2:]], 11)
    (_, _, expected, *_), _ = gates(on, inputs, 11)
    assert torch.equal(mask, expected)
    outputs = on.op("motion_gates")(*inputs, 0.5, 1e4)
    grads = [torch.zeros_like(t) for t in outputs[:3]]
    grads[2][0, 1, 3, 4] = value
    saved = (inputs[0], inputs[1], *inputs[3:], *outputs[3:], outputs[0])
    grad_x, grad_offset, grad_trend, *_ = on.op("motion_gates_backward")(*grads, *saved, 0.5, 1e4, 3)
    bad = torch.zeros(grad_x.shape[2:], dtype=torch.bool)
    bad[2:5, 3:6] = True
    assert torch.equal(~torch.isfinite(grad_x[0, 0]).cpu(), bad)
    assert not grad_offset.any() and not grad_trend.any()


@on(CUDA_KERNELS)
@pytest.mark.parametrize(
    "options", [{"channels": 100}, {"channels": 130, "size": 5}, {"width": 3}, {"width": 6}]
)
def test_motion_gates_of_many_channels_and_of_narrow_maps(on: UnderTest, options: dict[str, int]):
    """Channels in chunks; tiles of 4 x 4 and of 8 x 2 pixels."""
    case = Case("motion_gates", "", partial(gates_inputs, **options))
    inputs = case.inputs(torch.float32, on.device)
    exact = {name: t.detach().double().cpu().requires_grad_() for name, t in inputs.items()}
    with on.chosen():
        outputs = case.run(inputs)
    with REFERENCE.chosen():
        expected = case.run(exact)
    grads = [torch.randn(t.shape, generator=generator(1), dtype=torch.float64) for t in expected]
    found = torch.autograd.grad(outputs, list(inputs.values()), [g.to(o) for g, o in zip(grads, outputs)])
    for a, e in zip(
        (*outputs, *found), (*expected, *torch.autograd.grad(expected, list(exact.values()), grads))
    ):
        assert_close(a, e, on.float32_bound)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("case", MOTION_CASES[:4], ids=str)
def test_motion_warp_keeps_memory_formats(on: UnderTest, case: Case):
    """Motion follows the logits, features follow x; each gradient its tensor."""
    inputs = case.inputs(torch.float32, on.device)
    with on.chosen():
        out, offset, trend = case.run(inputs)
        grads = torch.autograd.grad(out.sum() + offset.sum() + trend.sum(), list(inputs.values()))
    both = case.name == "plain_channels_last"
    motion_last = both or case.name == "plain_logits_channels_last"
    for t in (offset, trend, *grads[1:5]):
        assert t.is_contiguous(memory_format=torch.channels_last) == motion_last
    for t in (out, grads[0]):
        assert t.is_contiguous(memory_format=torch.channels_last) == (
            both or case.name == "plain_x_channels_last"
        )


@on(CUDA_KERNELS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("layer", ["cell", "layer"])
def test_motion_gru(on: UnderTest, layer: str, layout: torch.memory_format):
    """Two steps of it in float32 against the reference in float64."""
    torch.manual_seed(0)
    exact = MotionGRUCell(8, zero_init=False) if layer == "cell" else MotionGRU(32)
    x = torch.randn(2, 8, 5, 6) if layer == "cell" else torch.randn(2, 32, 10, 12)
    for p in exact.parameters():
        torch.nn.init.normal_(p, std=0.2)
    module = copy.deepcopy(exact).to(on.device, memory_format=layout)
    exact = exact.double()

    def two_steps(module, x):
        state = None
        total = []
        for _ in range(2):
            if layer == "cell":
                state = module.initial_state(x) if state is None else state
                x, *state = module(x, *state)
            else:
                x, state = module(x, state)
            total += [x, *state]
        return total

    with REFERENCE.chosen():
        expected = two_steps(exact, x.double())
        expected_gradients = torch.autograd.grad(sum(t.sum() for t in expected), list(exact.parameters()))
    with on.chosen():
        found = two_steps(module, x.to(on.device).contiguous(memory_format=layout))
        found_gradients = torch.autograd.grad(sum(t.sum() for t in found), list(module.parameters()))
    for f, e in zip((*found, *found_gradients), (*expected, *expected_gradients)):
        assert_close(f, e, TOLERANCE[torch.float32])


@on(CUDA_KERNELS)
def test_a_weight_whose_gradient_has_too_many_parts(on: UnderTest):
    """More than an int counts. Each block leaves a part, in which 32 channels stand for the one of x."""
    out_channels, taps = 2**20, 81
    weight = torch.zeros(out_channels, 1, 9, 9, dtype=torch.bfloat16, device=on.device)
    grad, x, mask = (weight.new_zeros(1, channels, 1, 1) for channels in (out_channels, 1, taps))
    offset = torch.zeros(1, 2 * taps, 1, 1, device=on.device)
    with pytest.raises(RuntimeError, match="too many channels for the gradient of the weight"):
        on.op("offset_warp_backward")(grad, x, offset, mask, weight, Wanted.WEIGHTS, False)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("channels", [8, 16, 32, 64])
def test_a_weight_may_start_anywhere(
    on: UnderTest, channels: int, layout: torch.memory_format, dtype: torch.dtype
):
    """A weight that vectors of 8 bytes cannot be loaded from gives the same result, bit for bit."""
    g = generator()
    x, offset, mask = (
        torch.randn(1, count, 3, 5, generator=g).to(on.device, kind, memory_format=layout)
        for count, kind in ((channels, dtype), (18, torch.float32), (9, dtype))
    )
    weight = torch.randn(channels, channels, 3, 3, generator=g).to(on.device, dtype)
    moved = torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view_as(weight)
    assert moved.data_ptr() % 8 != 0
    with on.chosen():
        assert torch.equal(ops.offset_warp(x, offset, mask, moved), ops.offset_warp(x, offset, mask, weight))
