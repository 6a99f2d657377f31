"""The memory that a rollout holds, and what of it the user may change before backward.

The models here are large enough for packed weights (backends/convolution.py), which a rollout holds in place of the
weights of its convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_close
from torch import Tensor

from motionrnn_ext import MotionRNN, backend, backends
from motionrnn_ext.backends.convolution import is_winograd_wanted
from motionrnn_ext.benchmarks.measuring import counting
from motionrnn_ext.layers import rollout

pytestmark = pytest.mark.skipif(
    backends.unavailable_reason("cpu") is not None or not is_winograd_wanted(),
    reason="weights are packed for the CPU kernels",
)
PREDICTORS = ["predrnn", "convlstm"]
C = 32
# Of the largest element; measured: 1.4e-6, of second derivatives 5e-7.
BOUND = 1e-5


def small(predictor: str = "predrnn") -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 2, (C, C), 4, "official", image_size=(32, 32))


def clip(steps: int = 4, batch: int = 2) -> Tensor:
    return torch.rand(batch, steps, 2, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[rollout.SharedConvolution]:
    """The convolutions that rollouts have made."""
    convolutions: list[rollout.SharedConvolution] = []
    init = rollout.SharedConvolution.__init__

    def noted(self: rollout.SharedConvolution, *args: Any) -> None:
        init(self, *args)
        convolutions.append(self)

    monkeypatch.setattr(rollout.SharedConvolution, "__init__", noted)
    return convolutions


# ---- What is held


def weights_of(predictor: str) -> list[tuple[int, int]]:
    """Return (outs, channels) of the packed weights of `small`: those of both cells, and of the MotionGRU's gate."""
    cell = [4 * C] if predictor == "convlstm" else [4 * C, 3 * C, C]
    return [(outs, 2 * C) for outs in (*cell, *cell, C)]


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_inference_holds_one_packed_copy_of_each_weight(predictor: str) -> None:
    """Beside it there are maps, and a weight at a time while it is joined and packed."""
    model, frames = small(predictor), clip(6)
    packed = sum(36 * channels * (outs + 13) * 4 for outs, channels in weights_of(predictor))
    joined = 2 * 25 * max(outs * channels for outs, channels in weights_of(predictor)) * 4
    with torch.no_grad():
        peak = counting.peak_bytes(lambda: model(frames, 3), "cpu")
    maps = 40 * C * 2 * 8 * 8 * 4
    assert packed < peak < packed + max(joined, maps) + maps


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_no_weight_is_kept_for_backward(predictor: str, made: list[rollout.SharedConvolution]) -> None:
    """The packed weights of forward are freed with its last step, and those of backward with the pass."""
    model, frames = small(predictor), clip()
    sizes = counting.kept_storages(lambda: model(frames, 2), [frames, *model.parameters()])
    assert max(sizes) < min(25 * outs * channels * 4 for outs, channels in weights_of(predictor))
    made.clear()
    loss = model(frames, 2).sum()
    assert sum(conv.is_packed for conv in made) == len(weights_of(predictor))
    assert not any(conv._packed for conv in made)
    loss.backward(retain_graph=True)
    assert not any(conv._packed for conv in made)
    first = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss.backward()
    assert all(map(torch.equal, first, (p.grad for p in model.parameters())))


# Clips of the benchmark's settings: channels, size and frames.
CLIPS = {"human36m": (3, 128, 8), "vmnist": (1, 64, 20)}


@pytest.mark.slow
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("setting", CLIPS)
def test_training_takes_no_more_than_the_reference(setting: str, predictor: str) -> None:
    """Both what is kept for backward and the peak, at a batch of 1, where weights weigh most."""
    channels, size, steps = CLIPS[setting]
    model = MotionRNN(predictor, channels, (64,) * 4, 4, "official")
    frames, parameters = torch.rand(1, steps, channels, size, size), list(model.parameters())

    def counts() -> tuple[int, int]:
        kept = counting.kept_bytes(lambda: model(frames, steps // 2), [frames, *parameters])
        step = lambda: torch.autograd.grad(model(frames, steps // 2).square().mean(), parameters)  # noqa: E731
        return kept, counting.peak_bytes(step, "cpu")

    found = counts()
    with backend("reference"):
        expected = counts()
    assert all(f <= e for f, e in zip(found, expected)), (found, expected)


def test_recomputed_steps_leave_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are computed again leave more for the gradients of weights than they keep."""
    model, frames = small(), clip(8, batch=8)

    def peak() -> int:
        return counting.peak_bytes(lambda: model(frames, 2, checkpoint=True).sum().backward(), "cpu")

    found = peak()
    monkeypatch.setitem(rollout._JOINED_PIXELS, "recomputed", 8192)
    # Two steps in place of seven, of 8 maps in each of two cells: H, X and M, both gates, C' and M'.
    assert found < peak() - 4 * (3 + 7 + 2) * C * 8 * 64 * 4


def test_one_step_on_few_pixels_shares_nothing(made: list[rollout.SharedConvolution]) -> None:
    model = small()
    model(clip(2), 1)
    assert not made
    model(clip(3), 1)
    assert made
    made.clear()
    model(clip(2, batch=8), 1)
    assert made


# ---- The numbers


def results(model: MotionRNN, call: Callable[[], Tensor]) -> list[Tensor]:
    out = call()
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), list(model.parameters()))]


def assert_as_composed(model: MotionRNN, call: Callable[[], Tensor], bound: float) -> None:
    found = results(model, call)
    with rollout.composed():
        expected = results(model, call)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f, e, bound, f"result {i}")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_packed_weights(predictor: str, layout: torch.memory_format) -> None:
    model = small(predictor).to(memory_format=layout)
    assert_as_composed(model, lambda: model(clip(), 2), BOUND)
    assert_as_composed(model, lambda: model(clip(), 2, checkpoint=True), BOUND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batched_gradients_by_packed_weights(dtype: torch.dtype) -> None:
    """`is_grads_batched` maps backward. Measured: 9e-7 in float32, 3e-3 in bfloat16."""
    model = small("convlstm").to(dtype)
    out = model(clip(3, 1).to(dtype), 2)
    cotangents, parameters = torch.randn(2, *out.shape).to(dtype), list(model.parameters())
    batched = torch.autograd.grad(out, parameters, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        single = torch.autograd.grad(out, parameters, cotangent, retain_graph=True)
        for b, s in zip(batched, single, strict=True):
            assert_close(b[i], s, BOUND if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_second_derivatives_of_packed_weights(predictor: str) -> None:
    model, frames = small(predictor), clip(3, 1).requires_grad_()

    def gradient() -> Tensor:
        return torch.autograd.grad(model(frames, 2).sin().sum(), frames, create_graph=True)[0]

    assert_as_composed(model, gradient, BOUND)


# ---- Weights that change


CHANGED = ["cells.0.conv_x.0.weight", "cells.1.conv_o.0.weight", "interfaces.0.gate.weight"]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_packed_weight_changed_before_backward_is_an_error(name: str, frozen: bool) -> None:
    model, frames = small(), clip().requires_grad_()
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    loss = model(frames, 2).sum()
    with torch.no_grad():
        model.get_parameter(name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
