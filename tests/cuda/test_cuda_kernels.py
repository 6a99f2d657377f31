"""The op for motion and warp, which CUDA alone has. Its values and gradients are compared in test_ops."""

from __future__ import annotations

import copy

import pytest
import torch
from case import Case, generator
from comparing import TOLERANCE, assert_close
from under_test import CUDA_KERNELS, REFERENCE, UnderTest, on
from warp_cases import MOTION_CASES

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
