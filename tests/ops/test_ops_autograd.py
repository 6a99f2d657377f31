"""PyTorch's own checks of an op: gradcheck, second derivatives, opcheck, torch.compile."""

from __future__ import annotations

import pytest
import torch
from case import Case, channels_last, generator
from cases import ALL_OPS, OPS, PARAMETERS, small_case
from comparing import TOLERANCE, assert_close
from compiling import nothing_compiled  # noqa: F401
from features import feature
from under_test import ALL, AUTO, CUDA_KERNELS, KERNELS, REFERENCE, UnderTest, on
from warp_cases import MOTION_CASES, warp_inputs

from motionrnn_ext import ops

# gradcheck's finite differences need float64; the CUDA kernels have none, and their gradients are compared in test_ops.
IN_DOUBLE = [t for t in ALL if torch.float64 in t.dtypes]


def function_of(op: str, device: str = "cpu", dtype: torch.dtype = torch.float64):
    """The op as a function of a flat list of tensors, which gradcheck wants, and those tensors."""
    case = small_case(op)
    inputs = case.inputs(dtype, device)
    if op == "offset_warp":  # away from the kinks of bilinear sampling
        with torch.no_grad():
            inputs["offset"].copy_(inputs["offset"].floor() + 0.2 + 0.6 * torch.rand_like(inputs["offset"]))
    return lambda *tensors: case.run(dict(zip(inputs, tensors))), list(inputs.values())


@on(IN_DOUBLE)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str, on: UnderTest):
    function, inputs = function_of(op)
    with on.chosen():  # fast: the derivative in a random direction
        assert torch.autograd.gradcheck(function, inputs, fast_mode=on.is_slow)


@feature("second")
@on(IN_DOUBLE)
@pytest.mark.parametrize("op", OPS)
def test_gradgradcheck(op: str, on: UnderTest):
    slow_warp = on.is_slow and op == "offset_warp"
    function, inputs = (ops.offset_warp, one_tap()) if slow_warp else function_of(op)
    with on.chosen():
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=on.is_slow)


@on(IN_DOUBLE)
def test_gradcheck_of_a_warp_of_one_tap(on: UnderTest):
    """Every input's difference, also where calls are slow."""
    with on.chosen():
        assert torch.autograd.gradcheck(ops.offset_warp, one_tap())


def one_tap() -> list[torch.Tensor]:
    made = warp_inputs(generator(), batch=1, k=1, channels=2, height=2, width=3)
    made["offset"] = made["offset"].floor() + 0.3
    return [t.requires_grad_() for t in made.values()]


@feature("second")
@on(ALL)
@pytest.mark.parametrize("op", ALL_OPS)
def test_third_derivatives(op: str, on: UnderTest):
    dtype = on.dtypes[0]
    function, inputs = function_of(op, on.device, dtype)

    def third(test: UnderTest, inputs: list[torch.Tensor]):
        with test.chosen():
            total = sum((o * o * o).sum() for o in function(*inputs))
            for _ in range(2):
                grads = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
                total = sum((g * g).sum() for g in grads if g is not None)
            return torch.autograd.grad(total, inputs)

    expected = third(REFERENCE, [t.detach().cpu().double().requires_grad_() for t in inputs])
    for a, e in zip(third(on, inputs), expected):
        assert_close(a, e, 1e-12 if dtype == torch.float64 else TOLERANCE[dtype])


@feature("forward_mode", on=["reference"])
@feature("func", on=["reference"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_forward_mode_and_functional_transforms(op: str):
    """The default is the reference; a kernel would drop the tangent without a word."""
    function, inputs = function_of(op)
    inputs = tuple(t.detach() for t in inputs)
    tangents = tuple(torch.randn_like(t) for t in inputs)
    step = 1e-6
    above, below = (function(*[t + s * d for t, d in zip(inputs, tangents)]) for s in (step, -step))
    _, found = torch.func.jvp(function, inputs, tangents)
    for f, a, b in zip(found, above, below):
        assert_close(f, (a - b) / (2 * step), 1e-7)  # central differences
    with torch.autograd.forward_ad.dual_level():
        dual = function(*[torch.autograd.forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents)])
        for o, f in zip(dual, found):
            assert_close(torch.autograd.forward_ad.unpack_dual(o).tangent, f, 1e-12)

    leaves = [t.clone().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(sum(o.sum() for o in function(*leaves)), leaves)
    gradient = torch.func.grad(
        lambda *t: sum(o.sum() for o in function(*t)), argnums=tuple(range(len(inputs)))
    )
    for a, e in zip(gradient(*inputs), expected):
        assert_close(a, e, 1e-12)
    stacked = torch.vmap(function)(*[torch.stack([t, t + 0.1]) for t in inputs])
    for s, o in zip(stacked, function(*[t + 0.1 for t in inputs])):
        assert_close(s[1], o, 1e-12)


@feature("forward_mode", refused=True)
@feature("func", refused=True)
@on(KERNELS)
@pytest.mark.parametrize("op", ALL_OPS)
def test_a_kernel_by_name_refuses_forward_mode(op: str, on: UnderTest):
    function, inputs = function_of(op, on.device, on.dtypes[0])
    inputs = tuple(t.detach() for t in inputs)
    with on.chosen():
        with pytest.raises(RuntimeError, match="choose 'auto' or 'reference'"):
            torch.func.jvp(function, inputs, inputs)
        with pytest.raises(RuntimeError, match="choose 'auto' or 'reference'"):
            torch.func.grad(lambda *t: sum(o.sum() for o in function(*t)))(*inputs)


@on(KERNELS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, on: UnderTest):
    inputs = list(small_case(op).inputs(torch.float32, on.device).values())
    torch.library.opcheck(on.op(op).default, (*inputs, *PARAMETERS.get(op, ())))


@on(KERNELS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_backward(op: str, on: UnderTest):
    case = small_case(op)
    inputs = list(case.inputs(torch.float32, on.device, grad=False).values())
    with on.chosen():
        outputs = case.run(dict(zip(case.inputs(torch.float32), inputs)))
    grads = [torch.randn_like(o) for o in outputs]
    saved = [*inputs[:3], outputs[0]] if op == "motion_update" else inputs
    rest = (15, False) if op == "offset_warp" else PARAMETERS.get(op, ())
    torch.library.opcheck(on.op(f"{op}_backward").default, (*grads, *saved, *rest))


@on(KERNELS)
def test_opcheck_without_a_highway_and_with_channels_last(on: UnderTest):
    o, content = (torch.randn(2, 3, 4, 5, device=on.device, requires_grad=True) for _ in range(2))
    torch.library.opcheck(on.op("highway_output").default, (o, content, None))
    torch.library.opcheck(on.op("highway_output").default, (channels_last(o), content, None))
    inputs = [t.float().to(on.device) for t in warp_inputs(generator()).values()]
    inputs[0] = channels_last(inputs[0])
    torch.library.opcheck(on.op("offset_warp").default, tuple(t.requires_grad_() for t in inputs))


@on(CUDA_KERNELS)
@pytest.mark.parametrize("case", MOTION_CASES[:4], ids=str)
def test_opcheck_of_motion_warp(on: UnderTest, case: Case):
    inputs = case.inputs(torch.float32, on.device)
    torch.library.opcheck(on.op("motion_warp").default, (*inputs.values(), 0.5, 1e4))
    x, update, candidate, offset, trend, mask, weight = (t.detach() for t in inputs.values())
    out, new_offset, new_trend = on.op("motion_warp")(
        x, update, candidate, offset, trend, mask, weight, 0.5, 1e4
    )
    tensors = (out, new_offset, new_trend, x, update, candidate, offset, new_offset, mask, weight)
    torch.library.opcheck(on.op("motion_warp_backward").default, (*tensors, 0.5, 1e4, 15, False))


@feature("compile")
@pytest.mark.usefixtures("nothing_compiled")
@on([AUTO, *ALL])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", ALL_OPS)
def test_compiles_without_a_graph_break(op: str, compiler: str, on: UnderTest):
    case = small_case(op)
    inputs = case.inputs(torch.float32, on.device)

    def step(**tensors):
        return case.run(tensors)

    with on.chosen():
        expected = step(**inputs)
        expected_gradients = torch.autograd.grad(sum(o.sum() for o in expected), list(inputs.values()))
        compiled = torch.compile(step, fullgraph=True, backend=compiler)(**inputs)
        found = torch.autograd.grad(sum(o.sum() for o in compiled), list(inputs.values()))
    for a, e in zip((*compiled, *found), (*expected, *expected_gradients)):
        assert_close(a, e, 1e-6)
