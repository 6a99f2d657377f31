"""Every op on every backend against the reference in float64: values, gradients, layouts, edges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from case import Case, channels_last, generator
from cases import ALL_OPS, CASES, small_case
from checking import check, exactly, gradients
from comparing import TOLERANCE, assert_close
from features import feature
from torch import Tensor
from under_test import (
    ALL,
    CPU,
    CUDA_KERNELS,
    DTYPES,
    EMULATED,
    GPU_KERNELS,
    KERNELS,
    NOT_TESTED,
    REFERENCE,
    UnderTest,
    few_blocks,
    on,
)
from warp_cases import warp_inputs

from motionrnn_ext import ops


@pytest.mark.parametrize("name", ["cpu", "cuda", "triton", "emulated"])
def test_the_backend_is_tested(name: str):
    if name in NOT_TESTED:
        pytest.skip(f"{name} is not tested here: {NOT_TESTED[name]}")


@feature("values")
@on(ALL, dtypes=DTYPES[:2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(on: UnderTest, case: Case, dtype: torch.dtype):
    check(on, case, dtype)


@feature("half")
@on(ALL, dtypes=DTYPES[2:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_in_half(on: UnderTest, case: Case, dtype: torch.dtype):
    check(on, case, dtype)


def in_other_format(cotangent: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return channels_last(cotangent) if output.is_contiguous() else cotangent.contiguous()


IN_EITHER_FORMAT = ("plain", "channels_last_c8", "c8", "c33", "c8_channels_last", "c33_channels_last")


@on(KERNELS, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in IN_EITHER_FORMAT], ids=str)
def test_gradients_of_outputs_in_another_memory_format(on: UnderTest, case: Case, dtype: torch.dtype):
    check(on, case, dtype, in_other_format)


@on(ALL)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("value", [1e4, 1e7, 1e30, float("inf"), float("-inf"), float("nan")])
def test_absurd_offsets_sample_zero_and_nan_gives_nan(
    on: UnderTest, layout: torch.memory_format, value: float
):
    inputs = warp_inputs(generator(), channels=16)
    inputs["offset"][:, :, 3, 4] = value
    x, offset, mask, weight = (t.float().to(on.device) for t in inputs.values())
    x = x.contiguous(memory_format=layout)
    for t in (x, offset, mask, weight):
        t.requires_grad_()
    with on.chosen():
        out = ops.offset_warp(x, offset, mask, weight)
        out.nansum().backward()
    if value != value:
        assert out[:, :, 3, 4].isnan().all()
    else:
        assert (out[:, :, 3, 4] == 0).all() and (offset.grad[:, :, 3, 4] == 0).all()
        assert x.grad.isfinite().all()
    rest = torch.ones(7, 9, dtype=torch.bool)
    rest[3, 4] = False
    assert out[:, :, rest].isfinite().all() and weight.grad.shape == weight.shape


@on(ALL)
def test_nan_outside_of_reach_does_not_leak(on: UnderTest):
    """A tap off the map reads 0, whatever the pixels at the border hold."""
    x = torch.full((1, 4, 5, 6), float("nan"))
    offset, mask, weight = torch.full((1, 18, 5, 6), 40.0), torch.zeros(1, 9, 5, 6), torch.ones(4, 4, 3, 3)
    with on.chosen():
        for image in (x, channels_last(x)):
            out = ops.offset_warp(*(t.to(on.device) for t in (image, offset, mask, weight)))
            assert (out == 0).all()


@on(ALL)
def test_zero_offset_and_open_mask_is_a_convolution(on: UnderTest):
    dtype = on.dtypes[0]
    x, weight = torch.randn(2, 5, 6, 7, dtype=dtype), torch.randn(4, 5, 3, 3, dtype=dtype)
    offset, mask = torch.zeros(2, 18, 6, 7, dtype=dtype), torch.full((2, 9, 6, 7), 800.0, dtype=dtype)
    with on.chosen():
        out = ops.offset_warp(*(t.to(on.device) for t in (x, offset, mask, weight)))
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    assert_close(out, expected, 1e-12 if dtype == torch.float64 else on.float32_bound)


@on(ALL)
def test_warp_keeps_the_memory_format(on: UnderTest):
    dtype = on.dtypes[0]
    inputs = {
        n: t.to(on.device, dtype) for n, t in warp_inputs(generator(), channels=8, out_channels=4).items()
    }
    with on.chosen():
        plain = ops.offset_warp(**inputs)
        last = ops.offset_warp(**{**inputs, "x": channels_last(inputs["x"])})
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert_close(last, plain, 1e-14 if dtype == torch.float64 else 1e-6)


@on(KERNELS)
@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("channels_last")], ids=str)
def test_pointwise_keeps_channels_last(on: UnderTest, case: Case):
    """A part of a channels_last tensor keeps its format too, and so do the gradients."""
    inputs = case.inputs(torch.float32, on.device)
    with on.chosen():
        outputs = case.run(inputs)
        found = torch.autograd.grad(sum(o.sum() for o in outputs), list(inputs.values()))
    for t in (*outputs, *found):
        assert t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


@on(KERNELS)
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name in ("plain", "split", "channels_last_c3", "c8_channels_last")],
    ids=str,
)
def test_only_inputs_are_saved(on: UnderTest, case: Case):
    """And the new offset, by which a warp is to follow, which keeps it anyway."""
    inputs = case.inputs(torch.float32, on.device)
    known = {t.untyped_storage().data_ptr() for t in inputs.values() if t is not None}
    saved: list[torch.Tensor] = []
    record = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with record, on.chosen():
        outputs = case.run(inputs)
    if case.op.startswith("motion_") and case.op != "motion_reset":
        known.add(outputs[case.op == "motion_warp"].untyped_storage().data_ptr())
    assert saved and {t.untyped_storage().data_ptr() for t in saved} <= known


@on(KERNELS)
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
def test_warp_makes_the_gradients_that_are_wanted(
    on: UnderTest, layout: torch.memory_format, deterministic: bool
):
    dtype = on.dtypes[0]
    x, *inputs = (t.to(on.device, dtype) for t in warp_inputs(generator()).values())
    x = x.contiguous(memory_format=layout)
    grad = torch.randn(2, 4, 7, 9, generator=generator(1)).to(x)
    backward = on.op("offset_warp_backward")
    every = backward(grad, x, *inputs, 15, deterministic)
    for wanted in range(1, 15):
        some = backward(grad, x, *inputs, wanted, deterministic)
        for i in range(4):
            if wanted & 1 << i:
                assert_close(some[i], every[i], 1e-12 if dtype == torch.float64 else 1e-6, f"wanted {wanted}")
            else:
                assert some[i].numel() == 0, wanted


def every_half(dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern keeps its value, inf and nan too."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@on(KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_storage_is_exact(on: UnderTest, dtype: torch.dtype):
    """Every half value survives load and store; every float rounds to the nearest half, ties to even."""
    every = every_half(dtype)
    every = every[every.isfinite()].view(1, -1).to(on.device)
    open_gate = torch.full_like(every, float("inf"))
    with on.chosen():
        assert ops.gated_blend(open_gate, every, torch.zeros_like(every)).equal(every)
        bits = torch.randint(-(2**31), 2**31 - 1, (1, 200_000), generator=generator())
        floats = bits.to(torch.int32).view(torch.float32).to(on.device)
        floats = torch.cat([floats, (every.float()[:, :-1] + every.float()[:, 1:]) / 2], dim=1)  # the ties
        rounded = ops.motion_reset(torch.full_like(floats, float("inf"), dtype=dtype), floats)
    expected = floats.to(dtype)
    nan = expected.isnan()
    assert rounded[~nan].equal(expected[~nan]) and rounded[nan].isnan().all()


@on(KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_gates_are_rounded_once(on: UnderTest, dtype: torch.dtype):
    """sigmoid and tanh of every half value: what their value within 4e-5 of itself rounds to. A rounding is 2e-4."""
    every = every_half(dtype)
    every = every[~every.isnan()].view(1, -1).to(on.device)
    one, zero = torch.ones_like(every), torch.zeros_like(every)
    with on.chosen():
        gate, squashed = ops.gated_blend(every, one, zero), ops.highway_output(one * float("inf"), every)
    for found, exact in ((gate, every.double().sigmoid()), (squashed, every.double().tanh())):
        nearer, farther = (exact * (1 + sign * 4e-5) for sign in (-1, 1))
        tiny = 2**-126  # float32 below that may be 0
        low, high = nearer.minimum(farther) - tiny, nearer.maximum(farther) + tiny
        assert (low.to(dtype) <= found).all() and (found <= high.to(dtype)).all()


@on(KERNELS)
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_memory_may_stay_float32_beside_half_gates(on: UnderTest, dtype: torch.dtype, channels: int):
    """Maps of 3 channels are no whole vectors of 8 elements."""
    g, of_gates, shape = generator(), (2, 3 * channels, 4, 5), (2, channels, 4, 5)
    gates_x, gates_h = (torch.randn(of_gates, generator=g).to(on.device, dtype) for _ in range(2))
    memory = torch.randn(shape, generator=g).to(on.device)
    inputs = {"gates_x": gates_x, "gates_h": gates_h, "memory": memory}
    for t in inputs.values():
        t.requires_grad_()
    case = Case("memory_update", "mixed", lambda g: {})
    cotangents = [torch.randn(shape, generator=g)]
    with REFERENCE.chosen():
        (expected,), expected_gradients = gradients(case, exactly(inputs), cotangents)
    with on.chosen():
        (out,), found = gradients(case, inputs, cotangents)
    assert out.dtype == torch.float32
    assert_close(out, expected, 1e-6)
    for name, e in expected_gradients.items():
        assert_close(found[name], e, 1e-6 if name == "memory" else TOLERANCE[dtype], name)


@on(ALL)
@pytest.mark.parametrize("op", ALL_OPS)
def test_autocast_casts_features_and_keeps_motion_in_float32(on: UnderTest, op: str):
    case = small_case(op)
    inputs = case.inputs(torch.float32, on.device)
    with on.chosen(), torch.autocast(on.device, dtype=torch.bfloat16):
        outputs = case.run(inputs)
        sum(o.float().sum() for o in outputs).backward()
    in_float32 = {
        "motion_update": (0, 1),
        "motion_gates": (0, 1),
        "motion_warp": (1, 2),
        "memory_update": (0,),
    }
    in_float32 = in_float32.get(op, ())
    for i, o in enumerate(outputs):
        assert o.dtype == (torch.float32 if i in in_float32 else torch.bfloat16)
    with REFERENCE.chosen():
        expected = case.run(exactly(inputs))
    for o, e in zip(outputs, expected):
        assert_close(o, e, 2e-2)
    assert all(t.grad.dtype == torch.float32 for t in inputs.values())


@pytest.mark.skipif(CPU not in ALL, reason=f"the cpu backend is not tested: {NOT_TESTED.get('cpu')}")
def test_the_cpu_warp_is_bitwise_repeatable():
    inputs = [t.float() for t in warp_inputs(generator(), 3, 16, height=20, width=21).values()]
    grad = torch.randn(3, 16, 20, 21)
    first = CPU.op("offset_warp_backward")(grad, *inputs, 15, True)
    for _ in range(10):
        again = CPU.op("offset_warp_backward")(grad, *inputs, 15, True)
        assert all(a.equal(b) for a, b in zip(first, again))


# ---- Maps of more tiles than a launch has blocks, which each take several; k = 1 keeps them quick

LARGE = {
    "c4": {"channels": 4, "height": 129, "width": 131},
    "c20_to_40": {"channels": 20, "out_channels": 40, "height": 131, "width": 131},
    "c72": {"channels": 72, "height": 129, "width": 130},
}


@on(GPU_KERNELS, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LARGE)
def test_large_maps(on: UnderTest, name: str, dtype: torch.dtype):
    options = {"batch": 1, "k": 1, "layout": channels_last, **LARGE[name]}
    check(on, Case("offset_warp", name, partial(warp_inputs, **options)), dtype)


LARGE_CHANNELS = (8, 16, 32, 64)


def check_large_map(on: UnderTest, dtype: torch.dtype, channels: int, layout: Callable[[Tensor], Tensor]):
    """Forward, of so many pixels that a warp of CUDA takes all taps of its tile alone; on PTX four of 256 blocks."""
    options = {"batch": 1, "channels": channels, "out_channels": min(channels, 32), "layout_of_all": layout}
    case = Case("offset_warp", "", partial(warp_inputs, height=128, width=128, **options))
    inputs = case.inputs(dtype, on.device, grad=False)
    with CPU.chosen():
        (expected,) = case.run(exactly(inputs))
    with on.chosen(), few_blocks(4):
        (out,) = case.run(inputs)
    written = ~out.cpu().isnan()
    assert written.sum() == out.numel() // (64 if on is EMULATED else 1)
    assert_close(out.cpu()[written], expected[written], TOLERANCE[dtype])


@on(CUDA_KERNELS, dtypes=DTYPES[1:])
@pytest.mark.parametrize("channels", LARGE_CHANNELS)
@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=["", "channels_last"])
def test_warps_with_tiles_of_their_own(
    on: UnderTest, layout: Callable[[Tensor], Tensor], channels: int, dtype: torch.dtype
):
    check_large_map(on, dtype, channels, layout)


@on(GPU_KERNELS)
def test_long_sums_of_one_sign_stay_exact(on: UnderTest):
    """Tensor cores cut each sum toward zero: unmended, the error would grow with the map. Measured 9e-7."""
    case = Case("offset_warp", "", partial(warp_inputs, batch=1, k=1, channels=4, height=129, width=131))
    exact = {name: t.abs().requires_grad_() for name, t in case.inputs(torch.float64).items()}
    inputs = {name: t.detach().float().to(on.device).requires_grad_() for name, t in exact.items()}
    with REFERENCE.chosen():
        out = case.run(exact)[0]
        (expected,) = torch.autograd.grad(out.sum(), exact["weight"])
    with on.chosen():
        out = case.run(inputs)[0]
        (found,) = torch.autograd.grad((out * torch.ones_like(out)).sum(), inputs["weight"])
    assert_close(found, expected, 3e-6)


@pytest.mark.skipif(CPU not in ALL, reason=f"cpu is not tested: {NOT_TESTED.get('cpu')}")
def test_half_denormals_are_read_where_those_of_float_are_flushed() -> None:
    every = torch.arange(65536).to(torch.int32).to(torch.int16).view(torch.float16).view(1, -1, 1, 1)
    torch.set_flush_denormal(True)
    try:
        found = torch.ops.motionrnn_ext.gated_blend(torch.zeros_like(every), every, every)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(found, every, rtol=0, atol=0, equal_nan=True)
