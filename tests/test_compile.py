"""torch.compile around the ops, the layer and whole training steps: graphs counted, results those of eager."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from case import Case
from cases import ALL_OPS, POINTWISE, dense_case
from comparing import assert_close
from features import feature
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from under_test import (
    ALL,
    CPU,
    CUDA_KERNELS,
    KERNELS,
    NOT_TESTED,
    REFERENCE,
    TRITON,
    UnderTest,
    on,
)
from warp_cases import motion_inputs, warp_inputs

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionRNN, backends, ops
from motionrnn_ext.layers.cells import CELLS

NEEDS_CPU = pytest.mark.skipif(CPU not in ALL, reason=f"cpu is not tested: {NOT_TESTED.get('cpu')}")
SAME = 1e-6  # compiled against eager, relative to the largest value; measured: 0
BY_INDUCTOR = 1e-5  # measured: up to 1.3e-6
slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")


def on_all_slowly_on_reference() -> pytest.MarkDecorator:
    """Its many small operations take a while to trace."""
    tests = [(p, [*p.marks, slow] if p.values[0] is REFERENCE else p.marks) for p in on(ALL).args[1]]
    return pytest.mark.parametrize(
        "on", [pytest.param(*p.values, id=p.id, marks=marks) for p, marks in tests]
    )


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """No graph of another test, nor from the disk: torch keeps some there and does not know this package's version."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


def model_of(predictor: str, device: str = "cpu", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    options.setdefault("image_size", (16, 16))
    return MotionRNN(predictor, 1, (8, 8), 2, filter_size=3, **options).to(device)


def frames(*shape: int, device: str = "cpu") -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)


def check_step(
    step: Callable[..., Any],
    compiled: Callable[..., Any],
    wrt: Sequence[Tensor],
    *inputs: Any,
    tolerance: float = SAME,
) -> None:
    """Outputs and gradients of a compiled function are those of the eager one."""
    found, expected = (
        [*out, *torch.autograd.grad(sum(o.square().sum() for o in out), wrt, materialize_grads=True)]
        for out in (tensors(f(*inputs)) for f in (compiled, step))
    )
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, tolerance)


def tensors(out: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]


# ---- A whole training step


def _steps(predictors: Sequence[str], compiler: str, *marks: Any) -> list[Any]:
    return [pytest.param(p, compiler, id=f"{p}-{compiler}", marks=marks) for p in predictors]


@feature("compile_model")
@on_all_slowly_on_reference()
@pytest.mark.parametrize(
    "predictor, compiler",
    [
        *_steps(["convlstm", "predrnn"], "aot_eager"),
        *_steps([p for p in CELLS if p not in ("convlstm", "predrnn")], "aot_eager", slow),
        *_steps(list(CELLS), "inductor", slow),
    ],
)
def test_training_step_without_a_graph_break(predictor: str, compiler: str, on: UnderTest):
    if compiler == "inductor" and on is REFERENCE:
        pytest.skip("of the reference, the ops show that Inductor compiles it")
    model = model_of(predictor, on.device)
    total = 2 if compiler == "inductor" and predictor != "convlstm" else 3  # its compiler takes a while

    def step(frames: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(frames, n_input=1), frames[:, 1:])

    clip, counter = frames(2, total, 1, 16, 16, device=on.device), CompileCounterWithBackend(compiler)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    tolerance = BY_INDUCTOR if compiler == "inductor" else SAME
    with on.chosen():
        check_step(step, compiled, list(model.parameters()), clip, tolerance=tolerance)
    assert counter.frame_count == 1


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "official": ({"variant": "official", "init_state": "xavier"}, {}),
    "without_trend": ({"trend": False}, {"return_motion": True}),
    "without_transient": ({"transient": False}, {"return_motion": True}),
    "predictor_alone": ({"motion_gru": False, "highway": False}, {}),
    "sampling": ({"layer_norm": True}, {"sampling_mask": frames(2, 2, 1, 16, 16)}),
    "reverse_sampling": ({}, {"sampling_mask": torch.ones(2, 2, 1, 1, 1), "reverse_sampling": True}),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_way_to_call_the_model_is_one_graph(call: str):
    options, arguments = CALLS[call]
    model, counter = model_of("predrnn", **options), CompileCounter()
    results = []
    for f in (model, torch.compile(model, fullgraph=True, backend=counter)):
        torch.manual_seed(2)  # of the initial state
        results.append(tensors(f(frames(2, 4, 1, 16, 16), 1, **arguments)))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, SAME)
    assert counter.frame_count == 1


# ---- Dynamic shapes

SIZES = [(2, 6, 5), (3, 8, 7), (5, 4, 10)]  # B, H, W


def sized_case(op: str, batch: int, height: int, width: int) -> Case:
    if op in POINTWISE:
        return dense_case(op, (batch, 4, height, width))
    make = motion_inputs if op == "motion_warp" else warp_inputs
    return Case(op, "sized", partial(make, batch=batch, height=height, width=width))


@feature("dynamic")
@on_all_slowly_on_reference()
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_ops_take_any_size(op: str, dynamic: bool | None, on: UnderTest):
    """In one graph, or where the second size shows what changes, in two. (The first is traced twice where an op takes a
    number: torch tries to leave it open.)"""
    if op == "motion_warp" and on not in CUDA_KERNELS:
        pytest.skip("two ops here, which are tested by themselves")
    counter = CompileCounterWithBackend("aot_eager")

    def step(inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        return sized_case(op, 1, 1, 1).run(inputs)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for size in SIZES:
        inputs = sized_case(op, *size).inputs(torch.float32, on.device)
        with on.chosen():
            check_step(step, compiled, [t for t in inputs.values() if t is not None], inputs)
        counts.append(counter.frame_count)
    assert [count - counts[0] for count in counts] == ([0, 0, 0] if dynamic else [0, 1, 1])


@feature("dynamic")
@on_all_slowly_on_reference()
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_motion_gru_takes_any_size(dynamic: bool | None, on: UnderTest):
    layer, counter = MotionGRU(8).to(on.device), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for batch, height, width in [(3, 12, 10), (2, 8, 6), (5, 4, 14)]:  # first, no two sizes are equal
        hidden = torch.randn(batch, 8, height, width, device=on.device, requires_grad=True)
        with on.chosen():
            check_step(layer, compiled, [hidden, *layer.parameters()], hidden)
        counts.append(counter.frame_count)
    assert [count - counts[0] for count in counts] == ([0, 0, 0] if dynamic else [0, 1, 1])


@NEEDS_CPU
@feature("dynamic", on=["cpu"])
def test_large_maps_need_no_graph_of_their_own():
    """The layout that a GPU likes for them is no question on a CPU."""
    layer, counter = MotionGRU(4), CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    with motionrnn_ext.backend("cpu"), torch.no_grad():
        graphs = []
        for batch, size in (
            (2, 8),
            (8, 128),
        ):  # 2^15 pixels at half size; from B = 16 on torch's convolutions differ
            hidden = torch.randn(batch, 4, size, size + 2)
            assert_close(compiled(hidden)[0], layer(hidden)[0], SAME)
            graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@feature("dynamic")
@on_all_slowly_on_reference()
def test_motion_rnn_takes_any_size(on: UnderTest):
    """A training step; T stays."""
    model, counter = model_of("convlstm", on.device), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    counts = []
    for batch, height, width in [(2, 16, 12), (3, 8, 20), (5, 12, 8)]:
        clip = frames(batch, 2, 1, height, width, device=on.device)
        with on.chosen():
            check_step(lambda x: model(x, 1), lambda x: compiled(x, 1), list(model.parameters()), clip)
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2]


# ---- Graphs over changing B and T


def test_forward_is_a_graph_per_length():
    """T unrolls the rollout. A second batch size makes one graph for all sizes, but torch's own for 1."""
    model, counter = model_of("convlstm"), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)

    def graphs_after(batch: int, total: int) -> int:
        clip = frames(batch, total, 1, 16, 16)
        assert_close(compiled(clip, 1), model(clip, 1), SAME)
        return counter.frame_count

    assert [graphs_after(batch, 2) for batch in (2, 3, 5, 2)] == [1, 2, 2, 2]
    assert graphs_after(1, 2) == 3
    assert [graphs_after(*size) for size in ((3, 3), (7, 3), (3, 2))] == [4, 4, 4]


def test_too_many_lengths_are_torchs_error():
    compiled = torch.compile(model_of("convlstm"), fullgraph=True, backend=CompileCounter())
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled(frames(2, 2, 1, 16, 16), 1)
        with pytest.raises(FailOnRecompileLimitHit):
            compiled(frames(2, 3, 1, 16, 16), 1)


def graphs_of_stream(model: MotionRNN, batches: Sequence[int], total: int) -> list[list[int]]:
    """How many graphs there are after each frame of streams of `step`, one after another."""
    counter = CompileCounter()
    compiled = torch.compile(model.step, fullgraph=True, backend=counter)
    graphs: list[list[int]] = []
    for batch in batches:
        graphs.append([])
        states = [None, None]
        for frame in frames(batch, total, 1, 16, 16).unbind(1):
            found, expected = (f(frame, s) for f, s in zip((compiled, model.step), states))
            states = [found[1], expected[1]]
            for a, e in zip(tensors(found), tensors(expected), strict=True):
                assert_close(a, e, SAME)
            graphs[-1].append(counter.frame_count)
    return graphs


@pytest.mark.parametrize("predictor", [p if p == "convlstm" else pytest.param(p, marks=slow) for p in CELLS])
def test_a_stream_is_two_graphs(predictor: str):
    """One for the first frame, which has no state, one for all others; a second batch size makes them dynamic. The past
    of E3D-LSTM grows, which its second state shows."""
    with torch.no_grad():
        graphs = graphs_of_stream(model_of(predictor), batches=(2, 3, 5), total=5)
    if predictor == "e3d_lstm":
        assert graphs == [[1, 2, 3, 3, 3], [4, 5, 5, 5, 5], [5] * 5]
    else:
        assert graphs == [[1, 2, 2, 2, 2], [3, 4, 4, 4, 4], [4] * 5]


@pytest.mark.parametrize(
    "predictor, graphs",
    [
        ("convlstm", [1, 2, 2, 2, 2]),
        pytest.param("mim", [1, 2, 3, 3, 3], marks=slow),
        pytest.param("conv_tt_lstm", [1, 2, 3, 4, 4], marks=slow),
    ],
)
def test_a_stream_with_gradients(predictor: str, graphs: list[int]):
    """A graph more as long as a part of the state is still the initial one, and wants no gradient."""
    assert graphs_of_stream(model_of(predictor), batches=[2], total=5) == [graphs]


# ---- The choice of a backend, and the deterministic flag


class Graphs:
    """A compiler for torch.compile: notes the package's ops in every graph, and which thread runs them."""

    def __init__(self) -> None:
        self.forward: list[set[str]] = []  # a set of ops for each graph
        self.backward: list[set[str]] = []
        self.flags: list[bool] = []  # the deterministic one of every offset_warp_backward
        self.ran: set[tuple[str, frozenset[str]]] = set()  # thread, ops

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        compilers = (partial(self._note, graphs) for graphs in (self.forward, self.backward))
        return aot_autograd(**dict(zip(("fw_compiler", "bw_compiler"), compilers)))(module, inputs)

    def _note(self, graphs: list[set[str]], module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        calls = [
            n for n in module.graph.nodes if getattr(n.target, "namespace", "").startswith("motionrnn_ext")
        ]
        graphs.append({n.target._opname for n in calls})
        self.flags += [n.args[-1] for n in calls if n.target._opname == "offset_warp_backward"]

        def run(*arguments: Any) -> Any:
            self.ran.add((threading.current_thread().name, frozenset(n.target._opname for n in calls)))
            return module(*arguments)

        return make_boxed_func(run)


# On a GPU, Triton's kernels stand in the graph themselves.
VISIBLE = [t for t in KERNELS if t is not TRITON or t.is_slow]


@pytest.fixture
def warp() -> tuple[dict[str, Tensor], Graphs, Callable[..., Any]]:
    """Inputs, the compiler's notes, and a compiled offset_warp with its gradient for x."""
    inputs, graphs = warp_inputs(torch.Generator().manual_seed(0)), Graphs()
    inputs = {name: t.float().requires_grad_() for name, t in inputs.items()}
    compiled = torch.compile(ops.offset_warp, fullgraph=True, backend=graphs)
    return inputs, graphs, compiled


@pytest.fixture
def deterministic() -> Iterator[Callable[[bool], None]]:
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


@feature("compile")
@on(VISIBLE)
def test_another_backend_is_another_graph_and_the_first_is_kept(warp: Any, on: UnderTest):
    inputs, graphs, compiled = warp
    inputs = {name: t.detach().to(on.device).requires_grad_() for name, t in inputs.items()}
    counts = []
    for test in (REFERENCE, on, REFERENCE, on):
        with test.chosen():
            check_step(ops.offset_warp, compiled, list(inputs.values()), *inputs.values())
        counts.append((len(graphs.forward), len(graphs.backward)))
    assert counts == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert graphs.forward == [set(), {"offset_warp"}]
    assert graphs.backward == [set(), {"offset_warp_backward"}]


@NEEDS_CPU
@feature("compile", on=["cpu"])
def test_the_choice_of_all_threads_is_seen(warp: Any, monkeypatch: pytest.MonkeyPatch):
    inputs, graphs, compiled = warp
    monkeypatch.setattr(backends, "_chosen", "auto")
    for name in ("reference", "cpu", "auto", "reference"):
        motionrnn_ext.set_backend(name)
        compiled(*inputs.values())
    assert graphs.forward == [set(), {"offset_warp"}, {"offset_warp"}]


@feature("deterministic")
@on(VISIBLE)
def test_the_traced_backward_gets_the_deterministic_flag(
    warp: Any, deterministic: Callable[[bool], None], on: UnderTest
):
    inputs, graphs, compiled = warp
    inputs = {name: t.detach().to(on.device).requires_grad_() for name, t in inputs.items()}
    flags = []
    for flag in (False, True, False, True):
        deterministic(flag)
        with on.chosen():
            check_step(ops.offset_warp, compiled, list(inputs.values()), *inputs.values())
        flags.append(list(graphs.flags))
    assert flags == [[False], [False, True], [False, True], [False, True]]


@NEEDS_CPU
@feature("compile", on=["reference", "cpu"])
@pytest.mark.parametrize("flag", [False, True], ids=["", "deterministic"])
def test_threads_that_chose_different_backends_run_their_own_graphs(
    warp: Any, deterministic: Callable[[bool], None], flag: bool
):
    """Both compile at the same time, then call the one function by turns."""
    inputs, graphs, compiled = warp
    deterministic(flag)
    expected = ops.offset_warp(*inputs.values()).detach()
    both, errors = threading.Barrier(2), []

    def work(name: str) -> None:
        leaves = [t.detach().requires_grad_() for t in inputs.values()]
        try:
            with motionrnn_ext.backend(name):
                for _ in range(20):
                    both.wait(60)
                    out = compiled(*leaves)
                    assert_close(out, expected, SAME)
                    torch.autograd.grad(out.sum(), leaves)
        except BaseException as error:
            errors.append(error)
            both.abort()

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in ("reference", "cpu")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    kernels = frozenset({"offset_warp"}), frozenset({"offset_warp_backward"})
    assert graphs.ran == {("reference", frozenset()), *(("cpu", ops) for ops in kernels)}
    assert len(graphs.forward) == 2 and graphs.flags == [flag]


# ---- Modes


@NEEDS_CPU
@feature("compile", on=["cpu"])
@slow
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_on_a_cpu(mode: str):
    layer = MotionGRU(8)
    hidden = torch.randn(2, 8, 8, 12, requires_grad=True)
    with motionrnn_ext.backend("cpu"):
        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        check_step(layer, compiled, [hidden, *layer.parameters()], hidden, tolerance=BY_INDUCTOR)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
@feature("cuda_graphs")
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_modes_on_a_gpu(backend: str, mode: str):
    """Several calls: the first warm up, the second record CUDA graphs, later ones replay them."""
    reason = backends.unavailable_reason(backend)
    if reason:
        pytest.skip(f"{backend} is not tested: {reason}")
    layer = MotionGRU(16).cuda()
    with motionrnn_ext.backend(backend):
        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        for _ in range(4):
            hidden = torch.randn(2, 16, 16, 12, device="cuda", requires_grad=True)
            torch.compiler.cudagraph_mark_step_begin()
            check_step(layer, compiled, [hidden, *layer.parameters()], hidden, tolerance=BY_INDUCTOR)
