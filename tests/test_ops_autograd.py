"""What PyTorch asks of an op: gradcheck, second derivatives, opcheck, torch.compile."""

from __future__ import annotations

import pytest
import torch
from cases import OPS, small_case, warp_inputs
from comparing import assert_close

import motionrnn_ext

BACKENDS = [name for name in motionrnn_ext.available_backends() if name in ("reference", "cpu")]
NATIVE = pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend is not available")


def function_of(op: str):
    """The op as a function of a flat list of tensors, which gradcheck wants, and those tensors in float64."""
    case = small_case(op)
    inputs = case.inputs(torch.float64)
    if op == "offset_warp":  # away from the kinks of bilinear sampling
        with torch.no_grad():
            inputs["offset"].copy_(inputs["offset"].floor() + 0.2 + 0.6 * torch.rand_like(inputs["offset"]))
    return lambda *tensors: case.run(dict(zip(inputs, tensors))), list(inputs.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str, backend: str):
    function, inputs = function_of(op)
    with motionrnn_ext.backend(backend):
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_gradgradcheck(op: str, backend: str):
    function, inputs = function_of(op)
    with motionrnn_ext.backend(backend):
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("op", OPS)
def test_third_derivatives(op: str):
    function, inputs = function_of(op)

    def third(backend: str):
        with motionrnn_ext.backend(backend):
            total = sum((o * o * o).sum() for o in function(*inputs))
            for _ in range(2):
                grads = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
                total = sum((g * g).sum() for g in grads if g is not None)
            return torch.autograd.grad(total, inputs)

    expected = third("reference")
    for backend in BACKENDS:
        for a, e in zip(third(backend), expected):
            assert_close(a, e, 1e-12)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_and_functional_transforms(op: str):
    """By default they run on the reference; a kernel would drop the tangent without a word."""
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


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_a_kernel_by_name_refuses_forward_mode(op: str):
    function, inputs = function_of(op)
    inputs = tuple(t.detach() for t in inputs)
    with motionrnn_ext.backend("cpu"), pytest.raises(RuntimeError, match="choose 'auto' or 'reference'"):
        torch.func.jvp(function, inputs, inputs)


PARAMETERS = {"motion_update": (0.5,), "memory_update": (1.0,)}


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str):
    inputs = list(small_case(op).inputs(torch.float32).values())
    parameters = PARAMETERS.get(op, ())
    torch.library.opcheck(getattr(torch.ops.motionrnn_ext, op).default, (*inputs, *parameters))


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_backward(op: str):
    case = small_case(op)
    inputs = list(case.inputs(torch.float32, grad=False).values())
    grads = [torch.randn_like(o) for o in case.run(dict(zip(case.inputs(torch.float32), inputs)))]
    saved = inputs[:3] if op == "motion_update" else inputs
    rest = (15, False) if op == "offset_warp" else PARAMETERS.get(op, ())
    backward = getattr(torch.ops.motionrnn_ext, f"{op}_backward").default
    torch.library.opcheck(backward, (*grads, *saved, *rest))


@NATIVE
def test_opcheck_without_a_highway_and_with_channels_last():
    o, content = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.motionrnn_ext.highway_output.default, (o, content, None))
    inputs = [t.float().requires_grad_() for t in warp_inputs(torch.Generator().manual_seed(0)).values()]
    inputs[0] = inputs[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.motionrnn_ext.offset_warp.default, tuple(inputs))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", OPS)
def test_compiles_without_a_graph_break(op: str, compiler: str):
    torch._dynamo.reset()  # the ops share this test's code, and Dynamo recompiles one code object 8 times at most
    case = small_case(op)
    inputs = case.inputs(torch.float32)

    def step(**tensors):
        return case.run(tensors)

    expected = step(**inputs)
    expected_gradients = torch.autograd.grad(sum(o.sum() for o in expected), list(inputs.values()))
    compiled = torch.compile(step, fullgraph=True, backend=compiler)(**inputs)
    found = torch.autograd.grad(sum(o.sum() for o in compiled), list(inputs.values()))
    for a, e in zip((*compiled, *found), (*expected, *expected_gradients)):
        assert_close(a, e, 1e-6)


@NATIVE
def test_the_backend_is_chosen_at_trace_time():
    """Another choice is another graph, without a graph break."""
    case = small_case("gated_blend")
    inputs = case.inputs(torch.float32, grad=False)
    compiled = torch.compile(lambda tensors: case.run(tensors)[0], fullgraph=True, backend="eager")
    results = []
    for name in ("cpu", "reference", "cpu"):
        with motionrnn_ext.backend(name):
            results.append(compiled(inputs))
    assert results[0].equal(results[2])
    assert_close(results[1], results[0], 1e-6)
