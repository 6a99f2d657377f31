"""vmap, forward-mode differentiation and torch.func around the kernels; the FLOPs that torch counts."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch
from calls import Calls
from cases import ALL_OPS, OPS, small_case
from comparing import assert_close
from features import feature
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode
from under_test import ALL, CPU, CUDA_KERNELS, KERNELS, NOT_TESTED, REFERENCE, UnderTest, on
from warp_cases import warp_inputs

from motionrnn_ext import MotionGRU, MotionRNN

NEEDS_CPU = pytest.mark.skipif(CPU not in ALL, reason=f"cpu is not tested: {NOT_TESTED.get('cpu')}")
EXACT = 1e-12  # of float64, relative


@pytest.fixture
def no_warning() -> Iterator[None]:
    """vmap warns where it falls back to a loop, autograd where it would be wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def function_and_inputs(op: str, dtype: torch.dtype, device: str):
    case = small_case(op)
    inputs = case.inputs(dtype, device, grad=False)
    return lambda *tensors: case.run(dict(zip(inputs, tensors))), tuple(inputs.values())


def same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected):
        assert_close(f, e, tolerance)


# ---- vmap

# Which inputs are mapped, by position, and where their mapped dimension stands.
MAPPED = {"all": lambda i, t: 0, "last": lambda i, t: t.dim(), "one": lambda i, t: 0 if i == 0 else None}


@feature("vmap")
@on(KERNELS)
@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("op", ALL_OPS)
def test_vmap_is_one_call(op: str, mapped: str, on: UnderTest, no_warning: None):
    """But of a weight that is mapped, too: then a call each."""
    function, inputs = function_and_inputs(op, on.dtypes[0], on.device)
    dims = tuple(MAPPED[mapped](i, t) for i, t in enumerate(inputs))
    stacked = tuple(t if d is None else torch.stack([t, -t, t + 0.1], d) for t, d in zip(inputs, dims))
    with on.chosen(), Calls(on.namespace) as calls:
        found = vmap(function, dims)(*stacked)
    names = [op]
    if op == "motion_warp" and not on.runs_cuda_kernels:
        names = ["motion_update", "offset_warp"]
    slices = 3 if dims[-1] is not None else 1
    assert calls.names == [n for n in names for _ in range(slices if n.endswith(("warp", "gates")) else 1)]
    with on.chosen():
        for i in range(3):
            expected = function(*[t if d is None else t.select(d, i) for t, d in zip(stacked, dims)])
            same([f[i] for f in found], expected, EXACT if on.dtypes[0] == torch.float64 else 1e-6)


@feature("vmap", on=["reference"])
@pytest.mark.parametrize("op", OPS)
def test_vmap_of_the_reference(op: str):
    function, inputs = function_and_inputs(op, torch.float64, "cpu")
    with REFERENCE.chosen():
        found = vmap(function)(*[torch.stack([t, t + 0.1]) for t in inputs])
        same([f[1] for f in found], function(*[t + 0.1 for t in inputs]), EXACT)


@feature("vmap")
@on(KERNELS)
@pytest.mark.parametrize("wanted", ["all", "but the last"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_gradients_of_many_outputs_at_once(op: str, wanted: str, on: UnderTest, no_warning: None):
    """is_grads_batched, which is vmap of a backward: what `jacobian(vectorize=True)` does."""
    function, inputs = function_and_inputs(op, on.dtypes[0], on.device)
    leaves = [t.clone().requires_grad_() for t in inputs]
    leaves[-1].requires_grad_(wanted == "all")
    with on.chosen():
        outputs = function(*leaves)
        leaves = [t for t in leaves if t.requires_grad]
        vectors = [torch.randn(3, *o.shape, dtype=o.dtype, device=o.device) for o in outputs]
        found = torch.autograd.grad(outputs, leaves, vectors, is_grads_batched=True, retain_graph=True)
        for i in range(3):
            expected = torch.autograd.grad(outputs, leaves, [v[i] for v in vectors], retain_graph=True)
            same([f[i] for f in found], expected, EXACT if on.dtypes[0] == torch.float64 else 1e-6)


def test_without_a_highway_vmap_leaves_its_gradient_out(no_warning: None):
    from motionrnn_ext import ops

    o, content = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = ops.highway_output(o, content)
    vectors = torch.randn(3, *out.shape, dtype=torch.float64)
    found = torch.autograd.grad(out, [o, content], vectors, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        same(
            [f[i] for f in found],
            torch.autograd.grad(out, [o, content], vectors[i], retain_graph=True),
            EXACT,
        )


@pytest.mark.parametrize("op", OPS)
def test_vmap_over_nothing_is_nothing(op: str):
    function, inputs = function_and_inputs(op, torch.float64, "cpu")
    nothing = [torch.stack([t])[:0] for t in inputs]
    assert [o.shape for o in vmap(function)(*nothing)] == [(0, *o.shape) for o in function(*inputs)]


@feature("vmap", on=["cpu"])
@NEEDS_CPU
def test_an_ensemble_of_layers_and_clips_each_by_itself(no_warning: None):
    torch.manual_seed(0)
    layers = [MotionGRU(8, zero_init=False).double() for _ in range(3)]
    parameters, _ = stack_module_state(layers)
    hidden = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    found = vmap(lambda p: functional_call(layers[0], p, (hidden,))[0])(parameters)
    same(found.unbind(), [layer(hidden)[0] for layer in layers], EXACT)
    last = torch.randn(2, 8, 4, 6, 3, dtype=torch.float64)
    found = vmap(lambda x: layers[0](x)[0], in_dims=-1)(last)
    same(found.unbind(), [layers[0](x)[0] for x in last.unbind(-1)], EXACT)


# ---- torch.func and forward mode


@feature("func", on=["reference"])
@pytest.mark.parametrize("predictor", ["convlstm", "predrnn", "mim", "e3d_lstm", "conv_tt_lstm"])
def test_gradients_of_every_clip_by_itself(predictor: str, no_warning: None):
    """vmap(grad) of a whole model, which by default runs on the reference."""
    torch.manual_seed(0)
    model = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 12)).double()
    frames = torch.rand(3, 4, 1, 8, 12, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], clip: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (clip[None], 2)).square().sum()

    with warnings.catch_warnings():  # vmap has no rule of its own for attention on the CPU
        warnings.filterwarnings("ignore", message=".*batching rule.*scaled_dot_product.*")
        found = vmap(grad(loss), (None, 0))(parameters, frames)
    for i, clip in enumerate(frames):
        expected = torch.autograd.grad(loss(parameters, clip), list(parameters.values()), allow_unused=True)
        for f, e in zip(found.values(), expected):
            assert_close(f[i], torch.zeros_like(f[i]) if e is None else e, 1e-10)


@feature("forward_mode", on=["reference"])
@pytest.mark.parametrize("op", OPS)
def test_tangents_of_gradients_are_not_dropped(op: str):
    """A backward on the kernels inside of forward mode: the derivative is the gradient of the tangent."""
    function, inputs = function_and_inputs(op, torch.float64, "cpu")
    leaves = [t.clone().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    grads, tangents = ([torch.randn_like(o) for o in outputs] for _ in range(2))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(g, t) for g, t in zip(grads, tangents)]
        found = torch.autograd.grad(outputs, leaves, duals, retain_graph=True)
        parts = [forward_ad.unpack_dual(f) for f in found]
    same([p.primal for p in parts], torch.autograd.grad(outputs, leaves, grads, retain_graph=True), EXACT)
    assert not any(f.requires_grad for f in found)
    same([p.tangent for p in parts], torch.autograd.grad(outputs, leaves, tangents), EXACT)  # it is linear


@pytest.mark.parametrize("op", OPS)
def test_transforms_inside_of_a_compiled_function(op: str):
    function, inputs = function_and_inputs(op, torch.float64, "cpu")

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        return sum((o * o).sum() for o in function(*tensors))

    def both(*tensors: torch.Tensor):
        return jvp(total, tensors, tensors)[1], *grad(total, tuple(range(len(tensors))))(*tensors)

    torch._dynamo.reset()
    same(torch.compile(both, fullgraph=True, backend="aot_eager")(*inputs), both(*inputs), EXACT)
    stacked = tuple(torch.stack([t, -t]) for t in inputs)
    compiled = torch.compile(vmap(function), fullgraph=True, backend="aot_eager")
    same(compiled(*stacked), vmap(function)(*stacked), EXACT)


@NEEDS_CPU
def test_forward_mode_around_a_compiled_function_compiles_it_for_that():
    """And does not leave the graph of the reference to those who come after."""
    function, inputs = function_and_inputs("gated_blend", torch.float64, "cpu")
    ran: list[set[str]] = []

    def eager(graph: torch.fx.GraphModule, _):
        targets = {str(node.target) for node in graph.graph.nodes}

        def run(*tensors: torch.Tensor):
            ran.append(targets)
            return graph(*tensors)

        return run

    compiled = torch.compile(lambda *t: function(*t)[0], fullgraph=True, backend=eager)
    compiled(*inputs)
    with forward_ad.dual_level():
        dual = compiled(*[forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs])
        tangent = forward_ad.unpack_dual(dual).tangent
    compiled(*inputs)
    assert ["motionrnn_ext.gated_blend" in targets for targets in ran] == [True, False, True]
    assert_close(
        tangent, jvp(lambda *t: function(*t)[0], inputs, tuple(map(torch.ones_like, inputs)))[1], EXACT
    )


# ---- FLOPs


def test_the_counter_knows_the_ops_whenever_it_is_imported():
    """Importing it imports Triton; this package does not wait for that."""
    code = """
import sys, torch, motionrnn_ext
assert "torch.utils.flop_counter" not in sys.modules
x, offset, mask, weight = (torch.zeros(s) for s in ((1, 2, 3, 4), (1, 18, 3, 4), (1, 9, 3, 4), (5, 2, 3, 3)))
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    motionrnn_ext.ops.offset_warp(x, offset, mask, weight)
print(counter.get_total_flops())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == str(2 * 12 * 2 * 5 * 9), said.stderr


def flops(test: UnderTest, op: str, inputs: Sequence[torch.Tensor], wanted: Sequence[int]) -> tuple[int, int]:
    """Counted forward, and backward to those inputs."""
    leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    case = small_case(op)
    with test.chosen():
        with FlopCounterMode(display=False) as forward:
            outputs = case.run(dict(zip(case.inputs(torch.float32), leaves)))
        with FlopCounterMode(display=False) as backward:
            sum(o.sum() for o in outputs if o.requires_grad).backward()
    return forward.get_total_flops(), backward.get_total_flops()


@feature("flops")
@on(ALL)
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (0,), (1,), (2,), (3,), (0, 3)])
def test_flops_of_the_warp_are_those_of_its_contraction(wanted: tuple[int, ...], on: UnderTest):
    made = warp_inputs(
        torch.Generator().manual_seed(0), batch=2, channels=3, out_channels=4, height=5, width=7
    )
    inputs = [t.float().to(on.device) for t in made.values()]
    contraction = 2 * 2 * 5 * 7 * 3 * 4 * 9
    products = (wanted != (3,)) + (3 in wanted)
    assert flops(on, "offset_warp", inputs, wanted) == (contraction, products * contraction)


@pytest.mark.skipif(CPU not in ALL, reason=f"the cpu backend is not tested: {NOT_TESTED.get('cpu')}")
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3, 4, 5, 6), (0, 1), (1,), (3, 4, 5, 6)])
def test_flops_of_motion_gates_are_those_of_its_convolutions(wanted: tuple[int, ...]):
    inputs = list(small_case("motion_gates").inputs(torch.float32, grad=False).values())
    expected = flops(REFERENCE, "motion_gates", inputs, wanted)
    assert expected[0] > 0 and flops(CPU, "motion_gates", inputs, wanted) == expected


@on(CUDA_KERNELS)
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3, 4, 5, 6), (3,), (6,)])
def test_flops_of_motion_warp_are_those_of_the_two_ops(wanted: tuple[int, ...], on: UnderTest):
    inputs = list(small_case("motion_warp").inputs(torch.float32, on.device, grad=False).values())
    expected = flops(REFERENCE, "motion_warp", [t.cpu() for t in inputs], wanted)
    assert expected[0] > 0 and flops(on, "motion_warp", inputs, wanted) == expected


@feature("flops")
@on(ALL)
def test_flops_of_a_model_do_not_depend_on_the_backend(on: UnderTest):
    torch.manual_seed(0)
    model = MotionRNN("predrnn", 1, (4, 4), 2, filter_size=3).to(on.device)
    frames = torch.rand(1, 3, 1, 8, 8, device=on.device)
    counts = []
    for test in (REFERENCE, on):
        with test.chosen(), FlopCounterMode(display=False) as counter:
            model(frames, 2).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
