"""What only the CUDA kernels have: one op for motion and warp, gradients that do not depend on the order of blocks."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from case import Case, channels_last
from comparing import TOLERANCE, assert_close
from test_ops import exactly, generator, gradients
from torch import Tensor
from under_test import CUDA_KERNELS, DTYPES, EMULATED, EMULATOR, REFERENCE, UnderTest, on
from warp_cases import MOTION_CASES, WARP_CASES, motion_inputs, warp_inputs

from motionrnn_ext.backends import reference
from motionrnn_ext.layers import MotionGRU, MotionGRUCell


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# ---- The fused pair: its values and gradients are compared in test_ops

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
    every, some = (on.op("motion_warp_backward")(*grads, *saved, 0.5, bits, False) for bits in (15, wanted))
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


# ---- Gradients that do not depend on the order of blocks

IN_ANY_ORDER = [t for t in CUDA_KERNELS if t is EMULATED]


def check(on: UnderTest, case: Case, dtype: torch.dtype) -> None:
    """Values and gradients against the reference in float64."""
    inputs = case.inputs(dtype, on.device)
    exact = exactly(inputs)
    with REFERENCE.chosen():
        expected = case.run(exact)
        cotangents = [torch.randn(e.shape, generator=generator(1)).to(dtype).double() for e in expected]
        wanted = torch.autograd.grad(expected, list(exact.values()), cotangents)
    with on.chosen():
        actual, found = gradients(case, inputs, cotangents)
    for a, e in zip(actual, expected):
        assert_close(a, e, TOLERANCE[dtype])
    for name, w in zip(exact, wanted):
        assert_close(found[name], w, TOLERANCE[dtype], f"gradient of {name}")


# Every way to divide channels, every way to leave grad_x; the rest of backward is the same as ever.
_KINDS = "plain several_blocks one_pixel k9 empty no_out_channels integer absurd all_cut misaligned"
_KINDS += " c12 c24 c33 c72 c20_to_3 c8_to_33"


@on(CUDA_KERNELS, dtypes=DTYPES)
@pytest.mark.parametrize(
    "case", [c for c in WARP_CASES if c.name.removesuffix("_channels_last") in _KINDS.split()], ids=str
)
def test_deterministic_gradients(on: UnderTest, case: Case, dtype: torch.dtype, deterministic: None):
    check(on, case, dtype)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_deterministic_gradients_of_any_size(on: UnderTest, scale: float):
    x, *rest = (t.float().to(on.device) for t in warp_inputs(generator(), channels=8).values())
    grad = torch.randn(x.shape, generator=generator(1)).to(x) * scale
    backward = on.op("offset_warp_backward")
    x_exact = x.cpu().double().requires_grad_()
    out = reference.offset_warp(x_exact, *(t.cpu().double() for t in rest))
    (expected,) = torch.autograd.grad(out, x_exact, grad.cpu().double())
    assert_close(backward(grad, x, *rest, 1, True)[0], expected, 1e-5)


@on(CUDA_KERNELS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["grad", "x", "offset", "mask_logits", "weight"])
def test_deterministic_gradients_show_what_is_not_finite(
    on: UnderTest, where: str, value: float, layout: torch.memory_format
):
    """As the others do: gradient scaling looks for it."""
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


@pytest.fixture
def seed() -> Iterator[Callable[[int], None]]:
    """Sets the order in which the emulator runs blocks and threads; 0 is that of their numbers."""
    set_seed = ctypes.CDLL(EMULATOR).motionrnn_ext_emulator_seed
    yield lambda value: set_seed(ctypes.c_uint64(value))
    set_seed(ctypes.c_uint64(0))


def run_backward(on: UnderTest, dtype: torch.dtype, fused: bool, deterministic: bool) -> tuple[Tensor, ...]:
    """Of a case where many blocks add to the same pixels of grad_x."""
    options = {"batch": 1, "channels": 16, "height": 9, "width": 15, "offset": lambda n: 6 * n}
    make = motion_inputs if fused else warp_inputs
    inputs = Case("", "", partial(make, **options)).inputs(dtype, grad=False)
    x = inputs["x"]
    grad = torch.randn(x.shape, generator=generator(1)).to(x)
    if not fused:
        return on.op("offset_warp_backward")(grad, *inputs.values(), 15, deterministic)
    _, update, candidate, offset, trend, mask, weight = inputs.values()
    saved = (x, update, candidate, offset, offset + trend, mask, weight)
    return on.op("motion_warp_backward")(grad, offset, trend, *saved, 0.5, 15, deterministic)


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


@on(CUDA_KERNELS)
def test_deterministic_gradients_are_bitwise_repeatable(on: UnderTest):
    inputs = [
        t.float().to(on.device)
        for t in warp_inputs(generator(), 2, 16, height=9, width=15, offset=lambda n: 6 * n).values()
    ]
    grad = torch.randn(inputs[0].shape, generator=generator(1)).to(on.device)
    first, *others = (on.op("offset_warp_backward")(grad, *inputs, 15, True) for _ in range(30))
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other))


# ---- Maps of more tiles than a launch has blocks, which each take several; k = 1 keeps them quick

LARGE = {
    "c4": {"channels": 4, "height": 129, "width": 131},
    "c20_to_40": {"channels": 20, "out_channels": 40, "height": 131, "width": 131},
    "c72": {"channels": 72, "height": 129, "width": 130},
}


@on(CUDA_KERNELS, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LARGE)
def test_large_maps(on: UnderTest, name: str, dtype: torch.dtype):
    options = {"batch": 1, "k": 1, "layout": channels_last, **LARGE[name]}
    check(on, Case("offset_warp", name, partial(warp_inputs, **options)), dtype)


@on(CUDA_KERNELS)
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
