"""Gradients that do not depend on the order of blocks, under torch.use_deterministic_algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from case import Case, generator
from checking import check
from comparing import TOLERANCE, assert_close
from torch import Tensor
from under_test import CUDA_KERNELS, DTYPES, EMULATED, GPU_KERNELS, UnderTest, on, set_seed
from warp_cases import WARP_CASES, motion_inputs, warp_inputs

from motionrnn_ext.backends import reference

IN_ANY_ORDER = [t for t in GPU_KERNELS if t is EMULATED]


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# Every way to divide channels, every way to leave grad_x; the rest of backward is the same as ever.
_KINDS = "plain several_blocks one_pixel k9 empty no_out_channels integer absurd all_cut misaligned"
_KINDS += " c12 c24 c33 c72 c20_to_3 c8_to_33"


@on(GPU_KERNELS, dtypes=DTYPES)
@pytest.mark.parametrize(
    "case", [c for c in WARP_CASES if c.name.removesuffix("_channels_last") in _KINDS.split()], ids=str
)
def test_deterministic_gradients(on: UnderTest, case: Case, dtype: torch.dtype, deterministic: None):
    check(on, case, dtype)


@on(GPU_KERNELS)
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_deterministic_gradients_of_any_size(on: UnderTest, scale: float):
    x, *rest = (t.float().to(on.device) for t in warp_inputs(generator(), channels=8).values())
    grad = torch.randn(x.shape, generator=generator(1)).to(x) * scale
    backward = on.op("offset_warp_backward")
    x_exact = x.cpu().double().requires_grad_()
    out = reference.offset_warp(x_exact, *(t.cpu().double() for t in rest))
    (expected,) = torch.autograd.grad(out, x_exact, grad.cpu().double())
    assert_close(backward(grad, x, *rest, 1, True)[0], expected, 1e-5)


@on(GPU_KERNELS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["grad", "x", "offset", "mask_logits", "weight"])
def test_deterministic_gradients_show_what_is_not_finite(
    on: UnderTest, where: str, value: float, layout: torch.memory_format
):
    """Deterministic gradients show what is not finite, as the others do: gradient scaling looks for it."""
    inputs = {"grad": torch.randn(2, 8, 7, 9, generator=generator(1)), **warp_inputs(generator(), channels=8)}
    inputs[where][1, 3, 2, 1] = value
    tensors = [t.float().to(on.device) for t in inputs.values()]
    tensors[1] = tensors[1].contiguous(memory_format=layout)
    others, found = (on.op("offset_warp_backward")(*tensors, 15, flag) for flag in (False, True))
    if value != value or where not in ("offset", "mask_logits"):  # infinity: a far place, an open gate
        assert not all(t.isfinite().all() for t in others)
    for f, o in zip(found, others):
        assert f.isfinite().equal(o.isfinite())
        assert_close(f[f.isfinite()], o[o.isfinite()], 1e-6)


@on(CUDA_KERNELS, dtypes=DTYPES[1:])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("channels", [3, 8, 16, 32, 40])
def test_deterministic_gradients_of_an_infinite_one(
    on: UnderTest, channels: int, layout: torch.memory_format, dtype: torch.dtype
):
    """No fixed point holds it: every kernel then sums floats, each into its own place."""
    made = warp_inputs(generator(), channels=channels, height=3, width=7)
    grad = torch.randn(2, channels, 3, 7, generator=generator(1))
    grad[1, 2, 2, 1] = float("inf")
    x, mask, weight, grad = (
        t.to(on.device, dtype).contiguous(memory_format=layout)
        for t in (made["x"], made["mask_logits"], made["weight"], grad)
    )
    tensors = (grad, x, made["offset"].float().to(on.device), mask, weight.contiguous())
    others, found = (on.op("offset_warp_backward")(*tensors, 15, flag) for flag in (False, True))
    assert not others[0].isfinite().all() and others[0].isfinite().any()
    for f, o in zip(found, others):
        assert f.isfinite().equal(o.isfinite())
        assert_close(f[f.isfinite()], o[o.isfinite()], TOLERANCE[dtype])


@pytest.fixture
def seed() -> Iterator[Callable[[int], None]]:
    yield set_seed
    set_seed(0)


def run_backward(on: UnderTest, dtype: torch.dtype, fused: bool, deterministic: bool) -> tuple[Tensor, ...]:
    """Return the gradients of a case where many blocks add to the same pixels of grad_x."""
    options = {"batch": 1, "channels": 16, "height": 9, "width": 15, "offset": lambda n: 6 * n}
    make = motion_inputs if fused else warp_inputs
    inputs = Case("", "", partial(make, **options)).inputs(dtype, grad=False)
    x = inputs["x"]
    grad = torch.randn(x.shape, generator=generator(1)).to(x)
    if not fused:
        return on.op("offset_warp_backward")(grad, *inputs.values(), 15, deterministic)
    _, update, candidate, offset, trend, mask, weight = inputs.values()
    saved = (x, update, candidate, offset, offset + trend, mask, weight)
    return on.op("motion_warp_backward")(grad, offset, trend, *saved, 0.5, 1e4, 15, deterministic)


@on(IN_ANY_ORDER, dtypes=DTYPES)
@pytest.mark.parametrize("fused", [False, True], ids=["offset_warp", "motion_warp"])
def test_deterministic_gradients_do_not_depend_on_the_order(
    on: UnderTest, dtype: torch.dtype, fused: bool, seed: Callable[[int], None]
):
    first = run_backward(on, dtype, fused, deterministic=True)
    for value in range(1, 31):
        seed(value)
        assert all(a.equal(b) for a, b in zip(first, run_backward(on, dtype, fused, deterministic=True)))


@on(IN_ANY_ORDER)
@pytest.mark.parametrize("fused", [False, True], ids=["offset_warp", "motion_warp"])
def test_other_gradients_depend_on_the_order(on: UnderTest, fused: bool, seed: Callable[[int], None]):
    """Or the test above would prove nothing; only those of x, the others have a fixed order anyway."""
    first = run_backward(on, torch.float32, fused, deterministic=False)
    same = []
    for value in range(1, 6):
        seed(value)
        again = run_backward(on, torch.float32, fused, deterministic=False)
        same.append([a.equal(b) for a, b in zip(first, again)])
    assert not any(s[0] for s in same)
    assert all(all(s[1:]) for s in same)


@on(GPU_KERNELS)
def test_deterministic_gradients_are_bitwise_repeatable(on: UnderTest):
    inputs = [
        t.float().to(on.device)
        for t in warp_inputs(generator(), 2, 16, height=9, width=15, offset=lambda n: 6 * n).values()
    ]
    grad = torch.randn(inputs[0].shape, generator=generator(1)).to(on.device)
    times = 3 if on.is_slow else 30
    first, *others = (on.op("offset_warp_backward")(grad, *inputs, 15, True) for _ in range(times))
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other))
