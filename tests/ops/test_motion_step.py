"""The MotionGRU's step as one op of the CPU: values and gradients against PyTorch's convolutions, in every layout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_close
from repository import ROOT
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from under_test import ALL, CPU, NOT_TESTED

from motionrnn_ext import backend, ops
from motionrnn_ext.backends.registration.wanted import Wanted

pytestmark = pytest.mark.skipif(
    CPU not in ALL, reason=f"the cpu backend is not tested: {NOT_TESTED.get('cpu')}"
)
OPS = torch.ops.motionrnn_ext
ALPHA, MAX_OFFSET = 0.3, 1.5
# Relative to the largest value. Measured: 6e-15 in float64, 3e-6 in float32, 3e-2 in bfloat16.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 8e-2}
ALL_GRADIENTS = int(Wanted.MOTION | Wanted.WEIGHTS)
# Batch, channels, encoded channels, height and width of the half map, kernel sizes of encoder and gates. The last is
# cut into bands.
SIZES = [
    (1, 4, 2, 1, 1, 3, 1),
    (2, 5, 3, 3, 7, 5, 3),
    (3, 8, 2, 4, 1, 2, 1),
    (1, 17, 16, 8, 8, 5, 3),
    (2, 12, 10, 5, 9, 1, 3),
    (1, 6, 4, 9, 150, 7, 5),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other frame": lambda t: torch.stack([t, t], 1)[:, 1],
    "every other column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
}


def made(size: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return maps, offset and trend; the weights; and gradients of Q, the maps (a part), F' and D'."""
    batch, channels, encoded, height, width, of_encoder, gates = size
    g = torch.Generator().manual_seed(sum(size))

    def normal(*shape: int, state: bool = False) -> Tensor:
        t = torch.randn(*shape, generator=g, dtype=torch.float64)
        return t.to(torch.float32 if state and dtype != torch.float64 else dtype)

    def weight(*shape: int) -> Tensor:
        return (normal(*shape).double() / (shape[1] * shape[2] * shape[3]) ** 0.5).to(dtype)

    half, whole = (height, width), (2 * height, 2 * width)
    motion, of_gates = [normal(batch, 18, *half, state=True) for _ in range(2)], 1.0
    if dtype == torch.bfloat16:
        # Motion that rounding cannot move past a pixel, where gradients jump.
        motion, of_gates = [0.05 * t + 0.3 for t in motion], 0.1
    weights = [
        weight(encoded, channels, of_encoder, of_encoder),
        of_gates * weight(63, encoded, gates, gates),
        of_gates * normal(63),
        of_gates * weight(36, 18, gates, gates),
        of_gates * weight(18, 18, gates, gates),
        weight(encoded, encoded, 3, 3),
        weight(encoded, channels, 4, 4),
        normal(encoded),
        normal(channels),
    ]
    maps, *grads = (normal(batch, channels, *whole) for _ in range(3))
    return [maps, *motion], weights, [*grads, *(normal(batch, 18, *half, state=True) for _ in range(2))]


def composed(maps: Tensor, offset: Tensor, trend: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return Q, F', D' and the features, by PyTorch's operations."""
    encoder, *gates, warp, decoder, encoder_bias, decoder_bias = weights
    padding = (encoder.shape[2] - 1) // 2
    features = F.conv2d(maps, encoder, encoder_bias, stride=2, padding=padding)
    with backend("reference"):
        offset, trend, mask = ops.motion_gates(features, offset, trend, *gates, ALPHA, MAX_OFFSET)
        warped = ops.offset_warp(features, offset, mask, warp)
    return F.conv_transpose2d(warped, decoder, decoder_bias, stride=2, padding=1), offset, trend, features


def expected(inputs: list[Tensor], weights: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Return Q, F', D' and, in float64, the gradients that the backward op returns."""
    leaves = [t.double().requires_grad_() for t in (*inputs, *weights)]
    *out, features = composed(*leaves)
    to_decoded, to_maps, *to_motion = (t.double() for t in grads)
    wanted = [*leaves[:3], features, *leaves[4:9]]
    found = list(torch.autograd.grad(out, wanted, [to_decoded, *to_motion]))
    found[0] = found[0] + to_maps
    return [*(t.detach() for t in out), *found]


def stepped(inputs: list[Tensor], weights: list[Tensor], grads: list[Tensor], wanted: int) -> list[Tensor]:
    numbers = ALPHA, MAX_OFFSET
    out = OPS.motion_step(*inputs, *weights, OPS.motion_step_pack(weights, False), *numbers)
    decoded, offset, trend, *kept, _ = out
    back = OPS.motion_step_backward(
        *grads, inputs[1], *kept, offset, *weights, OPS.motion_step_pack(weights, True), *numbers, wanted
    )
    *of_maps, to_logits, to_warp = back
    if not wanted & Wanted.WEIGHTS:
        return [decoded, offset, trend, *back]
    features, _, _, reset, _ = kept
    of_gates = OPS.motion_gates_weight_gradients(to_logits, features, inputs[1], reset, weights[1].shape[2])
    return [decoded, offset, trend, *of_maps, *of_gates, to_warp]


def assert_equal_to_composed(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    assert len(found) == len(exact)
    for i, (f, e) in enumerate(zip(found, exact)):
        assert f.shape == e.shape, i
        assert_close(f.double(), e, BOUNDS[dtype], f"result {i}")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_values_and_gradients(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    inputs, weights, grads = made(size, dtype)
    found = stepped(inputs, weights, grads, ALL_GRADIENTS)
    assert_equal_to_composed(found, expected(inputs, weights, grads), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    inputs, weights, grads = made(SIZES[1], torch.float64)
    laid = [[LAYOUTS[layout](t) for t in ts] for ts in (inputs, grads)]
    found = stepped(laid[0], weights, laid[1], ALL_GRADIENTS)
    assert_equal_to_composed(found, expected(inputs, weights, grads), torch.float64)
    is_last = layout == "channels_last"
    assert found[0].is_contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def test_unwanted_gradients_come_back_empty() -> None:
    inputs, weights, grads = made(SIZES[1], torch.float64)
    full = stepped(inputs, weights, grads, ALL_GRADIENTS)[3:]
    none = stepped(inputs, weights, grads, 0)[3:]
    kept = {0, 3}
    for i, b in enumerate(none):
        assert torch.equal(full[i], b) if i in kept else b.numel() == 0, i


def test_empty_maps() -> None:
    inputs, weights, grads = made((0, 4, 2, 3, 3, 5, 3), torch.float32)
    found = stepped(inputs, weights, grads, ALL_GRADIENTS)
    assert found[0].shape == (0, 4, 6, 6) and all(not t.any() for t in found)


def test_one_thread_and_four_compute_the_same() -> None:
    """Bands are cut otherwise, so that the gradients of weights are summed in another order."""
    before = torch.get_num_threads()
    inputs, weights, grads = made(SIZES[3], torch.float64)
    try:
        found = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(stepped(inputs, weights, grads, ALL_GRADIENTS))
    finally:
        torch.set_num_threads(before)
    for i, (a, b) in enumerate(zip(*found)):
        assert_close(a, b, 1e-13, f"result {i}")


@pytest.mark.parametrize("isa", ["baseline", "x86_64_v3"])
def test_other_instruction_sets(isa: str) -> None:
    code = (
        "import test_motion_step as t, torch\n"
        f"assert t.OPS.cpu_instruction_set() == {isa!r}\n"
        "for dtype in t.BOUNDS: t.test_values_and_gradients(dtype, t.SIZES[1])\n"
        "t.test_values_and_gradients(torch.float32, t.SIZES[3])\n"
    )
    if isa == "x86_64_v3" and OPS.cpu_instruction_set() == "baseline":
        pytest.skip("this CPU has no AVX2")
    paths = [str(ROOT), str(ROOT / "tests/ops"), str(ROOT / "tests/support")]
    env = {**os.environ, "MOTIONRNN_EXT_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_shapes_and_flops_without_data() -> None:
    """Fake tensors have the shapes and layouts of results; as many FLOPs are counted as for PyTorch's operations."""
    inputs, weights, grads = made(SIZES[3], torch.float32)
    with FlopCounterMode(display=False) as counted:
        real = stepped(inputs, weights, grads, ALL_GRADIENTS)
    leaves = [t.clone().requires_grad_() for t in (*inputs, *weights)]
    with FlopCounterMode(display=False) as of_composed:
        *out, _ = composed(*leaves)
        torch.autograd.grad(out, [*leaves[:3], *leaves[4:9]], [grads[0], *grads[2:]])
    assert counted.get_total_flops() == of_composed.get_total_flops()
    with torch._subclasses.FakeTensorMode() as mode:

        def fake(ts: list[Tensor]) -> list[Any]:
            return [mode.from_tensor(t) for t in ts]

        shapes = stepped(fake(inputs), fake(weights), fake(grads), ALL_GRADIENTS)
    for r, f in zip(real, shapes):
        assert r.shape == f.shape and r.dtype == f.dtype and r.stride() == f.stride()


def test_operands_that_do_not_fit() -> None:
    """Direct calls of torch.ops are guarded by checks in C++."""
    inputs, weights, _ = made(SIZES[1], torch.float32)
    packed = OPS.motion_step_pack(weights, False)
    maps, *motion = inputs
    for change in (
        (maps[:, 1:], *motion, *weights, packed),
        (maps[..., 1:], *motion, *weights, packed),
        (maps.double(), *motion, *weights, packed),
        (maps, *motion, *weights[1:], weights[0], packed),
        (maps, *motion, *weights, packed[1:]),
        (maps, motion[0][:, 1:], motion[1], *weights, packed),
    ):
        with pytest.raises(RuntimeError, match="motionrnn_ext: mi"):
            OPS.motion_step(*change, ALPHA, MAX_OFFSET)
    spread, moved = packed.repeat_interleave(2)[::2], torch.cat([packed[:4], packed])[4:]
    for wrong in (spread, moved):
        with pytest.raises(RuntimeError, match="should be contiguous and begin at a multiple of 64 bytes"):
            OPS.motion_step(maps, *motion, *weights, wrong, ALPHA, MAX_OFFSET)


def test_backward_refuses_features_of_another_dtype() -> None:
    inputs, weights, grads = made(SIZES[1], torch.float32)
    packed, of_backward = (OPS.motion_step_pack(weights, backward) for backward in (False, True))
    _, offset, _, features, mask, *logits, _ = OPS.motion_step(*inputs, *weights, packed, ALPHA, MAX_OFFSET)
    for wrong in (features.bfloat16(), features[:, 1:]):
        saved = (inputs[1], wrong, mask, *logits, offset)
        with pytest.raises(RuntimeError, match="motionrnn_ext: mismatched features"):
            OPS.motion_step_backward(*grads, *saved, *weights, of_backward, ALPHA, MAX_OFFSET, ALL_GRADIENTS)


def test_a_slice_of_a_batch_gives_the_layouts_that_are_declared() -> None:
    inputs, weights, _ = made((4, *SIZES[1][1:]), torch.float32)
    inputs = [t.to(memory_format=torch.channels_last)[::2] for t in inputs]
    packed = OPS.motion_step_pack(weights, False)
    real = OPS.motion_step(*inputs, *weights, packed, ALPHA, MAX_OFFSET)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (*inputs, *weights, packed)]
        declared = OPS.motion_step(*fakes, ALPHA, MAX_OFFSET)
    assert [t.stride() for t in real] == [t.stride() for t in declared]
