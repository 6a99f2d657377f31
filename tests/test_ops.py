"""Every op on every backend against the reference in float64: values, gradients, layouts, edges."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, OPS, Case, small_case, warp_inputs
from comparing import TOLERANCE, assert_close, relative_error

import motionrnn_ext
from motionrnn_ext import ops

BACKENDS = [name for name in motionrnn_ext.available_backends() if name in ("reference", "cpu")]
DTYPES = list(TOLERANCE)


def test_the_cpu_backend_is_tested():
    if "cpu" not in BACKENDS:
        from motionrnn_ext.backends import unavailable_reason

        pytest.skip(f"the cpu backend is not tested: {unavailable_reason('cpu')}")


def gradients(case: Case, inputs, cotangents):
    outputs = case.run(inputs)
    wanted = [t for t in inputs.values() if t is not None]
    found = torch.autograd.grad(
        outputs, wanted, [c.to(o.dtype) for c, o in zip(cotangents, outputs)], allow_unused=True
    )
    return outputs, dict(zip([n for n, t in inputs.items() if t is not None], found))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend: str, case: Case, dtype: torch.dtype):
    inputs = case.inputs(dtype)
    exact = {n: None if t is None else t.detach().double().requires_grad_() for n, t in inputs.items()}
    with motionrnn_ext.backend("reference"):
        shapes = [o.shape for o in case.run(exact)]
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(s, generator=generator).to(dtype).double() for s in shapes]
        expected, expected_gradients = gradients(case, exact, cotangents)
    with motionrnn_ext.backend(backend):
        actual, actual_gradients = gradients(case, inputs, cotangents)
    tolerance = TOLERANCE[dtype]
    for i, (a, e) in enumerate(zip(actual, expected)):
        assert_close(a, e, tolerance, f"output {i}")
    for name, e in expected_gradients.items():
        assert actual_gradients[name].dtype == inputs[name].dtype
        assert_close(actual_gradients[name], e, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_as_exact_as_float32_can_be(backend: str):
    """Far inside the stated 5e-5: measured 1.2e-7 to 6e-7 over all cases."""
    for case in CASES:
        inputs = case.inputs(torch.float32, grad=False)
        exact = {n: None if t is None else t.double() for n, t in inputs.items()}
        with motionrnn_ext.backend("reference"):
            expected = case.run(exact)
        with motionrnn_ext.backend(backend):
            actual = case.run(inputs)
        for a, e in zip(actual, expected):
            assert relative_error(a, e) < 1.5e-6, case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [1e4, 1e7, 1e30, float("inf"), float("-inf"), float("nan")])
def test_absurd_offsets_sample_zero_and_nan_gives_nan(backend: str, value: float):
    inputs = warp_inputs(torch.Generator().manual_seed(0), channels=16)
    x, offset, mask, weight = (t.float().requires_grad_() for t in inputs.values())
    offset = offset.detach().clone()
    offset[:, :, 3, 4] = value
    offset.requires_grad_()
    with motionrnn_ext.backend(backend):
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_outside_of_reach_does_not_leak(backend: str):
    """A tap off the map reads 0, whatever the pixels at the border hold."""
    x = torch.full((1, 4, 5, 6), float("nan"))
    offset, mask, weight = torch.full((1, 18, 5, 6), 40.0), torch.zeros(1, 9, 5, 6), torch.ones(4, 4, 3, 3)
    with motionrnn_ext.backend(backend):
        assert (ops.offset_warp(x, offset, mask, weight) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_offset_and_open_mask_is_a_convolution(backend: str):
    x, weight = torch.randn(2, 5, 6, 7, dtype=torch.float64), torch.randn(4, 5, 3, 3, dtype=torch.float64)
    offset, mask = (
        torch.zeros(2, 18, 6, 7, dtype=torch.float64),
        torch.full((2, 9, 6, 7), 800.0, dtype=torch.float64),
    )
    with motionrnn_ext.backend(backend):
        out = ops.offset_warp(x, offset, mask, weight)
    assert_close(out, torch.nn.functional.conv2d(x, weight, padding=1), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_warp_keeps_the_memory_format(backend: str):
    inputs = warp_inputs(torch.Generator().manual_seed(0), channels=8, out_channels=4)
    with motionrnn_ext.backend(backend):
        plain = ops.offset_warp(**inputs)
        last = ops.offset_warp(**{**inputs, "x": inputs["x"].contiguous(memory_format=torch.channels_last)})
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert_close(last, plain, 1e-14)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("plain", "split", "channels_last")], ids=str)
def test_only_inputs_are_saved(backend: str, case: Case):
    inputs = case.inputs(torch.float32)
    known = {t.untyped_storage().data_ptr() for t in inputs.values() if t is not None}
    saved: list[torch.Tensor] = []
    record = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with record, motionrnn_ext.backend(backend):
        case.run(inputs)
    assert saved and {t.untyped_storage().data_ptr() for t in saved} <= known


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("wanted", range(1, 16))
def test_warp_makes_the_gradients_that_are_wanted(backend: str, wanted: int):
    inputs = list(warp_inputs(torch.Generator().manual_seed(0)).values())
    grad = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    backward = torch.ops.motionrnn_ext.offset_warp_backward
    every, some = backward(grad, *inputs, 15, False), backward(grad, *inputs, wanted, False)
    for i in range(4):
        assert some[i].equal(every[i]) if wanted & 1 << i else some[i].numel() == 0


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_the_warp_is_bitwise_repeatable(backend: str):
    inputs = [
        t.float() for t in warp_inputs(torch.Generator().manual_seed(0), 3, 16, height=20, width=21).values()
    ]
    grad = torch.randn(3, 16, 20, 21)
    first = torch.ops.motionrnn_ext.offset_warp_backward(grad, *inputs, 15, True)
    for _ in range(10):
        again = torch.ops.motionrnn_ext.offset_warp_backward(grad, *inputs, 15, True)
        assert all(a.equal(b) for a, b in zip(first, again))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend is not available")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_storage_is_exact(dtype: torch.dtype):
    """Every half value survives load and store; every float rounds to the nearest half, ties to even."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()].view(1, -1)
    open_gate = torch.full_like(every, float("inf"))
    with motionrnn_ext.backend("cpu"):
        assert ops.gated_blend(open_gate, every, torch.zeros_like(every)).equal(every)
        bits = torch.randint(-(2**31), 2**31 - 1, (1, 200_000), generator=torch.Generator().manual_seed(0))
        floats = bits.to(torch.int32).view(torch.float32)
        floats = torch.cat([floats, (every.float()[:, :-1] + every.float()[:, 1:]) / 2], dim=1)  # the ties
        rounded = ops.motion_reset(torch.full_like(floats, float("inf"), dtype=dtype), floats)
    expected = floats.to(dtype)
    nan = expected.isnan()
    assert rounded[~nan].equal(expected[~nan]) and rounded[nan].isnan().all()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend is not available")
def test_memory_may_stay_float32_beside_half_gates():
    g = torch.Generator().manual_seed(0)
    gates_x, gates_h = (torch.randn(2, 9, 4, 5, generator=g).bfloat16().requires_grad_() for _ in range(2))
    memory = torch.randn(2, 3, 4, 5, generator=g).requires_grad_()
    with motionrnn_ext.backend("reference"):
        expected = ops.memory_update(gates_x.double(), gates_h.double(), memory.double())
        expected_gradients = torch.autograd.grad(expected.sum(), (gates_x, gates_h, memory))
    with motionrnn_ext.backend("cpu"):
        out = ops.memory_update(gates_x, gates_h, memory)
        found = torch.autograd.grad(out.sum(), (gates_x, gates_h, memory))
    assert out.dtype == torch.float32
    assert_close(out, expected, 1e-6)
    for f, e, tolerance in zip(found, expected_gradients, (2e-2, 2e-2, 1e-6)):
        assert_close(f, e, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_autocast_casts_features_and_keeps_motion_in_float32(backend: str, op: str):
    case = small_case(op)
    inputs = case.inputs(torch.float32)
    with motionrnn_ext.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = case.run(inputs)
        sum(o.float().sum() for o in outputs).backward()
    if op == "motion_update":
        assert all(o.dtype == torch.float32 for o in outputs)
    elif op == "memory_update":
        assert outputs[0].dtype == torch.float32  # memory's dtype
    else:
        assert outputs[0].dtype == torch.bfloat16
    with motionrnn_ext.backend("reference"):
        expected = case.run({n: None if t is None else t.detach().double() for n, t in inputs.items()})
    for o, e in zip(outputs, expected):
        assert_close(o, e, 2e-2)
    assert all(t.grad.dtype == torch.float32 for t in inputs.values())
