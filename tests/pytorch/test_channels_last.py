"""A channels_last model stays so: nothing that a kernel or a convolution reads has to be laid out anew, either way."""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import assert_close
from features import feature
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from under_test import KERNELS, REFERENCE, UnderTest, on

from motionrnn_ext import MotionGRU, MotionRNN
from motionrnn_ext.backends.layouts import format_after
from motionrnn_ext.layers import MotionState

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
TOLERANCE = 5e-5  # relative, in float32; measured 1.2e-6


def layout(t: Tensor) -> torch.memory_format | None:
    """None where both layouts are the same; also of channels split from others."""
    if t.dim() != 4 or t.numel() == 0 or t.shape[1] == 1 or t.shape[2] * t.shape[3] == 1:
        return None
    return format_after(t)


class Layouts(TorchDispatchMode):
    """The contiguous inputs of each kernel and convolution, and the copies from one layout into the other."""

    def __init__(self, namespace: str, boundary: int = 0, once: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.namespace, self.kernels = namespace, 0
        self.boundary = boundary  # channels of folded frames, which are laid out once
        self.once = (
            once  # the shape of the warp's weight, which kernels read contiguous: laid out once as well
        )
        self.contiguous: list[str] = []
        self.copied: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name, images = str(function), [a for a in args if isinstance(a, Tensor)]
        ours = function.namespace == self.namespace
        self.kernels += ours
        if ours or "aten.convolution" in name:
            inside = [a for a in images if a.dim() == 4 and self.is_inside(a)]
            self.contiguous += [f"{name} {tuple(a.shape)}" for a in inside if layout(a) is CONTIGUOUS]
        if any(part in name for part in ("clone", "_to_copy", "copy_")):
            before, after = layout(images[-1 if "copy_." in name else 0]), layout(result)
            if self.is_inside(result) and None not in (before, after) and before != after:
                self.copied.append(f"{name} {tuple(result.shape)}")
        return result

    def is_inside(self, t: Tensor) -> bool:
        return t.dim() != 4 or (t.shape[1] != self.boundary and tuple(t.shape) != self.once)


def check(layouts: Layouts) -> None:
    assert layouts.kernels and not layouts.contiguous and not layouts.copied


@feature("channels_last")
@on(KERNELS)
@pytest.mark.parametrize("gate_kernel_size", [1, 3])
def test_the_layer(gate_kernel_size: int, on: UnderTest):
    torch.manual_seed(0)
    layer = MotionGRU(16, gate_kernel_size=gate_kernel_size, zero_init=False)
    layer.to(on.device, memory_format=LAST)
    hidden = torch.randn(2, 16, 8, 6).to(on.device, memory_format=LAST).requires_grad_()
    with on.chosen():
        state = layer.cell.initial_state(layer.encoder(hidden))
        with Layouts(on.namespace) as layouts:
            x, state = layer(hidden, state)
            x, state = layer(x, state)
            loss = sum(t.square().sum() for t in (x, *state))
            grad = torch.autograd.grad(loss, hidden)[0]
    check(layouts)
    for t in (x, *state, grad):
        assert layout(t) is LAST


@feature("channels_last")
@on(KERNELS)
@pytest.mark.parametrize("predictor", ["convlstm", "predrnn", "conv_tt_lstm"])
def test_the_model(predictor: str, on: UnderTest):
    """All from the first frame's fold to the last prediction's is channels_last, with a contiguous model's numbers."""
    torch.manual_seed(0)

    def loss(predictions: Tensor, motion: list[MotionState]) -> Tensor:
        return predictions.square().sum() + sum(t.square().sum() for t in motion[0])

    plain = MotionRNN(predictor, 1, (8, 8), 2, filter_size=3)
    model = copy.deepcopy(plain).to(on.device, memory_format=LAST)
    frames = torch.rand(2, 4, 1, 16, 24)
    with REFERENCE.chosen():
        expected, motion = plain(frames, 2, return_motion=True)
        expected_grads = torch.autograd.grad(loss(expected, motion), list(plain.parameters()))
    with on.chosen():
        state = model.initial_state(2, 16, 24)
        with Layouts(on.namespace, boundary=4, once=(2, 2, 3, 3)) as layouts:
            found, motion = model(frames.to(on.device), 2, state=state, return_motion=True)
            grads = torch.autograd.grad(loss(found, motion), list(model.parameters()))
    check(layouts)
    assert_close(found, expected, TOLERANCE)
    for f, e in zip(grads, expected_grads):
        assert_close(f, e, TOLERANCE)
