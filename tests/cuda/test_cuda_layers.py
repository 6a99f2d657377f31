"""The layers on the CUDA kernels: numbers, the fused pair in use, memory formats that flow through."""

from __future__ import annotations

import copy

import pytest
import torch
from calls import Calls
from comparing import assert_close
from torch import nn
from under_test import CUDA_KERNELS, REFERENCE, UnderTest, on

from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN

TOLERANCE = 5e-5  # relative, in float32; measured 2.5e-6 on the CPU
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def exact_convolutions():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def results(module: nn.Module, *inputs: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, and the gradients of the sum of their squares by inputs and parameters."""
    outputs = flat(module(*inputs))
    wanted = [*inputs, *module.parameters()]
    grads = torch.autograd.grad(sum((o * o).sum() for o in outputs), wanted, allow_unused=True)
    return outputs, [g for g in grads if g is not None]


def flat(value: object) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def leaf(on: UnderTest, memory_format: torch.memory_format, *shape: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    t = torch.randn(shape, generator=g).to(on.device)
    return (t.contiguous(memory_format=memory_format) if len(shape) == 4 else t).requires_grad_()


def check(on: UnderTest, module: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Compares with the reference in float64; returns the outputs."""
    with REFERENCE.chosen():
        exact = [t.detach().double().requires_grad_() for t in inputs]
        expected = results(copy.deepcopy(module).double(), *exact)
    with on.chosen():
        found = results(module, *inputs)
    for a, e in zip((*found[0], *found[1]), (*expected[0], *expected[1])):
        assert_close(a, e, TOLERANCE)
    return found[0]


@on(CUDA_KERNELS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_motion_gru_cell(on: UnderTest, memory_format: torch.memory_format):
    torch.manual_seed(0)
    cell = MotionGRUCell(16, zero_init=False).to(on.device, memory_format=memory_format)
    inputs = [leaf(on, memory_format, 2, n, 7, 9, seed=n) for n in (16, 18)]
    outputs = check(on, cell, *inputs, leaf(on, memory_format, 2, 18, 7, 9, seed=3))
    assert all(o.is_contiguous(memory_format=memory_format) for o in outputs)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_motion_gru(
    on: UnderTest, memory_format: torch.memory_format, large: bool, monkeypatch: pytest.MonkeyPatch
):
    """A large map is warped in channels_last inside of a contiguous model, too."""
    monkeypatch.setattr(MotionGRU, "_wants_channels_last", lambda self, features: large)
    torch.manual_seed(0)
    gru = MotionGRU(32).to(on.device, memory_format=memory_format)
    x, offset, _ = check(on, gru, leaf(on, memory_format, 2, 32, 10, 12, seed=1))
    assert x.is_contiguous(memory_format=memory_format)
    inside = torch.channels_last if large else memory_format
    assert offset.is_contiguous(memory_format=inside)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("predictor", ["convlstm", "predrnn"])
def test_motion_rnn(on: UnderTest, predictor: str):
    torch.manual_seed(0)
    model = MotionRNN(predictor, in_channels=1, hidden_channels=(16, 16), patch_size=2).to(on.device)
    frames = leaf(on, torch.contiguous_format, 1, 4, 1, 8, 12, seed=1)

    class Rollout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.model(frames, 2)

    check(on, Rollout(), frames)


@on(CUDA_KERNELS)
def test_the_cell_takes_two_ops_each_way(on: UnderTest):
    cell = MotionGRUCell(8).to(on.device)
    inputs = [leaf(on, torch.contiguous_format, 1, n, 4, 4, seed=n) for n in (8, 18)]
    with on.chosen(), Calls("motionrnn_ext") as ops:
        out, offset, trend = cell(*inputs, leaf(on, torch.contiguous_format, 1, 18, 4, 4, seed=3))
        (out.sum() + offset.sum() + trend.sum()).backward()
    assert ops.names == ["motion_gates", "offset_warp", "offset_warp_backward", "motion_gates_backward"]
